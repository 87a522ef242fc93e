"""Accuracy as metrics of `evaluate` that need no download."""

from collections.abc import Callable
from typing import Any

import datasets
import evaluate
import torch
from transformers import EvalPrediction

# The second metric of ImageNet; with this many classes or fewer it would be no feat.
TOP = 5


class TopKAccuracy(evaluate.Metric):
    """Share of the images whose class is among the k that the model finds likeliest.

    `compute(predictions=..., references=...)` takes each image's classes in falling order of likelihood, at least k of
    them, and its class; it returns `accuracy` for k = 1, otherwise `top_k_accuracy` with k in its name.

    Args:
        k: Number of predictions that count.
        **kwargs: As `evaluate.Metric` has them.

    Raises:
        ValueError: If k is not positive; from `compute`, if there are fewer predictions per image.
    """

    def __init__(self, k: int = 1, **kwargs: Any):
        if k < 1:
            raise ValueError(f"`k` must be at least 1, got {k}.")
        self.k = k
        # In memory: no cache files for processes to quarrel about.
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of the images whose class is among the k likeliest predictions.",
            citation="",
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("int64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[list[int]], references: list[int]) -> dict[str, float]:
        if shortest := next((ranked for ranked in predictions if len(ranked) < self.k), None):
            raise ValueError(f"`predictions` must have {self.k} classes an image, got {shortest}.")
        hits = [label in ranked[: self.k] for ranked, label in zip(predictions, references, strict=True)]
        return {"accuracy" if self.k == 1 else f"top_{self.k}_accuracy": sum(hits) / len(hits)}


def rank_classes(logits: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """Return the likeliest classes, best first, `(batch_size, 5)` or fewer: what Trainer keeps of the logits."""
    if isinstance(logits, tuple):  # hidden states and the like come behind
        logits = logits[0]
    return logits.topk(min(TOP, logits.shape[-1])).indices


def build_compute_metrics(num_labels: int) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return Trainer's `compute_metrics` for `rank_classes`: accuracy, and top-5 accuracy with more than 5 classes."""
    metrics = [TopKAccuracy(k) for k in ((1, TOP) if num_labels > TOP else (1,))]

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        results: dict[str, float] = {}
        for metric in metrics:
            results |= metric.compute(predictions=prediction.predictions, references=prediction.label_ids)
        return results

    return compute_metrics
