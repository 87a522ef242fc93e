"""examples/run_split_brain.py as a user runs it: on a folder of images, with a tiny model."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from runs import write_noise
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

from crate_mae_hf.cli import read_recipe
from crate_mae_hf.hub import check_folder, create_model_card

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPT = EXAMPLES / "run_split_brain.py"
SETTINGS = {
    "config_overrides": "image_size=16,patch_size=4,hidden_size=16,num_attention_heads=2,num_hidden_layers=1",
    "do_train": True,
    "do_eval": True,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "dataloader_pin_memory": False,
    "use_cpu": True,
    "train_val_split": 0.2,
}


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe for twenty small images."""
    for number in range(20):
        write_noise(tmp_path / "images" / f"{number:02}.png", np.random.default_rng(number))
    settings = {**SETTINGS, "train_dir": str(tmp_path / "images"), "cache_dir": str(tmp_path / "cache")}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def run(run_script, recipe, tmp_path):
    return lambda output, *flags: run_script(SCRIPT, recipe, "--output_dir", tmp_path / output, *flags)


@pytest.mark.parametrize("flags", [[], ["--prediction", "regression", "--target_grid_size", "2"]])
def test_pre_training_from_a_folder_of_images(run, tmp_path, flags):
    folder = tmp_path / "out"
    run("out", *flags)
    metrics = json.loads((folder / "all_results.json").read_text())
    for name in ("loss_ab", "loss_l", "constant_loss_ab", "constant_loss_l"):
        assert metrics[f"eval_{name}"] >= 0
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_loss_ab"] + metrics["eval_loss_l"], rel=1e-4)
    with PIL.Image.open(folder / "color_prediction.png") as picture:
        assert picture.width > 600
    check_folder(folder)
    model = AutoModelForPreTraining.from_pretrained(folder)
    assert model.config.prediction == (flags[1] if flags else "classification")
    card = create_model_card(folder).content
    assert f"| `prediction` | {model.config.prediction} |" in card
    assert "](color_prediction.png)" in card
    assert "Predicted colours are the mean" in card
    assert "mask" not in card.split("## Limits")[1].split("## Citation")[0]
    with PIL.Image.open(tmp_path / "images" / "00.png") as picture:
        image = picture.convert("RGB")
    inputs = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
    tokens = AutoModel.from_pretrained(folder)(**inputs).last_hidden_state
    assert tokens.shape == (1, 17, 16)
    assert torch.equal(AutoModelForImageClassification.from_pretrained(folder).base_model(**inputs)[0], tokens)


def test_a_run_goes_on_from_a_checkpoint_and_can_be_continued(run, tmp_path):
    run("whole", "--save_strategy", "epoch", "--num_train_epochs", "2")
    run("half", "--save_strategy", "epoch", "--max_steps", "4", "--lr_scheduler_type", "constant")
    run("resumed", "--resume_from_checkpoint", tmp_path / "whole" / "checkpoint-4")
    whole, resumed = (AutoModelForPreTraining.from_pretrained(tmp_path / name) for name in ("whole", "resumed"))
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    # Half a run's model as the start of another.
    run("more", "--model_name_or_path", tmp_path / "half", "--max_steps", "1", "--config_overrides", "")
    assert (tmp_path / "more" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config_overrides", "num_channels=1"], "`num_channels` must be 3"),
        (["--target_grid_size", "3"], r"`target_grid_size` must divide the patch size \(4, 4\), got 3"),
        (["--image_mean", "0.5", "0.5", "0.5"], "`image_mean`: a model of type crate_split_brain"),
        (["--streaming", "true"], "`max_steps` is needed with `streaming`"),
    ],
)
def test_what_is_wrong_is_said(run, flags, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        run("out", *flags)


def test_other_models_are_not_continued(run, pretrained):
    with pytest.raises(
        SystemExit, match="is a model of type crate_mae; to be trained is one of type crate_split_brain"
    ):
        run("out", "--model_name_or_path", pretrained, "--config_overrides", "")


def test_a_grey_image_is_named_or_left_out(run, tmp_path):
    PIL.Image.new("L", (20, 20)).save(tmp_path / "images" / "grey.png")
    with pytest.raises(
        SystemExit, match=r"^error: The image .*grey\.png is grey .* `--skip_bad_images` leaves such out"
    ):
        run("out")
    run("skipped", "--skip_bad_images", "true", "--max_steps", "1")
    assert (tmp_path / "skipped" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["split_brain_photos", "split_brain_imagenet"])
def test_recipes_are_for_this_script(run, recipe, tmp_path, name):
    settings = read_recipe(EXAMPLES / "recipes" / f"{name}.yaml")
    small = {**yaml.safe_load(recipe.read_text()), "max_steps": 1, "model_size": "tiny", "bf16": False}
    dropped = ("dataset_name", "validation_split_name", "preprocessing_num_workers", "base_learning_rate")
    merged = {**settings, **small, "save_strategy": "no", "dataloader_num_workers": 0}
    merged["dataloader_persistent_workers"] = False
    recipe.write_text(yaml.safe_dump({key: value for key, value in merged.items() if key not in dropped}))
    run("out")
    assert (tmp_path / "out" / "color_prediction.png").is_file()
