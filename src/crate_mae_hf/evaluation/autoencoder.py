"""What a pre-trained autoencoder is worth: its reconstructions beside baselines, its features beside random ones."""

from typing import Any

import datasets
import torch

from ..analysis.reconstruction import Reconstruction, reconstruct
from ..data.augmentation import build_eval_transform
from ..data.masks import MaskingDataset
from ..image_processing_crate_mae import CrateMaeImageProcessor
from ..modeling_crate_mae import CrateMaeForPreTraining
from .comparison import Encoder, ProbeImages, ProbeSettings, compare
from .encoders import random_encoder
from .reconstruction import reconstruction_errors

# Columns of a comparison that are accuracies: "linear" and those with few labels, "linear_N".
ACCURACIES = ("linear", "knn")


def measure_autoencoder(
    model: CrateMaeForPreTraining,
    processor: CrateMaeImageProcessor,
    train: datasets.Dataset,
    test: datasets.Dataset,
    few_labels: list[int],
    seed: int,
) -> dict[str, Any]:
    """Measure a model on labelled images, beside one of the same shape with fresh weights and beside the pixels.

    Args:
        model: Autoencoder to measure.
        processor: Image processor of the model.
        train: Images to learn from, undecoded in the column "image", with the numbers of their classes in "label".
        test: Images to measure on, in the same columns.
        few_labels: Numbers of training images for further linear probes, see [`ProbeSettings`].
        seed: Seed that decides masks, fresh weights and few labels.

    Returns:
        `"masked_error"`, see `reconstruction_errors`; `"masked_error_below_better_baseline"`, as a share of that
        baseline's; and `"probe_accuracy"` as {features of: {features: {probe: accuracy}}}.
    """
    transform = build_eval_transform(processor)
    masked_train, masked_test = (MaskingDataset(split, transform, model.config, seed) for split in (train, test))
    errors = reconstruction_errors(model, masked_train, masked_test)
    encoders = [
        Encoder("pre-trained", "trained", model.crate_mae, processor),
        Encoder("random weights", "random", random_encoder(model.config, seed), processor),
    ]
    settings = ProbeSettings(
        raw_pixels=True, few_labels=few_labels, seed=seed, batch_size=250, device=str(model.device)
    )
    accuracies: dict[str, dict[str, dict[str, float]]] = {}
    for row in compare(encoders, ProbeImages(train, test), settings):
        found = {name: value for name, value in row.items() if name.startswith(ACCURACIES)}
        accuracies.setdefault(row["model"], {})[row["features"]] = found
    better = min(errors["mean_patch"], errors["inpainting"])
    return {
        "masked_error": errors,
        "masked_error_below_better_baseline": 1 - errors["model"] / better,
        "probe_accuracy": accuracies,
    }


def reconstruct_some(
    model: CrateMaeForPreTraining, processor: CrateMaeImageProcessor, images: datasets.Dataset, count: int, seed: int
) -> Reconstruction:
    """Reconstruct the first images of a dataset from masks that the seed decides, for a picture.

    Brightness and contrast of patches, which the targets lack with `norm_pix_loss`, are taken from visible ones.
    """
    masked = MaskingDataset(images, build_eval_transform(processor), model.config, seed)
    items = [masked[index] for index in range(count)]
    pixel_values, noise = (torch.stack([item[name] for item in items]) for name in ("pixel_values", "noise"))
    return reconstruct(
        model,
        pixel_values,
        bool_masked_pos=model.sample_mask(noise),
        statistics="visible" if model.config.norm_pix_loss else "none",
    )
