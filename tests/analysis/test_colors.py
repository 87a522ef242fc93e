"""Colours back from Lab, and the pictures of what the towers predict."""

import pytest
import torch

from crate_mae_hf import CrateSplitBrainConfig, CrateSplitBrainForPreTraining
from crate_mae_hf.analysis import color_pictures, lab_to_rgb
from crate_mae_hf.analysis.figures import color_grid
from crate_mae_hf.modeling_crate_split_brain import rgb_to_lab


@pytest.fixture
def model() -> CrateSplitBrainForPreTraining:
    return CrateSplitBrainForPreTraining(
        CrateSplitBrainConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4)
    )


def test_lab_and_back():
    images = torch.rand(3, 3, 8, 8)
    images[0, :, 0, :3] = torch.tensor([0.0, 0.001, 1.0])
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(images)), images, atol=2e-4, rtol=0)
    impossible = torch.tensor([50.0, 200.0, -200.0]).view(3, 1, 1)
    assert ((lab_to_rgb(impossible) >= 0) & (lab_to_rgb(impossible) <= 1)).all()


def test_pictures_of_uniform_images_are_true(model):
    colours = torch.tensor([[0.8, 0.3, 0.2], [0.2, 0.5, 0.7]])
    images = colours[:, :, None, None].expand(2, 3, 16, 16)
    assert model.training
    photograph, lightness, _, true_color, color, _, true_lightness = color_pictures(model, images).values()
    assert model.training
    torch.testing.assert_close(photograph, images, atol=1e-3, rtol=0)
    torch.testing.assert_close(true_color, images, atol=1e-3, rtol=0)
    torch.testing.assert_close(true_lightness, lightness, atol=1e-3, rtol=0)
    assert (lightness.std(dim=1) < 2e-3).all()  # grey
    torch.testing.assert_close(rgb_to_lab(color)[:, 1:], rgb_to_lab(images)[:, 1:], atol=0.2, rtol=0)
    assert ((rgb_to_lab(color)[:, 0] - 65).abs() < 0.1).all()


def test_predictions_are_shown(model):
    with torch.no_grad():
        for head, centre in ((model.color_head, 7), (model.lightness_head, 30)):
            head.weight.zero_()
            head.bias.zero_()
            head.bias[centre] = 1e3
    images = torch.rand(1, 3, 16, 16) * 0.2 + 0.4
    pictures = list(color_pictures(model, images).values())
    predicted = rgb_to_lab(pictures[5])
    torch.testing.assert_close(predicted[:, 0], torch.full((1, 16, 16), 61.0), atol=0.1, rtol=0)
    assert predicted[:, 1:].abs().max() < 0.1
    assert (rgb_to_lab(pictures[2])[:, 1] < -20).all()  # green: the seventh bin


def test_grid_has_a_row_per_image_and_a_column_per_picture(model, tmp_path):
    pictures = color_pictures(model, torch.rand(3, 3, 16, 16))
    figure = color_grid(pictures)
    assert len(figure.axes) == 3 * 7
    assert [axes.get_title() for axes in figure.axes[:7]] == list(pictures)
    figure.savefig(tmp_path / "grid.png")
