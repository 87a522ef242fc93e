"""examples/run_linear_probe.py as a user runs it: on folders of images, with tiny models."""

import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import (
    AutoModel,
    ConvNextConfig,
    ConvNextImageProcessor,
    ConvNextModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from crate_mae_hf import CrateMaeForPreTraining, CrateMaeImageProcessor

SCRIPT = Path(__file__).parents[1] / "examples" / "run_linear_probe.py"


@pytest.fixture
def images(tmp_path) -> Path:
    """Two classes, stripes along rows and along columns."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 8)):
        for kind in ("rows", "columns"):
            folder = tmp_path / "images" / split / kind
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 200, (32, 32))
                pixels[::4] += 50
                pixels = pixels if kind == "rows" else pixels.T
                PIL.Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.png")
    return tmp_path / "images"


@pytest.fixture
def checkpoint(tmp_path, config) -> Path:
    CrateMaeForPreTraining(config).save_pretrained(tmp_path / "model")
    CrateMaeImageProcessor.from_config(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def run(run_script, images, tmp_path):
    """Run the script in this process and return the results."""

    def run(*models, output="out", flags=()):
        command = ["--model_name_or_path", *models, "--output_dir", tmp_path / output]
        command += ["--train_dir", images / "train", "--validation_dir", images / "test"]
        command += ["--cache_dir", tmp_path / "datasets", "--k", "5"]
        command += ["--feature_cache_dir", tmp_path / "features", "--device", "cpu", *flags]
        run_script(SCRIPT, *command)
        return json.loads((tmp_path / output / "results.json").read_text())

    return run


def test_a_comparison(run, checkpoint, tmp_path, capsys):
    vit = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    ViTModel(vit).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    ConvNextModel(ConvNextConfig(hidden_sizes=[4, 4, 8, 8], depths=[1, 1, 1, 1])).save_pretrained(tmp_path / "convnext")
    ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0).save_pretrained(tmp_path / "convnext")
    results = run(checkpoint, tmp_path / "vit", tmp_path / "convnext", flags=["--random_init", "--raw_pixels"])
    found = [(Path(row["model"]).name, row.get("weights"), row["features"], row["width"]) for row in results["results"]]
    tokens = [("cls", 1), ("mean", 1), ("cls_mean", 2), ("grid", 4)]
    assert found == [
        (name, weights, kind, times * width)
        for name, width, kinds in (("model", 32, tokens), ("vit", 16, tokens), ("convnext", 8, [("mean", 1)]))
        for weights in ("trained", "random")
        for kind, times in kinds
    ] + [("raw pixels", None, "pixels", 3 * 32 * 32)]
    assert all(0 <= row[probe] <= 1 for row in results["results"] for probe in ("linear", "knn"))
    assert results["images"]["classes"] == ["columns", "rows"]
    assert results["versions"]["transformers"]
    assert "raw pixels" in capsys.readouterr().out
    assert re.search(r"^\| probes: seed +\| 0 \|$", (tmp_path / "out" / "results.md").read_text(), re.MULTILINE)


def test_the_type_that_is_measured_is_recorded(run, checkpoint, capsys):
    results = run(checkpoint, flags=["--features", "mean", "--dtype", "auto", "--num_workers", "0"])
    dtype = results["probes"]["dtype"]
    assert dtype in ("float32", "bfloat16")
    assert f"Models run in {dtype}." in capsys.readouterr().out


def test_accuracy_is_that_of_scikit_learn_on_the_same_features(run, checkpoint, images):
    (row,) = run(checkpoint, flags=["--features", "mean", "--layer", "2", "--norm", "false"])["results"]
    model, processor = AutoModel.from_pretrained(checkpoint), CrateMaeImageProcessor.from_pretrained(checkpoint)
    features, labels = {}, {}
    for split in ("train", "test"):
        paths = sorted((images / split).rglob("*.png"))
        pixel_values = processor([PIL.Image.open(path) for path in paths], return_tensors="pt").pixel_values
        with torch.no_grad():
            states = model(pixel_values, output_hidden_states=True).hidden_states[2]
        features[split] = states[:, 1:].mean(1).numpy()
        labels[split] = [path.parent.name for path in paths]
    scaler = StandardScaler().fit(features["train"])
    fitted = LogisticRegression(C=row["C"], tol=1e-3, max_iter=1000).fit(
        scaler.transform(features["train"]), labels["train"]
    )
    assert row["linear"] == fitted.score(scaler.transform(features["test"]), labels["test"])
    assert (row["layer"], row["norm"]) == ("2", "no")


@pytest.mark.parametrize("flags", [[], ["--validation_split_name", "validation"]])
def test_the_validation_folder_is_what_is_tested_on(run, checkpoint, images, caplog, flags):
    described = run(checkpoint, flags=["--features", "mean", *flags])["images"]
    assert (described["train images"], described["test images"]) == (40, 16)
    assert described["train images from"] == f"the folder {images / 'train'}"
    assert described["test images from"] == f"the folder {images / 'test'}"
    assert "Training on 40 images of the folder " in caplog.text


def test_the_cache_is_used_until_something_changes(run, checkpoint, images, tmp_path):
    first = run(checkpoint)["results"]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()}
    assert len(kept) == 2
    assert run(checkpoint, output="again")["results"] == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()} == kept

    PIL.Image.new("L", (32, 32), 7).save(images / "test" / "rows" / "00.png")  # in place, under the same name
    run(checkpoint, output="data")
    assert len(list((tmp_path / "features").iterdir())) == 3
    model = CrateMaeForPreTraining.from_pretrained(checkpoint)
    model.crate_mae.layernorm.weight.data[0] *= 2
    model.save_pretrained(checkpoint)
    run(checkpoint, output="weights")
    assert len(list((tmp_path / "features").iterdir())) == 5
    CrateMaeImageProcessor.from_config(model.config, [0.4] * 3).save_pretrained(checkpoint)
    run(checkpoint, output="preprocessing")
    assert len(list((tmp_path / "features").iterdir())) == 7
    run(checkpoint, output="uncached", flags=["--no_feature_cache", "--seed", "1"])
    assert len(list((tmp_path / "features").iterdir())) == 7


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--features", "mean", "avg"], "`features` must be of cls, mean, cls_mean, grid, lightness, color, got avg"),
        (["--layer", "first"], "`layer` must be an integer or \"last\", got 'first'"),
        (["--layer", "4"], "`layer` must lie in [-4, 3]"),
        (["--k", "0"], "`k` must be at least 1, got 0"),
        (["--k", "41"], "`k` must be at most 40"),
        (["--few_labels", "20", "41"], "`few_labels` 41: `count` must lie in [1, 40]"),
        (["--temperature", "0"], "`temperature` must be positive"),
        (["--device", "nowhere"], "`device` nowhere"),
        (["--label_column_name", "class"], "`label_column_name`: there is no column 'class'"),
    ],
)
def test_bad_input_ends_with_one_line(run, checkpoint, flags, message):
    with pytest.raises(SystemExit, match=f"^error: .*{re.escape(message)}"):
        run(checkpoint, flags=flags)


def test_a_missing_model_is_reported_first(run, checkpoint, tmp_path):
    with pytest.raises(SystemExit, match=r"^error: `model_name_or_path`: cannot load .*nowhere"):
        run(checkpoint, tmp_path / "nowhere")
    assert list((tmp_path / "features").iterdir()) == []


def test_results_are_not_overwritten(run, checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.md").write_text("mine")
    with pytest.raises(SystemExit, match="is not empty"):
        run(checkpoint)
    assert (tmp_path / "out" / "results.md").read_text() == "mine"
    run(checkpoint, flags=["--overwrite_output_dir"])
