"""Semantic segmentation measured: intersection over union and pixel accuracy, from counts of pixels."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import EvalPrediction

from ..data.segmentation import IGNORED


def predict_classes(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return the likeliest class of each pixel, `(batch_size, *size)`; logits are interpolated bilinearly."""
    return torch.nn.functional.interpolate(logits, size=tuple(size), mode="bilinear").argmax(dim=1)


def count_pixels(logits: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """Return how many pixels of each class are taken for each class: what Trainer keeps of the logits.

    Args:
        logits: `(batch_size, num_classes, rows, columns)`, alone or first.
        labels: True classes, `(batch_size, height, width)`; 255 where there is none.

    Returns:
        `(batch_size, num_classes, num_classes)`, the true class first.
    """
    if isinstance(logits, tuple):  # hidden states and the like come behind
        logits = logits[0]
    num_classes = logits.shape[1]
    pairs = labels * num_classes + predict_classes(logits, labels.shape[1:])
    counts = [
        pair[label != IGNORED].bincount(minlength=num_classes**2) for pair, label in zip(pairs, labels, strict=True)
    ]
    return torch.stack(counts).unflatten(1, (num_classes, num_classes))


def intersection_over_union(counts: np.ndarray) -> np.ndarray:
    """Return |truth and prediction| / |truth or prediction| of each class; NaN where neither has a pixel.

    Args:
        counts: Pixels by true and predicted class, `(num_classes, num_classes)`.
    """
    intersection = counts.diagonal()
    union = counts.sum(axis=0) + counts.sum(axis=1) - intersection
    return np.divide(intersection, union, out=np.full(len(counts), np.nan), where=union > 0)


def build_segmentation_metrics(class_names: Sequence[str]) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return Trainer's `compute_metrics` for `count_pixels`.

    Its metrics are `mean_iou`, over the classes that occur; `pixel_accuracy`; `iou_NAME` of each class that occurs; and
    `constant_mean_iou` and `constant_pixel_accuracy`, of the commonest class everywhere.
    """

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        counts = np.asarray(prediction.predictions).sum(axis=0)
        if not counts.any():
            raise ValueError(f"No pixel of the masks to evaluate with has a class: all are {IGNORED}.")
        constant = np.zeros_like(counts)
        constant[:, counts.sum(axis=1).argmax()] = counts.sum(axis=1)
        results: dict[str, float] = {}
        for prefix, table in (("", counts), ("constant_", constant)):
            results[f"{prefix}mean_iou"] = float(np.nanmean(intersection_over_union(table)))
            results[f"{prefix}pixel_accuracy"] = float(table.trace() / table.sum())
        found = zip(class_names, intersection_over_union(counts).tolist(), strict=True)
        return results | {f"iou_{name}": value for name, value in found if value == value}  # not NaN

    return compute_metrics
