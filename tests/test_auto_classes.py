"""What a user of Transformers does with a saved folder, after `import crate_mae_hf`."""

import pytest
import torch
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    pipeline,
)

import crate_mae_hf
from crate_mae_hf import CrateMaeForImageClassification, CrateMaeForPreTraining, CrateMaeImageProcessor


@pytest.fixture(autouse=True)
def no_question(monkeypatch):
    """Fail where Transformers asks whether to run a folder's code: the package is imported."""
    monkeypatch.setattr("builtins.input", lambda question="": pytest.fail(question))


@pytest.fixture
def processor() -> CrateMaeImageProcessor:
    return CrateMaeImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


@pytest.fixture
def folder(config, processor, tmp_path) -> str:
    CrateMaeForPreTraining(config).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("auto_class", "name"),
    [
        (AutoConfig, "CrateMaeConfig"),
        (AutoModel, "CrateMaeModel"),
        (AutoModelForPreTraining, "CrateMaeForPreTraining"),
        (AutoModelForImageClassification, "CrateMaeForImageClassification"),
        (AutoImageProcessor, "CrateMaeImageProcessor"),
    ],
)
def test_auto_classes_load_a_folder(folder, auto_class, name):
    assert type(auto_class.from_pretrained(folder)) is getattr(crate_mae_hf, name)


def test_auto_backbone(config):
    assert type(AutoBackbone.from_config(config)) is crate_mae_hf.CrateMaeBackbone


def test_auto_processor_backends(folder):
    assert type(AutoImageProcessor.from_pretrained(folder, backend="pil")) is crate_mae_hf.CrateMaeImageProcessorPil
    assert AutoImageProcessor.from_pretrained(folder).crop_size == {"height": 32, "width": 32}


def test_feature_extraction_pipeline(folder):
    extract = pipeline("image-feature-extraction", model=folder)
    image = Image.effect_mandelbrot((50, 40), (-2, -1, 1, 1), 20)
    features = torch.tensor(extract(image))
    assert features.shape == (1, 17, 32)
    inputs = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
    expected = AutoModel.from_pretrained(folder)(**inputs)
    torch.testing.assert_close(features, expected.last_hidden_state)
    torch.testing.assert_close(torch.tensor(extract(image, pool=True)), expected.pooler_output)


def test_image_classification_pipeline(config, processor, tmp_path):
    config.id2label = {0: "cat", 1: "dog", 2: "fish"}
    config.label2id = {name: number for number, name in config.id2label.items()}
    CrateMaeForImageClassification(config).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    classify = pipeline("image-classification", model=str(tmp_path))
    answers = classify([Image.new("L", (40, 30)), Image.new("RGBA", (20, 60))], top_k=3)
    for answer in answers:
        assert {guess["label"] for guess in answer} == {"cat", "dog", "fish"}
        assert sum(guess["score"] for guess in answer) == pytest.approx(1)
