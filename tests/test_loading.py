"""Whatever is wrong with a folder gets one line that names it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, ViTConfig, ViTModel

from crate_mae_hf import CrateMaeForImageClassification, CrateMaeForPreTraining, CrateMaeImageProcessor
from crate_mae_hf.loading import load, load_model


@pytest.fixture
def folder(config, tmp_path):
    CrateMaeForPreTraining(config).save_pretrained(tmp_path)
    CrateMaeImageProcessor.from_config(config).save_pretrained(tmp_path)
    return tmp_path


def spoil_weights(folder, content: bytes | None = None, length: int | None = None) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length] if content is None else content)


def spoil_json(folder, name: str, text: str) -> None:
    (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: spoil_weights(folder, length=1000), r"model.safetensors is damaged or cut short \(1000 bytes"),
        (lambda folder: spoil_weights(folder, b""), "model.safetensors is empty"),
        (lambda folder: spoil_weights(folder, b"version https://git-lfs.github.com/spec/v1"), "pointer of Git LFS"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    ],
)
def test_damaged_weights(folder, spoil, message):
    spoil(folder)
    with pytest.raises(ValueError, match=rf"^`model_name_or_path`: cannot load {folder}: .*{message}") as error:
        load_model(CrateMaeForPreTraining, folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "crate_mae",', "config.json"),
        ("{}", "model_type"),
        ('{"model_type": "crete"}', "crete"),
        ('{"model_type": "crate_mae", "hidden_size": "x"}', "hidden_size.*expected int, got str"),
        ("[]", "model_type"),
    ],
)
def test_damaged_configurations(folder, text, message):
    spoil_json(folder, "config.json", text)
    with pytest.raises(ValueError, match=rf"^`config_name`: cannot load {folder}: .*{message}") as error:
        load(AutoConfig, folder, "config_name")
    assert "\n" not in str(error.value)


def test_missing_folders_and_image_processors(folder, tmp_path):
    with pytest.raises(ValueError, match="cannot load no/such/folder: there is no such folder"):
        load(AutoConfig, "no/such/folder")
    with pytest.raises(ValueError, match=r"`folder`: cannot load .*model.safetensors: it is a file, not a folder"):
        load_model(CrateMaeForPreTraining, folder / "model.safetensors", "folder")
    spoil_json(folder, "preprocessor_config.json", "{")
    with pytest.raises(ValueError, match=r"cannot load .*preprocessor_config\.json"):
        load(AutoImageProcessor, folder)


def remove_weights(folder, *beginnings: str) -> None:
    weights = load_file(folder / "model.safetensors")
    weights = {name: value for name, value in weights.items() if not name.startswith(beginnings)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_a_checkpoint_that_lacks_layers_is_refused(folder):
    remove_weights(folder, "crate_mae.layers.1.")
    for auto_class in (CrateMaeForPreTraining, AutoModelForImageClassification):
        with pytest.raises(ValueError, match=r"lacks 8 weights of CrateMae\w+, among them crate_mae\.layers\.1\."):
            load_model(auto_class, folder)


def test_a_head_may_be_missing_as_a_whole_only(folder, config):
    assert isinstance(load_model(AutoModelForImageClassification, folder), CrateMaeForImageClassification)
    remove_weights(folder, "decoder.layers.0.")
    with pytest.raises(ValueError, match=r"among them decoder\.layers\.0\."):
        load_model(CrateMaeForPreTraining, folder)
    remove_weights(folder, "decoder.")
    load_model(CrateMaeForPreTraining, folder)
    with pytest.raises(ValueError, match=r"among them decoder\."):
        load_model(CrateMaeForPreTraining, folder, with_head=True)


def test_a_pooler_is_a_head(tmp_path):
    model = ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    model.save_pretrained(tmp_path)
    remove_weights(tmp_path, "pooler.")
    assert torch.isfinite(load_model(ViTModel, tmp_path).pooler.dense.weight).all()
    remove_weights(tmp_path, "layernorm.")
    with pytest.raises(ValueError, match=r"lacks 2 weights of ViTModel, among them layernorm\."):
        load_model(ViTModel, tmp_path)


def test_a_damaged_configuration_is_named_by_its_argument(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mask_ratio": 2}))
    with pytest.raises(ValueError, match=r"`config_name`: cannot load .*`mask_ratio` must lie in"):
        load(AutoConfig, folder, "config_name")
