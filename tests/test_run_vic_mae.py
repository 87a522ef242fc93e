"""examples/run_vic_mae.py as a user runs it, with a tiny model, and the other scripts on what it leaves."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from runs import logged, write_noise
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPT = EXAMPLES / "run_vic_mae.py"
SETTINGS = {
    "config_overrides": "image_size=16,patch_size=4,hidden_size=16,num_attention_heads=2,num_hidden_layers=1",
    "mask_ratio": 0.5,
    "projector_size": 32,
    "projection_size": 8,
    "do_train": True,
    "do_eval": True,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 3,
    "learning_rate": 1.0e-3,
    "logging_steps": 1,
    "dataloader_pin_memory": False,
    "use_cpu": True,
}
VIT_MAE = "decoder_hidden_size=8,decoder_num_hidden_layers=1,decoder_num_attention_heads=2"


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe for twenty small images in two classes; five clips beside them."""
    generator = np.random.default_rng(0)
    for number in range(20):
        write_noise(tmp_path / "images" / "ab"[number % 2] / f"{number:02}.png", generator)
    for number in range(20):
        write_noise(tmp_path / "clips" / str(number // 4) / f"{number:02}.png", generator)
    settings = {**SETTINGS, "train_dir": str(tmp_path / "images"), "cache_dir": str(tmp_path / "cache")}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def run(run_script, recipe, tmp_path):
    return lambda output, *flags: run_script(SCRIPT, recipe, "--output_dir", tmp_path / output, *flags)


@pytest.mark.parametrize("model_type", ["crate_mae", "vit_mae"])
def test_what_a_run_leaves_is_an_ordinary_checkpoint(run, run_script, tmp_path, model_type):
    overrides = SETTINGS["config_overrides"] + (f",{VIT_MAE}" if model_type == "vit_mae" else "")
    run("out", "--model_type", model_type, "--config_overrides", overrides, "--save_strategy", "epoch")
    out = tmp_path / "out"
    assert len(logged(out, "contrastive")) == len(logged(out, "reconstruction")) == 8
    assert logged(out, "chance") == pytest.approx([math.log(7)] * 8, rel=1e-3)
    results = json.loads((out / "all_results.json").read_text())
    assert {"eval_loss", "eval_contrastive", "eval_reconstruction", "eval_chance"} <= results.keys()
    for folder in (out, out / "checkpoint-8"):
        config = AutoModel.from_pretrained(folder).config
        assert (config.model_type, config.mask_ratio, config.hidden_size) == (model_type, 0.5, 16)
        AutoModelForPreTraining.from_pretrained(folder)
        AutoImageProcessor.from_pretrained(folder)
        assert "contrastive" not in (folder / "config.json").read_text()
    probe = ["--model_name_or_path", out, "--train_dir", tmp_path / "images", "--validation_dir", tmp_path / "images"]
    run_script(EXAMPLES / "run_linear_probe.py", *probe, "--output_dir", tmp_path / "probe", "--no_feature_cache")
    assert json.loads((tmp_path / "probe" / "results.json").read_text())["results"]
    if model_type == "vit_mae":
        return  # of which Transformers has no classifier
    tuned = ["--output_dir", tmp_path / "tuned", "--do_train", "--max_steps", "1", "--use_cpu"]
    tuned += ["--dataloader_pin_memory", "false", "--cache_dir", tmp_path / "cache"]
    tuned += ["--model_name_or_path", out, "--train_dir", tmp_path / "images"]
    run_script(EXAMPLES / "run_image_classification.py", *tuned)
    assert (tmp_path / "tuned" / "model.safetensors").is_file()


@pytest.mark.parametrize("with_images", [True, False])
def test_clips_beside_images_and_alone(run, recipe, tmp_path, with_images):
    if not with_images:
        settings = yaml.safe_load(recipe.read_text())
        del settings["train_dir"]
        recipe.write_text(yaml.safe_dump(settings))
    run("out", "--clips_dir", tmp_path / "clips", "--per_device_eval_batch_size", 1, "--max_steps", 3)
    assert len(logged(tmp_path / "out", "contrastive")) == 3


def test_a_resumed_run_is_the_unbroken_one(run, tmp_path):
    flags = ["--clips_dir", tmp_path / "clips", "--save_strategy", "steps", "--save_steps", "3", "--do_eval", "false"]
    run("whole", *flags)
    run("resumed", *flags, "--resume_from_checkpoint", tmp_path / "whole" / "checkpoint-6")
    for name in ("model.safetensors", "objective.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()
    assert logged(tmp_path / "whole", "contrastive") == logged(tmp_path / "resumed", "contrastive")


def test_a_run_starts_from_a_checkpoint(run, tmp_path):
    run("first", "--max_steps", 1)
    flags = ["--model_name_or_path", tmp_path / "first", "--config_overrides", "", "--learning_rate", 0]
    run("second", *flags, "--max_steps", 1)
    first, second = (AutoModelForPreTraining.from_pretrained(tmp_path / name) for name in ("first", "second"))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    with pytest.raises(SystemExit, match="is a model of type crate_mae; to be trained is one of type vit_mae"):
        run("third", *flags, "--model_type", "vit_mae")


def test_a_contrastive_loss_at_chance_is_told(run, caplog):
    run("out", "--learning_rate", "0", "--warmup_steps", "0")
    assert "nothing tells the pairs apart yet" in caplog.text


@pytest.mark.parametrize("name", ["vic_mae_fashion_mnist_sample", "vic_mae_imagenet"])
def test_recipes(run_script, recipe, tmp_path, name):
    flags = {**SETTINGS, "train_dir": tmp_path / "images", "output_dir": tmp_path / "out", "cache_dir": tmp_path / "c"}
    flags |= {"model_size": "tiny", "bf16": False, "sync_batch_norm": False, "dataloader_num_workers": 0}
    flags |= {"dataloader_persistent_workers": False, "save_strategy": "no", "num_train_epochs": 1}
    flags["config_overrides"] += ",num_channels=3,decoder_num_hidden_layers=1"
    arguments = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
    arguments += ["--image_mean", "0.5", "0.5", "0.5", "--image_std", "0.5", "0.5", "0.5"]
    run_script(SCRIPT, EXAMPLES / "recipes" / f"{name}.yaml", *arguments)
    assert len(logged(tmp_path / "out", "eval_contrastive")) >= 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "0"], "`temperature` must be positive, got 0.0"),
        (["--contrastive_rise", "2"], "`contrastive_rise` must lie in [0, 1], got 2.0"),
        (["--blur", "2"], "`blur` must lie in [0, 1], got 2.0"),
        (["--clips_dir", "nowhere"], "`clips_dir`: there is no folder nowhere"),
        (["--clip_parts", "1", "--clips_dir", "clips"], "`clips_dir`: there is no folder clips"),
        (["--streaming", "true"], "`max_steps` is needed with `streaming`"),
        (["--per_device_train_batch_size", "64"], "`per_device_train_batch_size` makes batches of 64 on all devices"),
        (["--per_device_train_batch_size", "1"], "a batch of one pair has nothing to be told from"),
        (["--resume_from_checkpoint", "true"], "`resume_from_checkpoint`: there is no complete checkpoint"),
    ],
)
def test_bad_input_ends_with_one_line(run, flags, message):
    with pytest.raises(SystemExit, match=f"^error: .*{re.escape(message)}"):
        run("out", *flags)


@pytest.mark.slow
def test_two_processes_train_together(recipe, tmp_path):
    launcher = [str(Path(sys.executable).parent / "torchrun"), "--nproc_per_node", "2", "--master_port", "29517"]
    command = [*launcher, str(SCRIPT), str(recipe), "--output_dir", str(tmp_path / "out"), "--max_steps", "4"]
    command += ["--per_device_train_batch_size", "2", "--per_device_eval_batch_size", "1", "--save_strategy", "steps"]
    command += ["--save_steps", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before = b""
    for flags in ([], ["--overwrite_output_dir", "--resume_from_checkpoint", str(tmp_path / "out" / "checkpoint-2")]):
        result = subprocess.run([*command, *flags], capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert result.returncode == 0, result.stderr[-8000:]
        assert logged(tmp_path / "out", "chance") == pytest.approx([math.log(7)] * 4, rel=1e-3)
        terms = [logged(tmp_path / "out", name) for name in ("contrastive", "reconstruction", "loss")]
        for contrastive, reconstruction, loss in zip(*terms, strict=True):
            assert loss == pytest.approx(0.03 * contrastive + 0.97 * reconstruction, rel=1e-3)
        weights = (tmp_path / "out" / "model.safetensors").read_bytes()
        assert weights == before or not flags
        before = weights
