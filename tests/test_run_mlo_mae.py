"""examples/run_mlo_mae.py as a user runs it, with a tiny model, and the other scripts on what it leaves."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from runs import logged, write_noise
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining

from crate_mae_hf.adapters import patch_tokens
from crate_mae_hf.hub import create_model_card
from crate_mae_hf.objectives.mlo_mae import MaskingNetwork

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPT = EXAMPLES / "run_mlo_mae.py"
SETTINGS = {
    "config_overrides": "image_size=16,patch_size=4,hidden_size=16,num_attention_heads=2,num_hidden_layers=1",
    "mask_ratio": 0.5,
    "mask_hidden_size": 8,
    "do_train": True,
    "do_eval": True,
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 3,
    "learning_rate": 1.0e-3,
    "logging_steps": 2,
    "dataloader_pin_memory": False,
    "use_cpu": True,
}
VIT_MAE = ",decoder_hidden_size=8,decoder_num_hidden_layers=1,decoder_num_attention_heads=2"


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe for thirty small images in two classes."""
    generator = np.random.default_rng(0)
    for number in range(30):
        write_noise(tmp_path / "images" / "ab"[number % 2] / f"{number:02}.png", generator)
    path = tmp_path / "recipe.yaml"
    settings = {**SETTINGS, "train_dir": str(tmp_path / "images"), "cache_dir": str(tmp_path / "cache")}
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def run(run_script, recipe, tmp_path):
    return lambda output, *flags: run_script(SCRIPT, recipe, "--output_dir", tmp_path / output, *flags)


@pytest.mark.parametrize("model_type", ["crate_mae", "vit_mae"])
def test_what_a_run_leaves_is_an_ordinary_checkpoint(run, run_script, tmp_path, model_type):
    overrides = SETTINGS["config_overrides"] + (VIT_MAE if model_type == "vit_mae" else "")
    run(
        "out",
        "--model_type",
        model_type,
        "--config_overrides",
        overrides,
        "--save_strategy",
        "steps",
        "--save_steps",
        4,
    )
    out = tmp_path / "out"
    for name in ("reconstruction", "mask_entropy", "finetune_loss", "validation_loss", "mask_grad_norm"):
        assert len(logged(out, name)) == 3, name
    results = json.loads((out / "all_results.json").read_text())
    assert {"eval_loss", "eval_reconstruction", "eval_mask_entropy"} <= results.keys()
    assert (out / "masks" / "step_000006.png").is_file()
    for folder in (out, out / "checkpoint-4"):
        config = AutoModel.from_pretrained(folder).config
        assert (config.model_type, config.mask_ratio, config.hidden_size) == (model_type, 0.5, 16)
        AutoImageProcessor.from_pretrained(folder)
        autoencoder, pixel_values = AutoModelForPreTraining.from_pretrained(folder), torch.randn(2, 3, 16, 16)
        scores = MaskingNetwork.load(folder)(patch_tokens(autoencoder, pixel_values))
        masked = autoencoder(pixel_values, noise=scores).mask.bool()
        assert (scores.masked_fill(masked, -1).amax(dim=1) <= scores.masked_fill(~masked, 2).amin(dim=1)).all()
    probe = ["--model_name_or_path", out, "--train_dir", tmp_path / "images", "--validation_dir", tmp_path / "images"]
    run_script(EXAMPLES / "run_linear_probe.py", *probe, "--output_dir", tmp_path / "probe", "--no_feature_cache")
    assert json.loads((tmp_path / "probe" / "results.json").read_text())["results"]
    if model_type == "crate_mae":
        card = str(create_model_card(out))
        assert "[MLO-MAE](https://arxiv.org/abs/2402.18128)" in card
        assert "pre-trained with the help of labels." in card
        assert "| labels | of 2 classes, by which the masks were learned |" in card


def test_the_second_and_third_level_share_no_image(run, tmp_path, monkeypatch):
    """Nor does any of them have a test image."""
    from crate_mae_hf.training import mlo_mae_trainer

    found = {}
    start = mlo_mae_trainer.MloMaeTrainer.start_batches

    def look(trainer, cycle):
        datasets = {"train": trainer.train_dataset, "eval": trainer.eval_dataset, **trainer.datasets}
        found.update({name: {r["image"]["path"] for r in dataset.records} for name, dataset in datasets.items()})
        start(trainer, cycle)

    monkeypatch.setattr(mlo_mae_trainer.MloMaeTrainer, "start_batches", look)
    run("out", "--train_val_split", 0.2, "--validation_share", 0.25)
    assert {name: len(paths) for name, paths in found.items()} == {"train": 24, "eval": 6, "head": 18, "masking": 6}
    assert found["head"] | found["masking"] == found["train"]
    assert not found["train"] & found["eval"]
    classes = [Path(path).parent.name for path in found["masking"]]
    assert classes.count("a") == classes.count("b") == 3


def test_a_resumed_run_is_the_unbroken_one(run, tmp_path):
    flags = ["--save_strategy", "steps", "--save_steps", "3", "--score_noise", 0.1]
    run("whole", *flags)
    run("resumed", *flags, "--resume_from_checkpoint", tmp_path / "whole" / "checkpoint-3")
    for name in ("model.safetensors", "objective.safetensors", "masking.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()
    assert logged(tmp_path / "whole", "validation_loss") == logged(tmp_path / "resumed", "validation_loss")


@pytest.mark.parametrize("name", ["mlo_mae_fashion_mnist_sample", "mlo_mae_cifar10", "mlo_mae_imagenet"])
def test_recipes(run_script, recipe, tmp_path, name):
    flags = {**SETTINGS, "train_dir": tmp_path / "images", "output_dir": tmp_path / "out", "cache_dir": tmp_path / "c"}
    flags |= {"model_size": "tiny", "bf16": False, "dataloader_num_workers": 0, "dataloader_persistent_workers": False}
    flags |= {"save_strategy": "no", "max_steps": 2}
    flags["config_overrides"] += ",num_channels=3,decoder_num_hidden_layers=1"
    arguments = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
    arguments += ["--image_mean", "0.5", "0.5", "0.5", "--image_std", "0.5", "0.5", "0.5"]
    run_script(SCRIPT, EXAMPLES / "recipes" / f"{name}.yaml", *arguments)
    assert len(logged(tmp_path / "out", "validation_loss")) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--validation_share", "1.5"], "`validation_share` 1.5 of"),
        (["--score_noise", "-1"], "`score_noise` must not be negative, got -1.0"),
        (["--head_dropout", "1"], "`head_dropout` must lie in [0, 1), got 1.0"),
        (["--torch_compile", "true"], "it cannot use `torch_compile`"),
        (["--fp16", "true"], "it cannot use `fp16`"),
        (["--label_column_name", "kind"], "`label_column_name`: there is no column 'kind'"),
        (["--resume_from_checkpoint", "true"], "`resume_from_checkpoint`: there is no complete checkpoint"),
    ],
)
def test_bad_input_ends_with_one_line(run, flags, message):
    with pytest.raises(SystemExit, match=f"^error: .*{re.escape(message)}"):
        run("out", *flags)


def test_the_bundled_images_are_the_default(run_script, tmp_path, monkeypatch):
    monkeypatch.chdir(EXAMPLES.parent)
    flags = ["--max_steps", 2, "--max_eval_samples", 20, "--per_device_train_batch_size", 8, "--save_strategy", "no"]
    run_script(SCRIPT, *flags, "--output_dir", tmp_path / "out", "--cache_dir", tmp_path / "cache")
    assert AutoModel.from_pretrained(tmp_path / "out").config.num_channels == 1
