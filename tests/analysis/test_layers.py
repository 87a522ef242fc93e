"""The layer report against the layers' formulas, written out on the weights."""

import math

import pytest
import torch
from torch.nn.functional import layer_norm

from crate_mae_hf import CrateMaeBackbone, CrateMaeConfig, CrateMaeForImageClassification, CrateMaeForPreTraining
from crate_mae_hf.analysis import coding_rate, layer_report, random_masks, subspace_coding_rate
from crate_mae_hf.analysis.layers import ALPHA_DESCRIPTIONS, DESCRIPTIONS


def norm(layer: torch.nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    return layer_norm(x, x.shape[-1:], layer.weight, layer.bias, layer.eps)


def attend(mssa: torch.nn.Module, x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """MSSA head by head, image by image."""
    images = []
    for tokens in x:
        heads = []
        for basis in mssa.subspace_proj.weight.chunk(num_heads):
            w = tokens @ basis.T
            heads.append((w @ w.T / math.sqrt(len(basis))).softmax(dim=1) @ w)
        images.append(mssa.o_proj(torch.cat(heads, dim=1)))
    return torch.stack(images)


def heads(x: torch.Tensor, mssa: torch.nn.Module, num_heads: int) -> torch.Tensor:
    return torch.stack([x @ basis.T for basis in mssa.subspace_proj.weight.chunk(num_heads)], dim=1)


def cosine(a: torch.Tensor, b: torch.Tensor) -> list[float]:
    return [
        sum(torch.corrcoef(torch.stack(pair))[0, 1].item() for pair in zip(*images, strict=True)) / len(images[0])
        for images in zip(a, b, strict=True)
    ]


@pytest.fixture
def square_config(config) -> CrateMaeConfig:
    """As many decoder as encoder layers, and other numbers of heads."""
    sizes = {"num_hidden_layers": 2, "decoder_num_attention_heads": 2, "ista_lambda": 0.3}
    dropped = ("stage_names", "out_features", "out_indices")
    return CrateMaeConfig(**{k: v for k, v in {**config.to_dict(), **sizes}.items() if k not in dropped})


@torch.no_grad()
def test_report_against_the_formulas(square_config, pixel_values):
    model = CrateMaeForPreTraining(square_config).double().eval()
    for parameter in model.parameters():  # no layer norm or bias at its initial value
        parameter.add_(0.05 * torch.randn_like(parameter))
    pixel_values = pixel_values.double()
    masks = random_masks(2, 16, 0.5)
    report = layer_report(model, pixel_values, masks, batch_size=1)

    z = model.crate_mae.embeddings(pixel_values, masks)
    states, expected = [z], []
    for layer in model.crate_mae.layers:
        z_half = z + attend(layer.mssa, norm(layer.layernorm_before, z), 4)
        n = norm(layer.layernorm_after, z_half)
        D = layer.ista.dictionary
        output = (n + 0.1 * (n @ D - n @ D.T @ D) - 0.1 * 0.3).relu()
        values = {
            "coding_rate": coding_rate(output),
            "coding_rate_unit": coding_rate(output / output.norm(dim=2, keepdim=True)),
            "subspace_rate_codes": subspace_coding_rate(heads(norm(layer.layernorm_before, z), layer.mssa, 4)),
            "subspace_rate_before": subspace_coding_rate(heads(z, layer.mssa, 4)),
            "subspace_rate_after": subspace_coding_rate(heads(z_half, layer.mssa, 4)),
            "subspace_rate_after_unit": subspace_coding_rate(heads(z_half, layer.mssa, 4), normalize=True),
            "sparsity": torch.tensor([(image == 0).sum() / image.numel() for image in output]).double(),
            "mssa_energy": ((z_half - z) ** 2).sum((1, 2)) / (z**2).sum((1, 2)),
            "ista_energy": ((output - n) ** 2).sum((1, 2)) / (n**2).sum((1, 2)),
            "residual_before": ((n - n @ D.T) ** 2).sum(2).mean(1) / 2,
            "residual_after": ((n - output @ D.T) ** 2).sum(2).mean(1) / 2,
            "l1_before": 0.3 * n.abs().sum(2).mean(1),
            "l1_after": 0.3 * output.sum(2).mean(1),
            "dictionary_defect": ((D.T @ D - torch.eye(32)) ** 2).sum().div(32).sqrt().expand(2),
        }
        expected.append(values)
        z = output
        states.append(z)
    for layer, values in enumerate(expected):
        for name, value in values.items():
            torch.testing.assert_close(report.encoder[name][layer], value, msg=lambda m, name=name: f"{name}: {m}")
    torch.testing.assert_close(report.encoder["nonzero_share"], 1 - report.encoder["sparsity"])

    y = norm(model.crate_mae.layernorm, z)
    first = y
    for number, layer in enumerate(model.decoder.layers):

        def decode(y, layer=layer):
            n = norm(layer.layernorm_before, y)
            y_half = n @ layer.dictionary.T
            return n, y_half, y_half - attend(layer.mssa, norm(layer.layernorm_after, y_half), 2)

        n, y_half, output = decode(y)
        target, code = states[1 - number], states[2 - number]
        values = {
            "subspace_rate_codes": subspace_coding_rate(heads(norm(layer.layernorm_after, y_half), layer.mssa, 2)),
            "subspace_rate_before": subspace_coding_rate(heads(y_half, layer.mssa, 2)),
            "subspace_rate_after": subspace_coding_rate(heads(output, layer.mssa, 2)),
            "mssa_energy": ((output - y_half) ** 2).sum((1, 2)) / (y_half**2).sum((1, 2)),
            "dictionary_energy": ((y_half - n) ** 2).sum((1, 2)) / (n**2).sum((1, 2)),
            "inversion": torch.tensor(cosine(decode(code if number else first)[2], target)).double(),
            "inversion_in_flow": torch.tensor(cosine(output, target)).double(),
            "inversion_identity": torch.tensor(cosine(code, target)).double(),
        }
        for name, value in values.items():
            torch.testing.assert_close(report.decoder[name][number], value, msg=lambda m, name=name: f"{name}: {m}")
        y = output


def test_a_perfect_inverse_scores_1(square_config, pixel_values):
    """Layers that do nothing but normalise invert each other: tokens are compared up to scale and shift."""
    model = CrateMaeForPreTraining(square_config)
    with torch.no_grad():
        for layer in [*model.crate_mae.layers, *model.decoder.layers]:
            layer.mssa.o_proj.weight.zero_()
        for layer in model.crate_mae.layers:
            layer.ista.dictionary.copy_(torch.eye(32))
            layer.ista.threshold = 0.0
            layer.layernorm_after.bias.fill_(100)  # nothing is negative: ReLU passes all
        for layer in model.decoder.layers:
            layer.dictionary.copy_(torch.eye(32))
    report = layer_report(model, pixel_values)
    torch.testing.assert_close(report.decoder["inversion"], torch.ones(2, 2).double(), atol=1e-4, rtol=0)
    assert report.encoder["sparsity"].abs().max() == 0
    assert report.encoder["mssa_energy"].abs().max() == 0


def test_a_shallow_decoder_mirrors_the_last_encoder_layers(model, pixel_values):
    report = layer_report(model, pixel_values)  # three encoder and two decoder layers
    with torch.no_grad():
        mask = torch.zeros(len(pixel_values), model.config.grid_size[0] * model.config.grid_size[1], dtype=torch.bool)
        states = model.eval()(pixel_values, bool_masked_pos=mask, output_hidden_states=True).hidden_states
    for number in range(2):
        expected = cosine(states[3 - number], states[2 - number])
        actual = report.decoder["inversion_identity"][number]
        torch.testing.assert_close(actual, torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)


def test_a_deeper_decoder_mirrors_nothing(square_config, pixel_values):
    square_config.decoder_num_hidden_layers = 3
    report = layer_report(CrateMaeForPreTraining(square_config), pixel_values)
    assert not [name for name in report.decoder if name.startswith("inversion")]


def test_chunks_change_nothing(model):
    pixel_values = torch.randn(5, 3, 32, 32)
    together, apart = (layer_report(model, pixel_values, batch_size=size) for size in (5, 2))
    for name, values in together.encoder.items():
        torch.testing.assert_close(apart.encoder[name], values, rtol=1e-4, atol=1e-5)


def test_table(model, pixel_values):
    report = layer_report(model, pixel_values)
    table = report.table()
    assert [(row["part"], row["layer"]) for row in table] == [
        ("encoder", 1),
        ("encoder", 2),
        ("encoder", 3),
        ("decoder", 1),
        ("decoder", 2),
    ]
    values = report.encoder["sparsity"][1]
    assert table[1]["sparsity_mean"] == pytest.approx(values.mean().item())
    assert table[1]["sparsity_std"] == pytest.approx((values[0] - values[1]).abs().item() / 2)
    names = {key.removesuffix("_mean") for row in table for key in row if key.endswith("_mean")}
    assert names == set(DESCRIPTIONS)
    assert report.rate_bound == pytest.approx(16 * math.log(101))
    assert (report.encoder["subspace_rate_codes_unit"] <= report.rate_bound).all()


@pytest.mark.parametrize("kind", [CrateMaeForImageClassification, CrateMaeBackbone])
def test_models_without_decoder(kind, config, pixel_values):
    report = layer_report(kind(config), pixel_values)
    assert report.decoder == {}
    assert len(report.table()) == 3


def test_nothing_masked_is_the_default(model, pixel_values):
    default = layer_report(model, pixel_values)
    explicit = layer_report(model, pixel_values, torch.zeros(2, 16, dtype=torch.bool))
    masked = layer_report(model, pixel_values, torch.ones(2, 16, dtype=torch.bool))
    assert torch.equal(default.encoder["coding_rate"], explicit.encoder["coding_rate"])
    assert not torch.equal(default.encoder["coding_rate"], masked.encoder["coding_rate"])


def test_other_image_size(model):
    assert layer_report(model, torch.randn(1, 3, 16, 40)).encoder["sparsity"].shape == (3, 1)


def test_model_stays_as_it_was(model, pixel_values, state):
    model(pixel_values).loss.backward()
    outputs = model.eval()(pixel_values, noise=torch.rand(2, 16, generator=torch.Generator().manual_seed(0))).logits
    model.train()
    before = state(model)
    layer_report(model, pixel_values)
    before.assert_unchanged()
    again = model.eval()(pixel_values, noise=torch.rand(2, 16, generator=torch.Generator().manual_seed(0))).logits
    assert torch.equal(outputs, again)


def test_model_stays_as_it_was_when_the_forward_raises(model, pixel_values, state, monkeypatch):
    before = state(model)

    def fail(*args, **kwargs):
        raise RuntimeError("broken")

    with monkeypatch.context() as context:
        context.setattr(type(model.crate_mae.layers[0].ista), "forward", fail)
        with pytest.raises(RuntimeError, match="broken"):
            layer_report(model, pixel_values)
    before.assert_unchanged()


def test_errors(model, vit_mae, pixel_values):
    with pytest.raises(ValueError, match="`model` must be a CRATE-MAE or CRATE model, got ViTMAE"):
        layer_report(vit_mae, pixel_values)
    with pytest.raises(ValueError, match="`pixel_values` must have shape"):
        layer_report(model, pixel_values[..., :30])
    with pytest.raises(ValueError, match="`bool_masked_pos` must be"):
        layer_report(model, pixel_values, torch.zeros(2, 9, dtype=torch.bool))


def test_a_crate_has_encoder_layers_alone(crate, pixel_values, state):
    before = state(crate)
    report = layer_report(crate, pixel_values, batch_size=1)
    before.assert_unchanged()
    assert report.decoder == {}
    hidden_states = crate.eval().crate(pixel_values, output_hidden_states=True).hidden_states[1:]
    expected = torch.stack([(states == 0).double().mean(dim=(1, 2)) for states in hidden_states])
    torch.testing.assert_close(report.encoder["sparsity"], expected)
    n = crate.crate.layers[0].layernorm_after
    inputs: list[torch.Tensor] = []
    handle = n.register_forward_hook(lambda module, arguments, output: inputs.append(output))
    crate.crate(pixel_values)
    handle.remove()
    torch.testing.assert_close(report.encoder["l1_before"][0], 0.1 * inputs[0].detach().double().abs().sum(2).mean(1))
    assert layer_report(crate, torch.randn(1, 3, 48, 24)).num_images == 1
    with pytest.raises(ValueError, match="`bool_masked_pos` must mask nothing for a CRATE"):
        layer_report(crate, pixel_values, torch.ones(2, 16, dtype=torch.bool))


@torch.no_grad()
@pytest.mark.parametrize("decoupled", [True, False])
def test_report_of_an_alpha_against_the_formulas(decoupled, alpha, pixel_values, state):
    alpha.config.decoupled_dictionary = decoupled
    model = type(alpha)(alpha.config).double().eval()
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    pixel_values = pixel_values.double()
    before = state(model)
    report = layer_report(model, pixel_values, batch_size=1)
    before.assert_unchanged()
    assert report.decoder == {}
    expected = []
    z = model.crate_alpha.embeddings(pixel_values)
    for layer in model.crate_alpha.layers:
        z_half = z + attend(layer.mssa, norm(layer.layernorm_before, z), 4)
        n = norm(layer.layernorm_after, z_half)
        D = layer.ista.dictionary
        back = layer.ista.output_dictionary if decoupled else D
        first = (0.1 * n @ D - 0.01).relu()
        code = (first + 0.1 * (n - first @ D.T) @ D - 0.01).relu()
        z = z_half + code @ back.T
        values = {
            "coding_rate": coding_rate(z),
            "sparsity": (code == 0).double().mean((1, 2)),
            "ista_energy": ((code @ back.T) ** 2).sum((1, 2)) / (z_half**2).sum((1, 2)),
            "residual_before": (n**2).sum(2).mean(1) / 2,
            "residual_between": ((n - first @ D.T) ** 2).sum(2).mean(1) / 2,
            "residual_after": ((n - code @ D.T) ** 2).sum(2).mean(1) / 2,
            "l1_before": torch.zeros(2).double(),
            "l1_between": 0.1 * first.sum(2).mean(1),
            "l1_after": 0.1 * code.sum(2).mean(1),
            "dictionary_defect": ((D @ D.T - torch.eye(32)) ** 2).sum().div(32).sqrt().expand(2),
            "step_bound": 0.1 * torch.linalg.eigvalsh(D @ D.T)[-1].expand(2),
        }
        if decoupled:
            unit, unit_back = D / D.norm(dim=0), back / back.norm(dim=0)
            values["dictionary_agreement"] = (unit * unit_back).sum(0).mean().expand(2)
            values["output_dictionary_defect"] = ((back @ back.T - torch.eye(32)) ** 2).sum().div(32).sqrt().expand(2)
        expected.append(values)
    for layer, values in enumerate(expected):
        for name, value in values.items():
            torch.testing.assert_close(report.encoder[name][layer], value, msg=lambda m, name=name: f"{name}: {m}")
    assert report.descriptions.keys() == report.encoder.keys()
    only_decoupled = {"dictionary_agreement", "output_dictionary_defect"}
    assert ALPHA_DESCRIPTIONS.keys() - report.encoder.keys() == (set() if decoupled else only_decoupled)
    assert (report.encoder["sparsity"] > 0.1).all()


def test_both_steps_of_a_fresh_alpha_descend(alpha, pixel_values):
    """With the published initialisation and more steps than one: the objective falls from step to step."""
    measured = layer_report(alpha, pixel_values).encoder
    start, between, after = (measured[f"residual_{m}"] + measured[f"l1_{m}"] for m in ("before", "between", "after"))
    assert (between < start).all()
    assert (after < between).all()
