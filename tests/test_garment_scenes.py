"""examples/data/garment_scenes.py as a user runs it."""

import runpy
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "data" / "garment_scenes.py"


def test_a_later_garment_covers_those_before():
    draw_scene = runpy.run_path(str(SCRIPT))["draw_scene"]
    pixels = np.zeros((2, 28, 28), dtype=np.uint8)
    pixels[0], pixels[1, 14:] = 100, 200
    garments = [
        {"image": PIL.Image.fromarray(each), "label": label} for each, label in zip(pixels, (3, 7), strict=True)
    ]
    covered = 0
    for seed in range(20):
        scene, mask = map(np.asarray, draw_scene(garments, 28, np.random.default_rng(seed)))  # all in one place
        assert np.array_equal(mask, np.select([scene == 100, scene == 200], [4, 8]))
        covered += len(np.unique(mask)) == 2 and 0 not in mask
    assert covered  # half a garment shows above the other
    wide, mask = map(np.asarray, draw_scene(garments, 40, np.random.default_rng(0)))
    assert wide.shape == (40, 40)
    assert np.array_equal(mask, np.select([wide == 100, wide == 200], [4, 8]))


def test_scenes_by_seed(run_script, tmp_path, capsys):
    masks = {}
    for name, flags in {"first": [], "again": [], "other": ["--seed", 1]}.items():
        run_script(SCRIPT, "--num_train", 10, "--num_test", 100, "--output_dir", tmp_path / name, *flags)
        scenes = datasets.load_dataset(str(tmp_path / name), split="test", cache_dir=str(tmp_path / "cache"))
        pairs = [(np.asarray(row["image"]), np.asarray(row["label"])) for row in scenes.select(range(20))]
        assert all(image.shape == mask.shape == (56, 56) for image, mask in pairs)
        assert all(np.array_equal(image > 0, mask > 0) for image, mask in pairs)
        masks[name] = np.stack([mask for _, mask in pairs])
    assert len(scenes) == 100
    assert set(np.unique(masks["first"])) == set(range(11))
    assert np.array_equal(masks["first"], masks["again"])
    assert not np.array_equal(masks["first"], masks["other"])
    assert f"{tmp_path / 'other' / 'train.parquet'}: 10 scenes of 56 x 56 pixels" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="`size` must be at least 28, the size of a garment, got 20"):
        run_script(SCRIPT, "--size", 20, "--output_dir", tmp_path / "small")
    with pytest.raises(SystemExit, match="`num_train` and `num_test` must be positive, got 0 and 500"):
        run_script(SCRIPT, "--num_train", 0, "--output_dir", tmp_path / "none")
    with pytest.raises(SystemExit, match="is not empty"):
        run_script(SCRIPT, "--output_dir", tmp_path / "first")
