"""What an autoencoder is worth, measured on a few images of two classes."""

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from crate_mae_hf import CrateMaeForPreTraining, CrateMaeImageProcessor
from crate_mae_hf.data.augmentation import build_eval_transform
from crate_mae_hf.data.masks import MaskingDataset
from crate_mae_hf.evaluation.autoencoder import measure_autoencoder, reconstruct_some
from crate_mae_hf.evaluation.reconstruction import masked_error


@pytest.fixture
def images() -> datasets.Dataset:
    """Forty images, dark ones of class 0 and bright ones of class 1."""
    pixels = np.random.default_rng(0).integers(0, 100, (40, 32, 32, 3), dtype=np.uint8)
    labels = [index % 2 for index in range(40)]
    rows = {"image": [PIL.Image.fromarray(p + 120 * label) for p, label in zip(pixels, labels, strict=True)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "bright"])})
    dataset = datasets.Dataset.from_dict({**rows, "label": labels}, features=features)
    return dataset.cast_column("image", datasets.Image(decode=False))


def test_errors_and_probes_of_an_autoencoder(config, images):
    model, processor = CrateMaeForPreTraining(config).eval(), CrateMaeImageProcessor.from_config(config)
    measured = measure_autoencoder(model, processor, images, images, [20], seed=3)
    held_out = MaskingDataset(images, build_eval_transform(processor), config, 3)
    errors = measured["masked_error"]
    assert errors["model"] == pytest.approx(masked_error(model, held_out), rel=1e-5)
    better = min(errors["mean_patch"], errors["inpainting"])
    assert measured["masked_error_below_better_baseline"] == pytest.approx(1 - errors["model"] / better)
    accuracies = measured["probe_accuracy"]
    assert list(accuracies) == ["pre-trained", "random weights", "raw pixels"]
    assert list(accuracies["pre-trained"]) == ["cls", "mean", "cls_mean"]
    assert set(accuracies["pre-trained"]["mean"]) == {"linear", "linear_20", "knn"}
    assert accuracies["raw pixels"]["pixels"] == {"linear": 1.0, "linear_20": 1.0, "knn": 1.0}
    torch.rand(7)  # the seed alone decides
    assert measure_autoencoder(model, processor, images, images, [20], seed=3) == measured


def test_some_images_are_reconstructed_from_masks_of_the_seed(config, images):
    model, processor = CrateMaeForPreTraining(config).eval(), CrateMaeImageProcessor.from_config(config)
    first, again, other = (reconstruct_some(model, processor, images, 4, seed) for seed in (1, 1, 2))
    assert first.original.shape == (4, 3, 32, 32)
    assert torch.equal(first.output, again.output)
    assert not torch.equal(first.bool_masked_pos, other.bool_masked_pos)
    assert first.mask_ratio == config.mask_ratio
