"""What a user of Transformers does with a saved folder, after `import crate_mae_hf`."""

import pytest
import torch
import transformers
from load_everything import IMAGE
from PIL import Image
from saving import SAVED, every_saved_class, rows_with, save, small_config
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
from crate_mae_hf import CrateMaeForPreTraining, CrateMaeImageProcessor, CrateMaeImageProcessorPil
from crate_mae_hf.hub import check_folder


@pytest.fixture(autouse=True)
def no_question(monkeypatch):
    """Fail where Transformers asks whether to run a folder's code: the package is imported."""
    monkeypatch.setattr("builtins.input", lambda question="": pytest.fail(question))


@every_saved_class
def test_auto_classes_load_a_folder(row, auto_class, tmp_path):
    save(row, auto_class, tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is row.config_class
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is CrateMaeImageProcessor
    for name in [name for other_row, name in SAVED if other_row is row]:
        assert type(getattr(transformers, name).from_pretrained(tmp_path)) is row.model_classes[name]


@rows_with("AutoBackbone")
def test_auto_backbone(row):
    assert type(AutoBackbone.from_config(small_config(row))) is row.model_classes["AutoBackbone"]


def test_auto_processor_backends(pretrained):
    assert type(AutoImageProcessor.from_pretrained(pretrained, backend="pil")) is CrateMaeImageProcessorPil
    assert AutoImageProcessor.from_pretrained(pretrained).crop_size == {"height": 32, "width": 32}


@rows_with("AutoModel")
def test_feature_extraction_pipeline(row, tmp_path):
    save(row, "AutoModel", tmp_path)
    extract = pipeline("image-feature-extraction", model=str(tmp_path))
    features = torch.tensor(extract(IMAGE))
    assert features.shape == (1, 17, 32)
    inputs = AutoImageProcessor.from_pretrained(tmp_path)(IMAGE, return_tensors="pt")
    expected = AutoModel.from_pretrained(tmp_path)(**inputs)
    torch.testing.assert_close(features, expected.last_hidden_state)
    torch.testing.assert_close(torch.tensor(extract(IMAGE, pool=True)), expected.pooler_output)


@rows_with("AutoModelForImageClassification")
def test_image_classification_pipeline(row, tmp_path):
    save(row, "AutoModelForImageClassification", tmp_path)
    classify = pipeline("image-classification", model=str(tmp_path))
    needs_color = row.config_class.image_processor_settings.get("needs_color", False)
    answers = classify([Image.new("CMYK" if needs_color else "L", (40, 30)), Image.new("RGBA", (20, 60))], top_k=3)
    for answer in answers:
        assert {guess["label"] for guess in answer} == {"cat", "dog", "fish"}
        assert sum(guess["score"] for guess in answer) == pytest.approx(1)


def test_sharded_checkpoint(config, pixel_values, tmp_path):
    model = CrateMaeForPreTraining(config).eval()
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    CrateMaeImageProcessor().save_pretrained(tmp_path)
    check_folder(tmp_path)
    noise = torch.rand(2, 16)
    again = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(again(pixel_values, noise=noise).logits, model(pixel_values, noise=noise).logits)


def test_bfloat16_checkpoint(config, pixel_values, tmp_path):
    model = CrateMaeForPreTraining(config).eval().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    again = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    noise = torch.rand(2, 16)
    outputs = again(pixel_values, noise=noise)
    assert outputs.logits.dtype == torch.bfloat16
    torch.testing.assert_close(outputs.logits, model(pixel_values, noise=noise).logits)
    full = AutoModelForPreTraining.from_pretrained(tmp_path, dtype=torch.float32)
    assert full.dtype == torch.float32
    torch.testing.assert_close(full(pixel_values, noise=noise).loss, outputs.loss, rtol=0.05, atol=0.05)


@every_saved_class
def test_another_image_size(row, auto_class, tmp_path):
    """What `interpolate_pos_encoding` does for a call, for good; by Auto class, by class, and by configuration."""
    model = save(row, auto_class, tmp_path / "saved")
    images = torch.rand(2, 3, 48, 64)
    mask = {"bool_masked_pos": torch.rand(2, 48) > 0.5} if "MAE" in row.name and "For" in auto_class else {}
    if auto_class == "AutoModelForImageClassification":
        mask = {}
    with torch.no_grad():
        expected = model(images, interpolate_pos_encoding=True, **mask)[0]
        config = row.config_class.from_pretrained(tmp_path / "saved", image_size=[48, 64])
        for loaded in (
            getattr(transformers, auto_class).from_pretrained(tmp_path / "saved", image_size=[48, 64]),
            type(model).from_pretrained(tmp_path / "saved", image_size=(48, 64)),
            type(model).from_pretrained(tmp_path / "saved", config=config),
        ):
            torch.testing.assert_close(loaded(images, **mask)[0], expected)
            assert tuple(loaded.config.image_size) == (48, 64)
        loaded.save_pretrained(tmp_path / "again")
        again = type(model).from_pretrained(tmp_path / "again")
        torch.testing.assert_close(again(images, **mask)[0], expected)
    assert tuple(config.image_size) == (48, 64)  # is the caller's
    with pytest.raises(ValueError, match="`image_size` must be divisible by `patch_size`"):
        type(model).from_pretrained(tmp_path / "saved", image_size=33)


def test_another_number_of_labels(classifier):
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForImageClassification.from_pretrained(classifier, num_labels=7)
    model = AutoModelForImageClassification.from_pretrained(classifier, num_labels=7, ignore_mismatched_sizes=True)
    assert model(torch.randn(1, 3, 32, 32)).logits.shape == (1, 7)
    assert model.classifier.weight.std() > 0
    trained = AutoModelForImageClassification.from_pretrained(classifier)
    assert torch.equal(model.crate_mae.layers[0].ista.dictionary, trained.crate_mae.layers[0].ista.dictionary)


@pytest.mark.parametrize("name", ["CrateMaeModel", "CrateMaeBackbone"])
def test_an_encoder_loads_quietly_from_a_pre_training_checkpoint(name, pretrained, caplog):
    transformers.utils.logging.enable_propagation()
    try:
        encoder, info = getattr(crate_mae_hf, name).from_pretrained(pretrained, output_loading_info=True)
    finally:
        transformers.utils.logging.disable_propagation()
    assert not any(info.values())
    assert caplog.text == ""
    trained = CrateMaeForPreTraining.from_pretrained(pretrained)
    assert torch.equal(encoder.layernorm.weight, trained.crate_mae.layernorm.weight)
    assert torch.equal(encoder.layers[-1].ista.dictionary, trained.crate_mae.layers[-1].ista.dictionary)
