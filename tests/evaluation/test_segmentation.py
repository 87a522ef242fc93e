"""Metrics of semantic segmentation, beside scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score
from transformers import EvalPrediction

from crate_mae_hf.evaluation.segmentation import build_segmentation_metrics, count_pixels

NAMES = ["background", "cat", "dog", "never there"]


@pytest.fixture
def labels() -> torch.Tensor:
    labels = torch.randint(3, (4, 6, 8))
    labels[0, :2] = 255
    return labels


def test_metrics_are_those_of_scikit_learn(labels):
    logits = torch.randn(4, 4, 6, 8)
    logits[:, 3] = -9  # predicted nowhere
    metrics = build_segmentation_metrics(NAMES)(EvalPrediction(count_pixels(logits, labels).numpy(), labels.numpy()))
    counted = labels != 255
    true, predicted = labels[counted], logits.argmax(dim=1)[counted]
    each = jaccard_score(true, predicted, labels=[0, 1, 2], average=None)
    assert metrics["mean_iou"] == pytest.approx(each.mean())
    assert [metrics[f"iou_{name}"] for name in NAMES[:3]] == pytest.approx(each.tolist())
    assert "iou_never there" not in metrics
    assert metrics["pixel_accuracy"] == pytest.approx(accuracy_score(true, predicted))
    commonest = torch.full_like(true, true.bincount().argmax())
    constant = jaccard_score(true, commonest, labels=[0, 1, 2], average="macro")
    assert metrics["constant_mean_iou"] == pytest.approx(constant)
    assert metrics["constant_pixel_accuracy"] == pytest.approx(accuracy_score(true, commonest))


def test_logits_of_another_size_are_interpolated(labels):
    logits = torch.nn.functional.one_hot(labels[:, ::2, ::2].clamp(max=2), 4).permute(0, 3, 1, 2).float()
    blocks = labels[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2)
    counts = count_pixels((logits, torch.zeros(1)), blocks)
    assert counts.shape == (4, 4, 4)
    assert counts.sum().item() == (blocks != 255).sum().item()
    assert counts[1:].sum(dim=0).trace() > 0.6 * counts[1:].sum()  # right but where blocks meet


def test_nothing_to_evaluate_with():
    with pytest.raises(ValueError, match="No pixel of the masks to evaluate with has a class: all are 255"):
        build_segmentation_metrics(NAMES)(EvalPrediction(np.zeros((2, 4, 4), int), np.zeros(2)))
