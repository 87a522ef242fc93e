"""examples/data/photo_patches.py as a user runs it, on pictures that stand in for scikit-image's."""

import importlib.util
import runpy
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "data" / "photo_patches.py"
NAMES = runpy.run_path(str(SCRIPT))["SCIKIT_IMAGE"]


@pytest.fixture
def source(tmp_path) -> Path:
    """Pictures with a red left and a blue right half."""
    (tmp_path / "source").mkdir()
    pixels = np.zeros((120, 200, 3), dtype=np.uint8)
    pixels[:, :100, 0] = pixels[:, 100:, 2] = 200
    for name in NAMES:
        PIL.Image.fromarray(pixels).save(tmp_path / "source" / name)
    return tmp_path / "source"


def test_halves_of_every_photograph(run_script, source, tmp_path, capsys):
    run_script(SCRIPT, "--source", source, "--output_dir", tmp_path / "out")
    assert "train.parquet: 8000 patches of 8 photographs" in capsys.readouterr().out
    for split, number, channel in (("train", 1000, 0), ("test", 250, 2)):
        patches = datasets.load_dataset(str(tmp_path / "out"), split=split, cache_dir=str(tmp_path / "cache"))
        names = patches.features["label"].names
        assert names == [*(Path(name).stem for name in NAMES), "china", "flower"]
        assert Counter(patches["label"][:]) == dict.fromkeys(range(8), number)
        for image in patches.select(range(0, 6 * number, 97))["image"]:
            pixels = np.asarray(image)
            assert pixels.shape == (32, 32, 3)
            others = np.delete(pixels, channel, axis=2)
            assert pixels[..., channel].mean() > 180
            assert others.mean() < 10  # JPEG mixes colours where the halves meet
    with pytest.raises(SystemExit, match=r"`size` must be positive, and at most 100 for .*astronaut.png, got 101"):
        run_script(SCRIPT, "--source", source, "--size", 101, "--output_dir", tmp_path / "too_large")
    with pytest.raises(SystemExit, match="is not empty"):
        run_script(SCRIPT, "--source", source, "--output_dir", tmp_path / "out")


def test_photographs_that_are_not_there(run_script, source, monkeypatch, tmp_path):
    (source / NAMES[0]).unlink()
    with pytest.raises(SystemExit, match=rf"`source` lacks .*{NAMES[0]}"):
        run_script(SCRIPT, "--source", source, "--output_dir", tmp_path / "out")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"scikit-image is not installed: .* by `--source`"):
        run_script(SCRIPT, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()
