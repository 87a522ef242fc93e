"""Folders that load everywhere: the code of the model travels with whatever is saved."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from load_everything import load_everything
from saving import COMPLETE, SAVED, rows_with, save
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

import crate_mae_hf
from crate_mae_hf import CrateMaeConfig, CrateMaeForPreTraining, CrateMaeImageProcessor


@pytest.fixture
def processor(config) -> CrateMaeImageProcessor:
    return CrateMaeImageProcessor.from_config(config)


@pytest.fixture
def run(config, processor, api, tmp_path) -> Path:
    """The folder of a Trainer that pushes while it trains."""
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=2,
        push_to_hub=True,
        hub_model_id="somebody/run",
        disable_tqdm=True,
        use_cpu=True,
    )
    images = [{"pixel_values": torch.randn(3, 32, 32)} for _ in range(4)]
    model = CrateMaeForPreTraining(config)
    Trainer(model, arguments, train_dataset=images, processing_class=processor).train()
    return tmp_path / "run"


def test_folders_load_without_the_package(run, tmp_path):
    for row, auto_class in SAVED:
        save(row, auto_class, tmp_path / row.config_class.model_type / auto_class)
    saved = [tmp_path / row.config_class.model_type / auto_class for row, auto_class in SAVED]
    folders = [str(folder) for folder in (*saved, run / "checkpoint-2")]
    script = Path(__file__).parents[1] / "load_everything.py"
    subprocess.run(
        [sys.executable, "-I", str(script), *folders, str(tmp_path / "results.pt")],
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_MODULES_CACHE": str(tmp_path / "code")},
    )
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    for folder in folders:
        for here in (folder, f"{folder}-again"):
            expected = load_everything(here)
            for name, value in expected.items():
                there = results[folder][name]
                assert torch.equal(there, value) if isinstance(value, torch.Tensor) else there == value, (here, name)
        assert {path.name for path in Path(f"{folder}-again").iterdir()} == COMPLETE


@rows_with("AutoModel")
def test_auto_map_is_complete_and_true(row, tmp_path):
    save(row, "AutoModel", tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert saved == row.config_class.auto_classes
    for auto_class, reference in saved.items():
        assert getattr(crate_mae_hf, reference.split(".")[1])._auto_class == auto_class
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())["auto_map"]
    names = ("CrateMaeImageProcessorPil", "CrateMaeImageProcessor")
    assert saved == {"AutoImageProcessor": [f"image_processing_crate_mae.{name}" for name in names]}


def test_an_image_processor_of_the_user_keeps_its_entry(tmp_path):
    class Mine(CrateMaeImageProcessor):
        pass

    processor = Mine()
    processor.auto_map = {"AutoImageProcessor": "processing_mine.Mine"}
    assert processor.to_dict()["auto_map"] == processor.auto_map


def test_a_derived_model_points_into_its_own_folder(pretrained, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(pretrained)
    # What Transformers makes of the map when it loads from the Hub.
    model.config.auto_map = {
        name: f"somebody/pretrained--{reference}" for name, reference in CrateMaeConfig.auto_classes.items()
    }
    model.save_pretrained(tmp_path / "derived")
    assert json.loads((tmp_path / "derived" / "config.json").read_text())["auto_map"] == CrateMaeConfig.auto_classes


def test_a_subclass_of_the_user_keeps_its_entry(config, tmp_path):
    config.auto_map = {"AutoModelForPreTraining": "modeling_mine.Mine"}
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert saved == {**CrateMaeConfig.auto_classes, "AutoModelForPreTraining": "modeling_mine.Mine"}


def test_trainer_pushes_complete_repositories(run, api):
    # Pushes while training take weights and configuration out of the checkpoint, and the code along with the processor.
    assert len(api.uploads) >= 2
    for files in api.uploads:
        assert files >= COMPLETE
    assert {path.name for path in (run / "checkpoint-1").iterdir()} >= COMPLETE


def test_push_to_hub_of_the_classes(config, processor, api):
    CrateMaeForPreTraining(config).push_to_hub("somebody/model")
    processor.push_to_hub("somebody/model")
    assert set().union(*api.uploads) == COMPLETE | {"README.md"}
