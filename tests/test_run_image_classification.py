"""examples/run_image_classification.py as a user runs it: on folders of images, with a tiny model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from runs import logged
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, pipeline

from crate_mae_hf import CrateMaeConfig, CrateMaeForPreTraining, CrateMaeImageProcessor

SCRIPT = Path(__file__).parents[1] / "examples" / "run_image_classification.py"
SETTINGS = {
    "config_overrides": "image_size=16,patch_size=4,hidden_size=16,num_attention_heads=2,num_hidden_layers=2",
    "do_train": True,
    "do_eval": True,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "dataloader_pin_memory": False,
    "use_cpu": True,
}


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe for images of three classes, which differ in brightness."""
    for split, count in (("train", 8), ("test", 4)):
        for label, name in enumerate(("dark", "grey", "light")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                noise = np.random.default_rng(number + 10 * label).integers(0, 60, (20, 20, 3))
                pixels = (noise + 90 * label).astype(np.uint8)
                PIL.Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    folders = {"train_dir": "train", "validation_dir": "test", "cache_dir": "cache"}
    settings = {**SETTINGS, **{key: str(tmp_path / name) for key, name in folders.items()}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def run(run_script, recipe, tmp_path):
    return lambda output, *flags: run_script(SCRIPT, recipe, "--output_dir", tmp_path / output, *flags)


@pytest.fixture
def pretrained(tmp_path) -> Path:
    """A pre-trained model with its image processor."""
    sizes = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = CrateMaeConfig(**sizes, decoder_num_hidden_layers=1)
    CrateMaeForPreTraining(config).save_pretrained(tmp_path / "pretrained")
    CrateMaeImageProcessor.from_config(config).save_pretrained(tmp_path / "pretrained")
    return tmp_path / "pretrained"


def results(folder: Path) -> dict[str, float]:
    return json.loads((folder / "all_results.json").read_text())


def test_training_from_scratch_and_using_the_result(run, tmp_path):
    run("out", "--num_train_epochs", "6", "--learning_rate", "1e-2")
    measured = results(tmp_path / "out")
    assert measured["eval_accuracy"] > 0.8  # brightness is easy to see
    assert "eval_top_5_accuracy" not in measured  # of three classes
    classify = pipeline("image-classification", model=str(tmp_path / "out"))
    found = [classify(str(tmp_path / "test" / name / "0.png"))[0]["label"] for name in ("dark", "grey", "light")]
    assert sum(label == name for label, name in zip(found, ("dark", "grey", "light"), strict=True)) >= 2
    run("again", "--model_name_or_path", str(tmp_path / "out"), "--do_train", "false", "--config_overrides", "")
    assert results(tmp_path / "again")["eval_accuracy"] == measured["eval_accuracy"]


def test_fine_tuning_with_everything(run, pretrained, tmp_path, caplog):
    run(
        "out",
        *("--model_name_or_path", str(pretrained), "--config_overrides", ""),
        *("--layer_decay", "0.5", "--drop_path_rate", "0.1", "--pooling", "cls", "--label_smoothing_factor", "0.1"),
        *("--mixup_alpha", "0.8", "--cutmix_alpha", "1.0", "--random_erasing", "0.25", "--rand_augment_num_ops", "2"),
        *("--rand_augment_magnitude", "14", "--base_learning_rate", "0.064", "--dataloader_num_workers", "1"),
        *("--save_strategy", "epoch", "--eval_strategy", "epoch"),
        *("--load_best_model_at_end", "true", "--metric_for_best_model", "accuracy"),
    )
    assert "decoder" not in caplog.text  # the encoder loads quietly
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert (model.config.pooling, model.config.drop_path_rate) == ("cls", 0.1)
    assert model.config.id2label == {0: "dark", 1: "grey", 2: "light"}
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["max_steps"] == 2 * 6
    assert max(float(entry.get("learning_rate", 0)) for entry in state["log_history"]) == pytest.approx(0.064 * 4 / 256)
    accuracies = [entry["eval_accuracy"] for entry in state["log_history"] if "eval_accuracy" in entry]
    assert state["best_metric"] == max(accuracies) == results(tmp_path / "out")["eval_accuracy"]


def test_a_frozen_encoder_is_the_pre_trained_one(run, pretrained, tmp_path):
    run("out", "--model_name_or_path", str(pretrained), "--config_overrides", "", "--freeze_encoder", "true")
    before, after = (load_file(folder / "model.safetensors") for folder in (pretrained, tmp_path / "out"))
    encoder = [name for name in after if name.startswith("crate_mae.")]
    assert len(encoder) == len(after) - 2
    for name in encoder:
        assert torch.equal(after[name], before[name]), name


def test_other_models(run, tmp_path):
    overrides = (
        "image_size=16,patch_size=4,hidden_size=16,num_attention_heads=2,num_hidden_layers=2,intermediate_size=16"
    )
    run("out", "--model_type", "vit", "--config_overrides", overrides, "--layer_decay", "0.5", "--max_steps", "2")
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "out").config.model_type == "vit"


def test_resuming_gives_the_unbroken_run(run, tmp_path):
    flags = ["--save_strategy", "steps", "--save_steps", "5", "--layer_decay", "0.7", "--drop_path_rate", "0.3"]
    flags += ["--mixup_alpha", "0.8"]
    run("whole", *flags)
    run("resumed", *flags, "--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-5"))
    assert logged(tmp_path / "resumed", "loss") == logged(tmp_path / "whole", "loss")
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--label_column_name", "species"], "`label_column_name`: there is no column 'species', but image, label"),
        (["--layer_decay", "2"], "`layer_decay` must lie in (0, 1], got 2.0"),
        (["--drop_path_rate", "1"], "`drop_path_rate` must lie in [0, 1), got 1.0"),
        (["--model_type", "crate_meh"], "`model_type`: Transformers has no 'crate_meh'"),
        (["--model_type", "vit", "--model_size", "tiny"], "`model_size` is for new CRATE models, not for vit"),
        (
            ["--model_type", "vit", "--config_overrides", "", "--pooling", "cls"],
            "`pooling`: a model of type vit has",
        ),
        (["--model_size", "huge"], "`size` must be one of tiny, small, base, large, got 'huge'"),
        (["--config_overrides", "patch_sise=4"], "`config_overrides` sets patch_sise"),
        (["--mixup_alpha", "-1"], "`mixup_alpha` must not be negative, got -1.0"),
        (["--random_erasing", "3"], "`random_erasing` must lie in [0, 1], got 3.0"),
    ],
)
def test_bad_input_ends_with_one_line(run, flags, message):
    with pytest.raises(SystemExit, match=f"^error: .*{re.escape(message)}"):
        run("out", *flags)


def test_mistakes_in_labels_end_with_one_line(run, tmp_path):
    (tmp_path / "test" / "dark").rename(tmp_path / "test" / "black")
    with pytest.raises(SystemExit, match=r"^error: .*'black' in the column 'label' of the split 'validation'"):
        run("out")
    (tmp_path / "one" / "cat").mkdir(parents=True)
    PIL.Image.new("RGB", (20, 20)).save(tmp_path / "one" / "cat" / "0.png")
    with pytest.raises(SystemExit, match=r"^error: .*all images in the split 'train' have the class 'cat'"):
        run("out", "--train_dir", str(tmp_path / "one"), "--validation_dir", str(tmp_path / "one"))
    with pytest.raises(SystemExit, match=r"^error: .* 1 of 1 images of the folder .*cat have no label .*0\.png"):
        run("out", "--train_dir", str(tmp_path / "one" / "cat"))


def test_a_head_for_other_classes_starts_anew_only_when_asked(run, tmp_path):
    run("first", "--max_steps", "1")
    for split in ("train", "test"):
        (tmp_path / split / "bright").mkdir()
        PIL.Image.new("RGB", (20, 20), "white").save(tmp_path / split / "bright" / "0.png")
    flags = ["--model_name_or_path", str(tmp_path / "first"), "--config_overrides", "", "--max_steps", "1"]
    with pytest.raises(SystemExit, match=r"^error: `model_name_or_path`: .*4 classes.*`--ignore_mismatched_sizes`"):
        run("second", *flags)
    run("second", *flags, "--ignore_mismatched_sizes", "true")
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "second").config.num_labels == 4


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(recipe, tmp_path):
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--nproc_per_node", "2", "--master_port", "29514"]
    for name, launcher, batch in (("one", [sys.executable], "4"), ("two", torchrun, "2")):
        command = [*launcher, str(SCRIPT), str(recipe), "--output_dir", str(tmp_path / name)]
        command += ["--per_device_train_batch_size", batch, "--layer_decay", "0.7", "--rand_augment_num_ops", "2"]
        command += ["--num_train_epochs", "3", "--label_smoothing_factor", "0.1"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-8000:]
    one, two = logged(tmp_path / "one", "loss"), logged(tmp_path / "two", "loss")
    assert len(one) == 18
    assert two == pytest.approx(one, rel=2e-3)  # the log has four digits; sums are taken in another order
    measured = [results(tmp_path / name) for name in ("one", "two")]
    assert measured[1]["eval_accuracy"] == measured[0]["eval_accuracy"]
    assert measured[1]["eval_loss"] == pytest.approx(measured[0]["eval_loss"], rel=1e-3)
