"""The checkpoint that ships is what its card says."""

import json
import re

import datasets
import pytest
import torch
from safetensors.torch import load_file
from snippets import ROOT
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining

import crate_mae_hf
from crate_mae_hf.evaluation.autoencoder import measure_autoencoder

FOLDER = crate_mae_hf.pretrained.path("fashion_mnist")


def test_path_names_what_there_is():
    assert (FOLDER / "model.safetensors").stat().st_size < 6e6
    with pytest.raises(ValueError, match=r"`name` must be one of .*fashion_mnist.* got 'imagenet'"):
        crate_mae_hf.pretrained.path("imagenet")
    with pytest.raises(ValueError, match="got '__pycache__'"):
        crate_mae_hf.pretrained.path("__pycache__")


def test_weights_are_rounded_and_load_in_float32():
    stored = load_file(FOLDER / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    model, info = AutoModelForPreTraining.from_pretrained(FOLDER, output_loading_info=True)
    assert not any(info.values()), info
    assert {weight.dtype for weight in model.state_dict().values()} == {torch.float32}
    assert AutoModel.from_pretrained(FOLDER).dtype == torch.float32


def card_value(metric: str) -> float:
    (value,) = re.findall(rf"^\| {re.escape(metric)} \| (\S+) \|$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    return float(value)


def test_card_says_what_was_measured():
    metrics = json.loads((FOLDER / "metrics.json").read_text())
    assert card_value("masked_error/model") == pytest.approx(metrics["masked_error"]["model"], rel=1e-3)
    probes = metrics["probe_accuracy"]["pre-trained"]["mean"]
    for name, accuracy in probes.items():
        assert card_value(f"probe_accuracy/pre-trained/mean/{name}") == pytest.approx(accuracy, rel=1e-3)


@pytest.mark.slow
def test_measurements_of_the_card_hold():
    images = datasets.load_dataset(str(ROOT / "examples" / "data" / "fashion_mnist_sample"))
    images = images.cast_column("image", datasets.Image(decode=False))
    model, processor = AutoModelForPreTraining.from_pretrained(FOLDER), AutoImageProcessor.from_pretrained(FOLDER)
    measured = measure_autoencoder(model, processor, images["train"], images["test"], [1000, 100], seed=42)
    assert measured["masked_error"]["model"] == pytest.approx(card_value("masked_error/model"), abs=2e-3)
    for name, accuracy in measured["probe_accuracy"]["pre-trained"]["mean"].items():
        assert accuracy == pytest.approx(card_value(f"probe_accuracy/pre-trained/mean/{name}"), abs=0.005), name


def test_snippet_of_the_card_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    (snippet,) = re.findall(r"```python\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(compile(snippet, "card", "exec"), names)
    (features,) = names["features"](str(FOLDER / "images" / "0.png"))
    assert torch.tensor(features).shape == (17, 384)
