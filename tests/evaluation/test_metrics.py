import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from crate_mae_hf.evaluation.metrics import TopKAccuracy, build_compute_metrics, rank_classes


def test_top_k_accuracy_by_hand():
    predictions = [[3, 1, 0], [0, 2, 1], [2, 0, 3], [1, 3, 2]]
    references = [3, 2, 3, 0]  # found first, second, third, never
    for k, (name, expected) in enumerate(
        [("accuracy", 1 / 4), ("top_2_accuracy", 2 / 4), ("top_3_accuracy", 3 / 4)], start=1
    ):
        assert TopKAccuracy(k).compute(predictions=predictions, references=references) == {name: expected}


def test_too_few_predictions_and_no_k():
    with pytest.raises(ValueError, match=r"`predictions` must have 5 classes an image, got \[0, 1\]"):
        TopKAccuracy(5).compute(predictions=[[0, 1]], references=[1])
    with pytest.raises(ValueError, match="`k` must be at least 1, got 0"):
        TopKAccuracy(0)


def test_metrics_of_the_trainer():
    logits = torch.zeros(3, 8)
    logits[0, 7] = 1.0
    logits[1] = torch.arange(8.0)  # 7, 6, 5, 4, 3 are ahead
    logits[2] = torch.arange(8.0)
    labels = np.array([7, 3, 2])
    ranked = rank_classes((logits, torch.zeros(1)), torch.from_numpy(labels))
    assert ranked.shape == (3, 5)
    results = build_compute_metrics(8)(EvalPrediction(predictions=ranked.numpy(), label_ids=labels))
    assert results == {"accuracy": pytest.approx(1 / 3), "top_5_accuracy": pytest.approx(2 / 3)}
    ranked = rank_classes(logits[:, :5], torch.zeros(3))
    results = build_compute_metrics(5)(EvalPrediction(predictions=ranked.numpy(), label_ids=np.array([0, 4, 4])))
    assert set(results) == {"accuracy"}
