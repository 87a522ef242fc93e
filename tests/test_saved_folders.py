"""Folders written by earlier versions: `before_o_proj` has `mssa.out_proj` where `mssa.o_proj` is now."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    DetrConfig,
    DetrForObjectDetection,
)

from crate_mae_hf import CrateMaeBackbone, CrateMaeForPreTraining

FOLDER = Path(__file__).parent / "saved_folders" / "before_o_proj"
# In a process that cannot import the package, with the code that lies in the folder.
WITHOUT_THE_PACKAGE = """
import sys
sys.modules["crate_mae_hf"] = None
import torch
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining
model = AutoModelForPreTraining.from_pretrained(sys.argv[1], trust_remote_code=True)
expected = load_file(sys.argv[1] + "/expected.safetensors")
with torch.no_grad():
    loss = model(expected["pixel_values"], noise=expected["noise"]).loss
torch.testing.assert_close(loss, expected["loss"])
"""


@pytest.fixture
def expected() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "expected.safetensors")


def assert_is_the_model(model: CrateMaeForPreTraining, expected: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        outputs = model.eval()(expected["pixel_values"], noise=expected["noise"])
    torch.testing.assert_close(outputs.loss, expected["loss"])
    torch.testing.assert_close(outputs.logits, expected["logits"])


def test_loads_and_saves_under_the_new_names(expected, tmp_path):
    model, info = AutoModelForPreTraining.from_pretrained(FOLDER, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_is_the_model(model, expected)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    assert not any("out_proj" in name for name in saved)
    assert_is_the_model(AutoModelForPreTraining.from_pretrained(tmp_path), expected)


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageClassification, CrateMaeBackbone])
def test_other_classes_find_every_weight(auto_class, expected):
    model, info = auto_class.from_pretrained(FOLDER, output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} <= {"classifier"}
    assert not info["unexpected_keys"]
    if auto_class is AutoModel:
        with torch.no_grad():
            features = model(expected["pixel_values"]).last_hidden_state
        torch.testing.assert_close(features, expected["last_hidden_state"])


def test_a_state_dict_loads(expected):
    model = CrateMaeForPreTraining(AutoModel.from_pretrained(FOLDER).config)
    model.load_state_dict(load_file(FOLDER / "model.safetensors"))
    assert_is_the_model(model, expected)


def test_the_image_processor_loads():
    assert AutoImageProcessor.from_pretrained(FOLDER).crop_size == {"height": 16, "width": 16}


def test_its_own_code_still_runs():
    subprocess.run([sys.executable, "-I", "-W", "error", "-c", WITHOUT_THE_PACKAGE, str(FOLDER)], check=True)


def test_a_detr_keeps_its_backbone(config, tmp_path):
    """Transformers renames `out_proj` below a DETR, whoever it belongs to."""
    config.out_features = ["stage3"]
    detr = DetrForObjectDetection(
        DetrConfig(
            backbone_config=config, d_model=16, encoder_layers=1, decoder_layers=1, num_queries=3,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        )
    )  # fmt: skip
    detr.save_pretrained(tmp_path)
    loaded, info = DetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, value in detr.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
