"""Errors of a split-brain autoencoder beside those of the best constants."""

import pytest
import torch
from torch import nn

from crate_mae_hf import CrateSplitBrainConfig, CrateSplitBrainForPreTraining
from crate_mae_hf.evaluation.colors import color_errors


@pytest.fixture(params=["classification", "regression"])
def model(request) -> CrateSplitBrainForPreTraining:
    return CrateSplitBrainForPreTraining(
        CrateSplitBrainConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4,
            prediction=request.param,
        )
    )  # fmt: skip


def test_errors_are_means_over_all_images(model):
    images = torch.rand(5, 3, 8, 8)
    expected = model.eval()(images)
    model.train()
    errors = color_errors(model, images.split(2))  # batches of 2, 2 and 1
    assert model.training
    assert errors["loss_ab"] == pytest.approx(expected.loss_ab.item(), rel=1e-5)
    assert errors["loss_l"] == pytest.approx(expected.loss_l.item(), rel=1e-5)


def test_constants_are_the_best_there_are():
    grey, red = torch.full((3,), 0.5), torch.tensor([0.9, 0.1, 0.1])
    images = torch.stack([grey, grey, grey, red]).view(4, 3, 1, 1).expand(4, 3, 8, 8)
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    model = CrateSplitBrainForPreTraining(CrateSplitBrainConfig(**config))
    errors = color_errors(model, [images])
    entropy = -(0.75 * torch.tensor(0.75).log() + 0.25 * torch.tensor(0.25).log()).item()
    assert errors["constant_loss_ab"] == pytest.approx(entropy, rel=1e-5)
    assert errors["constant_loss_l"] == pytest.approx(entropy, rel=1e-5)

    model = CrateSplitBrainForPreTraining(CrateSplitBrainConfig(**config, prediction="regression"))
    targets = model.lab_targets(images)
    variances = targets.movedim(1, -1).flatten(0, 2).var(dim=0, correction=0)
    errors = color_errors(model, [images])
    assert errors["constant_loss_l"] == pytest.approx(variances[0].item() / 2, rel=1e-4)
    assert errors["constant_loss_ab"] == pytest.approx(variances[1:].sum().item() / 2, rel=1e-4)


def test_a_model_that_sees_nothing_is_no_better(model):
    images = torch.rand(6, 3, 8, 8) ** 3
    for head in (model.color_head, model.lightness_head):
        nn.init.zeros_(head.weight)
    errors = color_errors(model, [images])
    assert errors["constant_loss_ab"] <= errors["loss_ab"]
    assert errors["constant_loss_l"] <= errors["loss_l"]
