import numpy as np
import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from crate_mae_hf import CrateMaeForPreTraining
from crate_mae_hf.evaluation.reconstruction import inpaint, masked_error, reconstruction_errors


def test_inpainting_a_plane_is_exact():
    rows, columns = np.mgrid[0:12, 0:16].astype(np.float32)
    image = np.stack([2 * rows - columns, columns, np.ones_like(rows)])
    visible = np.random.default_rng(0).random((12, 16)) < 0.4
    visible[[0, 0, -1, -1], [0, -1, 0, -1]] = True  # the hull is the whole image
    np.testing.assert_allclose(inpaint(np.where(visible, image, np.nan), visible), image, atol=1e-4)


def test_inpainting_outside_the_hull_takes_the_nearest():
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    visible = np.zeros((4, 4), dtype=bool)
    visible[1:3, 1:3] = True
    filled = inpaint(image, visible)
    assert filled[0, 0, 0] == image[0, 1, 1]
    assert filled[0, 3, 3] == image[0, 2, 2]


def test_inpainting_needs_no_triangle():
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    row = np.zeros((4, 4), dtype=bool)
    row[2] = True
    np.testing.assert_array_equal(inpaint(image, row), np.broadcast_to(image[:, 2:3], (1, 4, 4)))
    np.testing.assert_array_equal(inpaint(image, np.zeros((4, 4), dtype=bool)), np.zeros((1, 4, 4)))


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_errors(config, norm_pix_loss):
    config.norm_pix_loss = norm_pix_loss
    model = CrateMaeForPreTraining(config).train()
    generator = torch.Generator().manual_seed(0)
    items = [
        {"pixel_values": torch.randn(3, 32, 32, generator=generator), "noise": torch.rand(16, generator=generator)}
        for _ in range(6)
    ]
    errors = reconstruction_errors(model, items[:4], items[4:], batch_size=1)
    assert model.training

    pixel_values, noise = (torch.stack([item[key] for item in items]) for key in ("pixel_values", "noise"))
    outputs = model.eval()(pixel_values[4:], noise=noise[4:])
    assert errors["model"] == pytest.approx(outputs.loss.item(), rel=1e-5)
    mean_patch = model.patch_targets(pixel_values[:4]).mean((0, 1))
    squared = (model.patch_targets(pixel_values[4:]) - mean_patch).square().mean(-1)
    assert errors["mean_patch"] == pytest.approx(squared[outputs.mask.bool()].mean().item(), rel=1e-5)
    assert errors["inpainting"] > errors["mean_patch"]  # noise cannot be interpolated


def test_inpainting_beats_the_mean_on_smooth_images(config):
    y, x = torch.meshgrid(torch.linspace(0, 3, 32), torch.linspace(0, 3, 32), indexing="ij")
    items = [
        {"pixel_values": torch.stack([torch.sin(x + k), torch.cos(y + k), torch.sin(x + y)]), "noise": torch.rand(16)}
        for k in range(4)
    ]
    errors = reconstruction_errors(CrateMaeForPreTraining(config), items, items)
    assert errors["inpainting"] < 0.5 * errors["mean_patch"]


def test_masked_error_of_either_autoencoder_is_its_loss(config):
    config.mask_ratio = 0.5
    vit_mae = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, image_size=32,
            patch_size=8, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
            decoder_intermediate_size=32, norm_pix_loss=True, mask_ratio=0.75,
        )
    )  # fmt: skip
    items = [{"pixel_values": torch.randn(3, 32, 32), "noise": torch.rand(16)} for _ in range(5)]
    (batch,) = torch.utils.data.DataLoader(items, batch_size=5)
    for model in (CrateMaeForPreTraining(config), vit_mae):
        model.train()
        error = masked_error(model, items, batch_size=2)
        assert model.training
        assert error == pytest.approx(model.eval()(**batch).loss.item(), rel=1e-5)
