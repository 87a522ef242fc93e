"""What holds for every class of every model in the list."""

import pytest
import torch
from saving import small_config

from crate_mae_hf.registry import MODELS, ModelRow

CLASSES = [(row, auto_class) for row in MODELS.values() for auto_class in row.model_classes]
pytestmark = pytest.mark.parametrize(
    ("row", "auto_class"), CLASSES, ids=[f"{row.name}-{auto_class}" for row, auto_class in CLASSES]
)


def build(row: ModelRow, auto_class: str, **changes) -> torch.nn.Module:
    config = small_config(row)
    for name, value in changes.items():
        setattr(config, name, value)
    return row.model_classes[auto_class](config)


def run(model: torch.nn.Module, auto_class: str, pixel_values: torch.Tensor, **arguments) -> torch.Tensor:
    """The tensor that a class is there for; what an autoencoder masks is the same each time."""
    num_patches = pixel_values.shape[2] // 8 * (pixel_values.shape[3] // 8)
    noise = torch.rand(2, num_patches, generator=torch.Generator().manual_seed(0))
    if auto_class == "AutoModelForMaskedImageModeling":
        return model(pixel_values, bool_masked_pos=noise > 0.5, **arguments).reconstruction
    if auto_class == "AutoModelForPreTraining" and hasattr(model.config, "mask_ratio"):
        arguments["noise"] = noise
    outputs = model(pixel_values, **arguments)
    if logits := [value for name, value in outputs.items() if name.startswith("logits")]:
        return torch.cat(logits, dim=-1)
    return outputs.feature_maps[-1] if "feature_maps" in outputs else outputs.last_hidden_state


def test_evaluation_is_deterministic(row, auto_class, pixel_values):
    model = build(row, auto_class, hidden_dropout_prob=0.5, drop_path_rate=0.5).eval()
    assert torch.equal(run(model, auto_class, pixel_values), run(model, auto_class, pixel_values))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_every_parameter_gets_a_gradient(row, auto_class, pooling, pixel_values):
    # DistributedDataParallel stops on a parameter without one.
    model = build(row, auto_class, pooling=pooling)
    run(model, auto_class, pixel_values).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_bad_images_get_a_clear_error(row, auto_class):
    model = build(row, auto_class)
    with pytest.raises(ValueError, match=r"shape \(batch_size, 3, height, width\).*got \(2, 1, 32, 32\)"):
        model(torch.zeros(2, 1, 32, 32))
    with pytest.raises(ValueError, match="`pixel_values` must have shape"):
        model(torch.zeros(3, 32, 32))
    if auto_class == "AutoBackbone":  # takes images of any size
        with pytest.raises(ValueError, match=r"of a patch, \(8, 8\), or more, got \(32, 7\)"):
            model(torch.zeros(2, 3, 32, 7))
        return
    with pytest.raises(ValueError, match=r"\(40, 32\).*\(32, 32\).*interpolate_pos_encoding=True"):
        model(torch.zeros(2, 3, 40, 32))
    with pytest.raises(ValueError, match=r"divisible by the patch size \(8, 8\), got \(36, 32\)"):
        model(torch.zeros(2, 3, 36, 32), interpolate_pos_encoding=True)


@pytest.mark.parametrize("size", [(32, 32), (48, 24)])
def test_other_resolutions(row, auto_class, size):
    model = build(row, auto_class).eval()
    images = torch.randn(2, 3, *size)
    output = run(model, auto_class, images, interpolate_pos_encoding=True)
    assert torch.isfinite(output).all()
    if size == (32, 32):
        assert torch.equal(output, run(model, auto_class, images))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_half_precision(row, auto_class, dtype, attn_implementation, pixel_values):
    model = build(row, auto_class)
    model.set_attn_implementation(attn_implementation)
    expected = run(model, auto_class, pixel_values)
    output = run(model.to(dtype), auto_class, pixel_values)  # float32 pixels into a half model
    assert output.dtype == dtype
    assert (output.float() - expected).norm() < 0.03 * expected.norm()
    output.float().square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_attention_implementations_agree(row, auto_class, pixel_values):
    model = build(row, auto_class).eval()
    outputs = {}
    for name in ("eager", "sdpa", "flex_attention"):
        model.set_attn_implementation(name)
        with torch.no_grad():
            outputs[name] = run(model, auto_class, pixel_values)
    for name in ("sdpa", "flex_attention"):
        torch.testing.assert_close(outputs[name], outputs["eager"], atol=1e-5, rtol=1e-5)


def test_compiles_without_a_graph_break(row, auto_class, pixel_values):
    torch.compiler.reset()
    model = build(row, auto_class).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    actual, expected = run(compiled, auto_class, pixel_values), run(model, auto_class, pixel_values)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load(row, auto_class, dtype, pixel_values, tmp_path):
    model = build(row, auto_class).eval().to(dtype)
    model.save_pretrained(tmp_path)
    loaded = row.model_classes[auto_class].from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name].to(dtype), value), name
    assert [name for name, parameter in loaded.named_parameters() if not parameter.requires_grad] == []
    torch.testing.assert_close(run(loaded, auto_class, pixel_values), run(model, auto_class, pixel_values))
