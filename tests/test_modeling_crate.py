"""Supervised CRATE: what it does not share with CRATE-MAE; parity is in test_parity.py."""

import pytest
import torch
from torch import nn

from crate_mae_hf import CrateBackbone, CrateConfig, CrateForImageClassification, CrateModel

CLASSES = [CrateModel, CrateForImageClassification, CrateBackbone]


@pytest.fixture
def config() -> CrateConfig:
    return CrateConfig(
        hidden_size=36,  # 4 x 9: no sine-cosine table asks for more
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )


def main_output(outputs) -> torch.Tensor:
    return outputs.feature_maps[-1] if hasattr(outputs, "feature_maps") else outputs[0]


def test_configuration():
    config = CrateConfig.from_size("large", image_size=(64, 32))
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (1024, 16, 24)
    assert (config.ista_lambda, config.pooling, config.grid_size) == (0.1, "cls", (4, 2))
    assert (
        not {"mask_ratio", "decoder_hidden_size", "apply_layernorm", "final_layer_norm_eps"} & config.to_dict().keys()
    )
    assert CrateConfig(hidden_size=6, num_attention_heads=3).hidden_size == 6
    for arguments, message in (
        ({"num_attention_heads": 5}, r"`num_attention_heads` must divide `hidden_size` \(768\), got 5"),
        ({"num_attention_heads": 0}, "`num_attention_heads` must be at least 1, got 0"),
        ({"image_size": 225}, "`image_size` must be divisible by `patch_size`"),
        ({"ista_lambda": -1}, "`ista_lambda` must not be negative"),
        ({"drop_path_rate": 1.0}, "`drop_path_rate` must lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            CrateConfig(**arguments)


def test_fresh_weights():
    model = CrateForImageClassification(CrateConfig(num_hidden_layers=1, num_labels=10))
    embeddings, layer = model.crate.embeddings, model.crate.layers[0]
    for name, weight, bound in [
        ("patch embedding: 1 / sqrt(fan in), as PyTorch's default", embeddings.patch_embeddings.projection.weight, 768),
        ("linear", layer.mssa.subspace_proj.weight, 768),
        ("dictionary: kaiming", layer.ista.dictionary, 768 / 6),
    ]:
        assert weight.abs().max() <= bound**-0.5, name
        assert weight.abs().max() > 0.99 * bound**-0.5, name
    for parameter in (embeddings.cls_token, embeddings.position_embeddings):
        assert 0.9 < parameter.std() < 1.1
    for name, parameter in model.named_parameters():
        if "layernorm" in name or name.startswith("classifier.0"):
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name
        else:
            assert parameter.std() > 0, f"{name} is constant"


def test_embeddings_by_hand(config):
    embeddings = CrateModel(config).embeddings
    images = torch.randn(2, 3, 32, 32)
    patch = images[:, :, 8:16, 16:24].permute(0, 2, 3, 1).flatten(1)  # second row, third column; channels last
    parts = embeddings.patch_embeddings
    expected = parts.layernorm_after(parts.projection(parts.layernorm_before(patch)))
    expected = expected + embeddings.position_embeddings[0, 1 + 4 + 2]
    tokens = embeddings(images)
    torch.testing.assert_close(tokens[:, 1 + 4 + 2], expected)
    torch.testing.assert_close(tokens[1, 0], embeddings.cls_token[0, 0] + embeddings.position_embeddings[0, 0])


def test_there_is_no_norm_behind_the_layers(config, pixel_values):
    model = CrateModel(config).eval()
    outputs = model(pixel_values, output_hidden_states=True)
    assert torch.equal(outputs.last_hidden_state, outputs.hidden_states[-1])
    assert (outputs.last_hidden_state >= 0).all()
    backbone = CrateBackbone(config).eval()
    backbone.load_state_dict(model.state_dict())
    (feature_map,) = backbone(pixel_values).feature_maps
    torch.testing.assert_close(feature_map[:, :, 2, 1], outputs.last_hidden_state[:, 1 + 2 * 4 + 1])


def test_classifier_pools_as_configured(config, pixel_values):
    labels = torch.tensor([1, 4])
    model = CrateForImageClassification(config).eval()
    tokens = model.crate(pixel_values).last_hidden_state
    outputs = model(pixel_values, labels=labels)
    norm, linear = model.classifier
    torch.testing.assert_close(outputs.logits, linear(norm(tokens[:, 0])))
    torch.testing.assert_close(outputs.loss, nn.functional.cross_entropy(outputs.logits, labels))
    model.config.pooling = "mean"
    torch.testing.assert_close(model(pixel_values).logits, linear(norm(tokens[:, 1:].mean(1))))


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("size", [(32, 32), (48, 24)])
def test_other_resolutions_are_those_of_a_resized_model(config, model_class, size, tmp_path):
    model = model_class(config).eval()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = main_output(model(images, interpolate_pos_encoding=True))
        if size != (32, 32) and model_class is not CrateBackbone:
            with pytest.raises(ValueError, match=r"interpolate_pos_encoding=True"):
                model(images)
        model.set_image_size(size)
        torch.testing.assert_close(main_output(model(images)), expected)
        model.save_pretrained(tmp_path)
        loaded = model_class.from_pretrained(tmp_path)
        assert tuple(loaded.config.image_size) == size
        torch.testing.assert_close(main_output(loaded(images)), expected)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_image_size_that_does_not_fit_changes_nothing(config, pixel_values):
    model = CrateModel(config).eval()
    expected = model(pixel_values).last_hidden_state
    with pytest.raises(ValueError, match="`image_size` must be divisible by `patch_size`"):
        model.set_image_size(33)
    assert torch.equal(model(pixel_values).last_hidden_state, expected)
    assert model.config.image_size == 32


def test_interpolated_positions_keep_their_axes(config):
    model = CrateModel(config)
    with torch.no_grad():
        rows = torch.arange(4.0).repeat_interleave(4)
        model.embeddings.position_embeddings[0, 1:] = rows[:, None]
    cls = model.embeddings.position_embeddings[0, 0].clone()
    model.set_image_size((64, 32))  # twice as many rows
    table = model.embeddings.position_embeddings[0]
    assert torch.equal(table[0], cls)
    grid = table[1:].unflatten(0, (8, 4))
    torch.testing.assert_close(grid, grid[:, :1].expand_as(grid))  # the columns of a row stay equal
    assert (grid[1:, 0, 0] > grid[:-1, 0, 0]).all()


def test_another_number_of_labels(config, pixel_values, tmp_path):
    model = CrateForImageClassification(config)
    model.save_pretrained(tmp_path)
    other = CrateForImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert other(pixel_values).logits.shape == (2, 7)
    assert torch.equal(other.crate.layers[0].ista.dictionary, model.crate.layers[0].ista.dictionary)
    encoder, info = CrateModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(encoder.embeddings.position_embeddings, model.crate.embeddings.position_embeddings)
