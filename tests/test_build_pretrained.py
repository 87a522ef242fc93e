"""What examples/build_pretrained.py makes of a trained model."""

import runpy
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForPreTraining

SCRIPT = Path(__file__).parents[1] / "examples" / "build_pretrained.py"
RECIPE = {
    "learning_rate": 0.002,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "weight_decay": 0.05,
    "adam_beta2": 0.95,
}


def test_an_exported_model_is_rounded_has_no_code_and_loads_in_float32(pretrained, tmp_path):
    names = runpy.run_path(str(SCRIPT))
    trained = AutoModelForPreTraining.from_pretrained(pretrained).state_dict()
    names["export"](pretrained, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    model, info = AutoModelForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, trained[name].bfloat16().float()), name
    AutoImageProcessor.from_pretrained(tmp_path / "out")
    names["write_card"](tmp_path / "out", RECIPE)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| learning_rate | 0.002 |" in card
    assert "trust_remote_code" not in card
