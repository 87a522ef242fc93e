"""CRATE-MAE, CRATE and ViTMAE by one face."""

import re

import pytest
import torch
from official_vic_mae import SMALL_VIT_MAE, read_reference, to_vit_mae
from transformers import ResNetConfig, ResNetModel, ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

from crate_mae_hf import CrateConfig, CrateMaeForPreTraining, CrateModel, CrateSplitBrainConfig, CrateSplitBrainModel
from crate_mae_hf.adapters import (
    fill_vit_mae,
    has_decoder,
    inference,
    is_white_box,
    knows_positions,
    masked_pass,
    query_key_projections,
)
from crate_mae_hf.crate_patches import sincos_position_table


@pytest.mark.parametrize("view", [1, 2])
def test_masked_pass_of_a_vit_mae_is_the_official_one(view):
    official, tensors = read_reference()
    model = to_vit_mae(official, tensors)
    result = masked_pass(model, tensors[f"pixel_values_{view}"].float(), tensors[f"noise_{view}"])
    assert torch.equal(result.mask, tensors[f"expected.mask_{view}"].float())
    expected = tensors[f"expected.pooled_{view}"].float()
    torch.testing.assert_close(result.pooled, expected, atol=1e-5, rtol=1e-5)
    loss = (result.errors * result.mask).sum() / result.mask.sum()
    torch.testing.assert_close(loss, tensors[f"expected.loss_recon_{view}"].float().squeeze(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_errors_of_a_masked_pass_are_the_loss_of_pre_training(config, pixel_values, norm_pix_loss):
    config.norm_pix_loss = norm_pix_loss
    vit_mae = ViTMAEForPreTraining(ViTMAEConfig(**SMALL_VIT_MAE, norm_pix_loss=norm_pix_loss))
    noise = torch.rand(2, 16)
    for model in (CrateMaeForPreTraining(config), vit_mae):
        result = masked_pass(model, pixel_values, noise)
        outputs = model(pixel_values, noise=noise)
        assert torch.equal(result.mask, outputs.mask)
        assert torch.equal((result.errors * result.mask).sum() / result.mask.sum(), outputs.loss)


def test_a_masked_pass_pools_over_visible_patches(config, pixel_values):
    model = CrateMaeForPreTraining(config)
    noise = torch.rand(2, 16)
    result = masked_pass(model, pixel_values, noise)
    mask = model.sample_mask(noise)
    tokens = model.crate_mae(pixel_values, mask).last_hidden_state[:, 1:]
    expected = torch.stack([image[~masked].mean(dim=0) for image, masked in zip(tokens, mask, strict=True)])
    torch.testing.assert_close(result.pooled, expected)
    result.pooled.sum().backward()
    assert model.crate_mae.layers[0].ista.dictionary.grad.abs().sum() > 0


def test_inference_leaves_each_module_its_mode(config):
    model = CrateMaeForPreTraining(config).train()
    model.decoder.eval()
    with inference(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert model.crate_mae.layers[0].training
    assert not model.decoder.layers[0].training
    assert torch.is_grad_enabled()


def test_projections_and_what_is_white(config):
    crate_mae, vit_mae = CrateMaeForPreTraining(config), ViTMAEForPreTraining(ViTMAEConfig(**SMALL_VIT_MAE))
    crate = CrateModel(CrateConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4))
    resnet = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic"))
    assert [is_white_box(model) for model in (crate_mae, crate, vit_mae, resnet)] == [True, True, False, False]
    split_brain = CrateSplitBrainModel(
        CrateSplitBrainConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    assert not is_white_box(split_brain)
    with pytest.raises(ValueError, match="must be a CRATE-MAE, a CRATE or a ViTMAE, got CrateSplitBrainModel"):
        query_key_projections(split_brain, 0)
    query, key = query_key_projections(crate_mae, -1)
    assert query is key is crate_mae.crate_mae.layers[2].mssa.subspace_proj
    attention = vit_mae.vit.layers[0].attention
    assert query_key_projections(vit_mae, 0) == (attention.q_proj, attention.k_proj)
    with pytest.raises(ValueError, match=r"`layer` must lie in \[-3, 2\], got 3"):
        query_key_projections(crate_mae, 3)


def check_uniform(weight: torch.Tensor, bound: float) -> None:
    """Drawn from U(-bound, bound): within it, with entries close to it, and of its variance."""
    assert 0.97 * bound < weight.abs().max() <= bound
    assert weight.var().item() == pytest.approx(bound**2 / 3, rel=0.1)
    assert abs(weight.mean()) < 0.05 * bound


@pytest.mark.parametrize("model_class", [ViTMAEForPreTraining, ViTMAEModel])
def test_a_vit_mae_from_a_configuration_starts_as_the_authors_start_it(model_class):
    d, e = 64, 48
    config = ViTMAEConfig(
        hidden_size=d, num_hidden_layers=2, num_attention_heads=4, intermediate_size=4 * d, image_size=24, patch_size=8,
        decoder_hidden_size=e, decoder_num_hidden_layers=1, decoder_num_attention_heads=4,
        decoder_intermediate_size=4 * e, layer_norm_eps=1e-6,
    )  # fmt: skip
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():  # nothing may be left of what was there
            parameter.fill_(7.0)
    fill_vit_mae(model)
    assert knows_positions(model)
    for name, value in model.state_dict().items():
        width = e if name.startswith("decoder.") else d
        part = re.sub(r"^(vit|decoder)\.|layers\.\d+\.|decoder_layers\.\d+\.", "", name)
        match part.split(".")[-2:]:
            case ["q_proj" | "k_proj" | "v_proj", "weight"]:  # each a third of Linear(d, 3 d)
                check_uniform(value, (6 / (4 * width)) ** 0.5)
            case ["o_proj", "weight"]:
                check_uniform(value, (6 / (2 * width)) ** 0.5)
            case ["fc1" | "fc2", "weight"]:
                check_uniform(value, (6 / (5 * width)) ** 0.5)
            case ["projection", "weight"]:
                check_uniform(value.reshape(d, 3 * 8 * 8), (6 / (d + 3 * 8 * 8)) ** 0.5)
            case ["projection", "bias"]:
                assert 0 < value.abs().max() <= (3 * 8 * 8) ** -0.5
                assert len(value.unique()) > d / 2
            case ["decoder_embed", "weight"]:
                check_uniform(value, (6 / (d + e)) ** 0.5)
            case ["decoder_pred", "weight"]:
                check_uniform(value, (6 / (e + 3 * 8 * 8)) ** 0.5)
            case ["layernorm" | "layernorm_before" | "layernorm_after" | "decoder_norm", "weight"]:
                assert (value == 1).all()
            case [*_, "cls_token" | "mask_token"]:
                assert value.std().item() == pytest.approx(0.02, rel=0.4)
                assert abs(value.mean()) < 0.01
            case [*_, "position_embeddings" | "decoder_pos_embed"]:
                assert torch.equal(value, sincos_position_table(width, (3, 3)))
            case [_, "bias"]:
                assert not value.any()
            case _:
                pytest.fail(f"{name} has no rule")
    assert has_decoder(model) == (model_class is ViTMAEForPreTraining)


def test_the_start_of_a_vit_mae_repeats_by_seed_and_others_keep_theirs(config):
    model = ViTMAEForPreTraining(ViTMAEConfig(**SMALL_VIT_MAE))
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        fill_vit_mae(model)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    name = "vit.layers.0.mlp.fc1.weight"
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert not torch.equal(states[0][name], states[2][name])
    ours = CrateMaeForPreTraining(config)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    fill_vit_mae(ours)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
