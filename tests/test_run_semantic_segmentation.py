"""examples/run_semantic_segmentation.py as a user runs it: on folders and datasets of tiny images, with tiny models."""

import json
import re
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from runs import logged
from safetensors.torch import load_file
from snippets import ROOT, snippets
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    pipeline,
)

SCRIPT = ROOT / "examples" / "run_semantic_segmentation.py"
SETTINGS = {
    "config_overrides": "image_size=16,patch_size=4,hidden_size=16,num_attention_heads=2,num_hidden_layers=2",
    "head_hidden_size": 8,
    "min_crop_scale": 1.0,
    "do_train": True,
    "do_eval": True,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "dataloader_pin_memory": False,
    "use_cpu": True,
}


def draw_pair(generator: np.random.Generator) -> tuple[PIL.Image.Image, PIL.Image.Image]:
    """A bright square on dark noise, and its mask, in which the first row counts for nothing."""
    pixels, mask = generator.integers(0, 60, (20, 24, 3), dtype=np.uint8), np.zeros((20, 24), dtype=np.uint8)
    top, left = generator.integers(0, 12, size=2)
    pixels[top : top + 8, left : left + 8] += 180
    mask[top : top + 8, left : left + 8] = 1
    mask[0] = 255
    return PIL.Image.fromarray(pixels), PIL.Image.fromarray(mask)


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe for folders of images and masks."""
    generator = np.random.default_rng(0)
    settings = {**SETTINGS, "cache_dir": str(tmp_path / "cache")}
    for split, count in (("train", 12), ("validation", 4)):
        for kind in ("images", "masks"):
            (tmp_path / split / kind / "a").mkdir(parents=True)
        for number in range(count):
            image, mask = draw_pair(generator)
            image.save(tmp_path / split / "images" / "a" / f"{number}.jpg", quality=95)
            mask.save(tmp_path / split / "masks" / "a" / f"{number}.png")
        settings |= {f"{split}_dir": str(tmp_path / split / "images")}
        settings |= {f"{split}_mask_dir": str(tmp_path / split / "masks")}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def run(run_script, recipe, tmp_path):
    return lambda output, *flags: run_script(SCRIPT, recipe, "--output_dir", tmp_path / output, *flags)


def results(folder: Path) -> dict[str, float]:
    return json.loads((folder / "all_results.json").read_text())


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")  # of the pipeline
def test_training_from_scratch_and_using_the_result(run, tmp_path, monkeypatch, capsys):
    run("out", "--num_train_epochs", "30", "--learning_rate", "3e-2", "--class_names", "ground", "square")
    measured = results(tmp_path / "out")
    assert measured["eval_mean_iou"] > 0.6 > measured["eval_constant_mean_iou"]
    assert measured["eval_pixel_accuracy"] > measured["eval_constant_pixel_accuracy"]
    assert measured["eval_mean_iou"] == pytest.approx((measured["eval_iou_ground"] + measured["eval_iou_square"]) / 2)
    with PIL.Image.open(tmp_path / "out" / "segmentation.png") as picture:
        assert min(picture.size) > 300

    path = tmp_path / "validation" / "images" / "a" / "0.jpg"
    truth = np.asarray(PIL.Image.open(tmp_path / "validation" / "masks" / "a" / "0.png"))
    segments = {
        each["label"]: np.asarray(each["mask"]) > 0
        for each in pipeline("image-segmentation", str(tmp_path / "out"))(str(path))
    }
    assert set(segments) == {"ground", "square"}
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    with PIL.Image.open(path) as image, torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    (found,) = processor.post_process_semantic_segmentation(outputs, [truth.shape])
    assert np.array_equal(found.numpy() == 1, segments["square"])
    assert (found.numpy() == truth)[truth < 255].mean() > 0.75
    assert processor.post_process_semantic_segmentation(outputs)[0].shape == (16, 16)
    path.rename(tmp_path / "scene.png")
    (tmp_path / "outputs").mkdir()
    (tmp_path / "out").rename(tmp_path / "outputs" / "segmentation")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    (snippet,) = snippets("docs/dense.md")
    exec(compile(snippet, "docs/dense.md", "exec"), {})
    assert capsys.readouterr().out == "ground (24, 20)\nsquare (24, 20)\n"
    with PIL.Image.open(tmp_path / "scene.png") as image:
        image.save(path)
    with pytest.raises(ValueError, match="`target_sizes` must have 1 sizes"):
        processor.post_process_semantic_segmentation(outputs, [(2, 2)] * 2)

    flags = ["--model_name_or_path", str(tmp_path / "outputs" / "segmentation"), "--config_overrides", ""]
    flags += ["--do_train", "false"]
    run("again", *flags, "--class_names", "ground", "square")
    assert results(tmp_path / "again")["eval_mean_iou"] == measured["eval_mean_iou"]
    with pytest.raises(SystemExit, match=r"^error: `model_name_or_path`: "):
        run("other", *flags, "--class_names", "ground", "square", "circle")


def test_a_pretrained_encoder_and_a_dataset(run, pretrained, tmp_path):
    generator = np.random.default_rng(1)
    features = datasets.Features({"annotation": datasets.Image(), "picture": datasets.Image()})
    for split, count in (("train", 6), ("test", 3)):
        pictures, masks = zip(*(draw_pair(generator) for _ in range(count)), strict=True)
        dataset = datasets.Dataset.from_dict({"annotation": masks, "picture": pictures}, features=features)
        (tmp_path / "data").mkdir(exist_ok=True)
        dataset.to_parquet(tmp_path / "data" / f"{split}.parquet")
    flags = ["--dataset_name", str(tmp_path / "data"), "--image_column_name", "picture", "--config_overrides", ""]
    flags += ["--model_name_or_path", str(pretrained), "--image_size", "48", "32", "--learning_rate", "0"]
    run("out", *flags, "--validation_split_name", "test", "--max_steps", "1")
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "0", 1: "1"}
    assert model.backbone.config.image_size == [48, 32]
    before, after = (load_file(folder / "model.safetensors") for folder in (pretrained, tmp_path / "out"))
    encoder = {name: value for name, value in after.items() if name.startswith("backbone.layers.")}
    assert encoder
    for name, value in encoder.items():
        assert torch.equal(value, before[name.replace("backbone.", "crate_mae.")]), name
    # Without a test split some are held out; the mask is the one column of pictures with such a name that is left.
    run("held_out", *flags, "--train_val_split", "0.5", "--max_steps", "1", "--per_device_train_batch_size", "3")
    with pytest.raises(
        SystemExit, match=r"^error: `mask_column_name`: none of the columns annotation, picture is called"
    ):
        run("wrong", *flags, "--mask_column_name", "picture")


def test_other_models(run, tmp_path):
    config = SegformerConfig(
        hidden_sizes=[4, 4, 8, 8],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=8,
        num_labels=2,
    )
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "segformer")
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "segformer")
    run("out", "--model_name_or_path", str(tmp_path / "segformer"), "--config_overrides", "", "--max_steps", "1")
    assert "eval_mean_iou" in results(tmp_path / "out")
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out").config.model_type == "segformer"


def test_resuming_gives_the_unbroken_run(run, tmp_path):
    flags = ["--save_strategy", "steps", "--save_steps", "4", "--min_crop_scale", "0.3"]
    run("whole", *flags)
    run("resumed", *flags, "--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-4"))
    assert logged(tmp_path / "resumed", "loss") == logged(tmp_path / "whole", "loss")
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_accumulated_gradients_are_those_of_one_batch(run, tmp_path):
    flags = ["--max_steps", "1", "--max_grad_norm", "100"]
    for name, batch, steps in (("one", "8", "1"), ("two", "4", "2")):
        run(name, *flags, "--per_device_train_batch_size", batch, "--gradient_accumulation_steps", steps)
    (one,), (two,) = (logged(tmp_path / name, "grad_norm") for name in ("one", "two"))
    assert two == pytest.approx(one, rel=0.3)  # batch norms see other batches; a wrong scale would be a factor of two


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image_size", "16"], "`image_size` must be a height and a width, got [16]"),
        (["--image_size", "16", "18"], "patch"),
        (["--head_hidden_size", "0"], "`head_hidden_size` must be positive, got 0"),
        (["--class_names", "all"], "`class_names`: there must be 2 to 255 classes, got 1"),
        (["--train_val_split", "1"], "`train_val_split` must lie between 0 and 1, got 1.0"),
        (["--min_crop_scale", "2"], "`min_crop_scale` must lie in (0, 1], got 2.0"),
        (["--label_smoothing_factor", "0.1"], "`label_smoothing_factor` must be 0"),
        (["--per_device_train_batch_size", "1"], "`per_device_train_batch_size` 1 leaves a batch of one image of 12"),
        (["--per_device_train_batch_size", "11"], "`per_device_train_batch_size` 11 leaves a batch of one image of 12"),
    ],
)
def test_bad_input_ends_with_one_line(run, flags, message):
    with pytest.raises(SystemExit, match=f"^error: .*{re.escape(message)}"):
        run("out", *flags)


def write_small(path: Path) -> None:
    PIL.Image.new("L", (24, 10)).save(path)


def write_number(path: Path) -> None:
    PIL.Image.new("L", (24, 20), 7).save(path)


def write_color(path: Path) -> None:
    PIL.Image.new("RGB", (24, 20)).save(path)


def write_text(path: Path) -> None:
    path.write_text("no picture")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_small, r"The mask \S*3\.png is 10 x 24 pixels, its image 20 x 24\."),
        (write_number, r"The mask \S*3\.png has the value 7: with 2 classes values are 0 to 1, and 255 where there is"),
        (write_color, r"The mask \S*3\.png has the mode RGB: a mask has one integer per pixel"),
        (write_text, r"Cannot read the mask \S*3\.png"),
        (
            Path.unlink,
            r"`train_mask_dir`: 1 of 12 images of the folder \S+ have no mask of the same name in .*'a/3\.\*'",
        ),
    ],
)
def test_a_mask_that_cannot_be_used_is_named(run, tmp_path, write, message):
    write(tmp_path / "train" / "masks" / "a" / "3.png")
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        run("out", "--class_names", "ground", "square")


def test_folders_and_models_that_cannot_be_used(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for argument in ("train_dir", "train_mask_dir"):
        with pytest.raises(SystemExit, match=rf"^error: `{argument}`: there are no images in \S+empty"):
            run("out", f"--{argument}", str(tmp_path / "empty"))
    (tmp_path / "validation" / "masks").rename(tmp_path / "elsewhere")
    with pytest.raises(SystemExit, match=r"^error: `validation_mask_dir`: there is no folder"):
        run("out")
    vit = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16)
    ViTModel(vit).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    (tmp_path / "elsewhere").rename(tmp_path / "validation" / "masks")
    with pytest.raises(SystemExit, match=r"^error: `model_name_or_path`: \S+vit of type vit is no model of ours"):
        run("out", "--model_name_or_path", str(tmp_path / "vit"), "--config_overrides", "")


@pytest.mark.slow
def test_the_recipe_learns(run_script, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    scenes = tmp_path / "scenes"
    run_script(ROOT / "examples" / "data" / "garment_scenes.py", "--output_dir", scenes)
    recipe = ROOT / "examples" / "recipes" / "segmentation_garment_scenes.yaml"
    flags = ["--dataset_name", scenes, "--validation_split_name", "test", "--num_train_epochs", 1]
    flags += ["--max_eval_samples", 100, "--output_dir", tmp_path / "out", "--use_cpu", "true"]
    run_script(SCRIPT, recipe, *flags)
    measured = results(tmp_path / "out")
    assert measured["eval_constant_mean_iou"] < 0.08
    assert measured["eval_mean_iou"] > 0.17  # random weights have 0.12 after the first of five epochs
