"""Settings shared by all tests: no network, repeatable numbers, and a model that is small enough for any of them."""

import os
import runpy
import signal
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # models this small lose time in more threads

import pytest
import torch
from saving import save
from transformers.utils import logging

from crate_mae_hf import CrateMaeConfig
from crate_mae_hf.registry import MODELS

logging.disable_progress_bar()
# In the background of a shell Ctrl-C is ignored, also by programs that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def run_script(monkeypatch):
    """Run an example script in this process, as a user does from a command line."""

    def run_script(script: Path, *arguments) -> None:
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        runpy.run_path(str(script), run_name="__main__")

    return run_script


@pytest.fixture
def config() -> CrateMaeConfig:
    """Three encoder and two decoder layers on 16 patches."""
    return CrateMaeConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        decoder_num_hidden_layers=2,
        image_size=32,
        patch_size=8,
    )


@pytest.fixture
def pixel_values() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def pretrained(tmp_path) -> Path:
    """Folder of a CRATE-MAE with its decoder."""
    save(MODELS["crate_mae"], "AutoModelForPreTraining", tmp_path / "pretrained")
    return tmp_path / "pretrained"


@pytest.fixture
def classifier(tmp_path) -> Path:
    """Folder of a CRATE-MAE that classifies."""
    save(MODELS["crate_mae"], "AutoModelForImageClassification", tmp_path / "classifier")
    return tmp_path / "classifier"
