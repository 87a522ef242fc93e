"""examples/retrieve.py as a user runs it: on folders of images, with a tiny model."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from sklearn.metrics.pairwise import cosine_distances
from transformers import AutoImageProcessor, AutoModel

SCRIPT = Path(__file__).parents[1] / "examples" / "retrieve.py"


@pytest.fixture
def images(tmp_path) -> Path:
    """Two classes, dark and light, in a gallery and as queries."""
    generator = np.random.default_rng(0)
    for folder, count in (("gallery", 5), ("queries", 2)):
        for level, name in enumerate(("dark", "light")):
            (tmp_path / folder / name).mkdir(parents=True)
            for number in range(count):
                pixels = (generator.integers(0, 60, (32, 32, 3)) + 180 * level).astype(np.uint8)
                PIL.Image.fromarray(pixels).save(tmp_path / folder / name / f"{number}.png")
    return tmp_path


@pytest.fixture
def run(run_script, pretrained, images, tmp_path):
    """Run the script in this process and return what it found."""

    def run(*flags, output="out"):
        folders = ["--gallery", images / "gallery", "--queries", images / "queries", "--output_dir", tmp_path / output]
        flags = ("--model_name_or_path", pretrained, "--feature_cache_dir", tmp_path / "features", *flags)
        run_script(SCRIPT, *folders, "--k", 3, *flags)
        return json.loads((tmp_path / output / "neighbours.json").read_text())

    return run


def encode(folder: Path, paths: list[str]) -> np.ndarray:
    processor, model = AutoImageProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder)
    pixel_values = processor([PIL.Image.open(path) for path in paths], return_tensors="pt").pixel_values
    with torch.no_grad():
        return model(pixel_values).last_hidden_state[:, 1:].mean(1).numpy()


def test_the_nearest_are_found(run, pretrained, images, tmp_path, capsys):
    found = run()
    assert "4 queries among 10 images" in capsys.readouterr().out
    gallery = sorted(map(str, (images / "gallery").rglob("*.png")))
    expected = cosine_distances(
        encode(pretrained, [each["image"] for each in found["found"]]), encode(pretrained, gallery)
    )
    for row, query in zip(expected, found["found"], strict=True):
        assert [each["image"] for each in query["neighbours"]] == [gallery[index] for index in row.argsort()[:3]]
        assert [each["distance"] for each in query["neighbours"]] == pytest.approx(np.sort(row)[:3].tolist(), abs=1e-5)
    hits = [each["label"] == query["label"] for query in found["found"] for each in query["neighbours"]]
    assert found["precision_at_3"] == pytest.approx(np.mean(hits), abs=1e-4)
    assert found["precision_at_1"] == pytest.approx(np.mean(hits[::3]), abs=1e-4)
    assert found["chance"] == 0.5
    with PIL.Image.open(tmp_path / "out" / "neighbours.png") as picture:
        colors = {color for _, color in picture.convert("RGB").getcolors(picture.width * picture.height)}
    assert ((44, 160, 44) in colors) == any(hits)
    assert ((214, 39, 40) in colors) == (not all(hits))


def test_an_image_is_not_its_own_neighbour(run, images):
    for query in run("--queries", images / "gallery")["found"]:
        assert len(query["neighbours"]) == 3
        assert query["image"] not in [each["image"] for each in query["neighbours"]]


def test_images_without_labels(run, images, tmp_path, capsys):
    (tmp_path / "flat").mkdir()
    for number, path in enumerate((images / "gallery").rglob("*.png")):
        path.rename(tmp_path / "flat" / f"{number}.png")
    found = run("--gallery", tmp_path / "flat", "--features", "cls_mean")
    assert "precision_at_1" not in found
    assert "label" not in found["found"][0]["neighbours"][0]
    assert "no labels to compare with" in capsys.readouterr().out


def test_bad_input_ends_with_one_line(run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"^error: `gallery`: .*empty"):
        run("--gallery", tmp_path / "empty")
    with pytest.raises(SystemExit, match=r"^error: `queries`: there is no split 'dev', but train"):
        run("--query_split", "dev")
    with pytest.raises(SystemExit, match=r"^error: `k` must be at most 10, the number of images to look among, got 11"):
        run("--k", 11)
    with pytest.raises(SystemExit, match=r"^error: `num_drawn` must be at least 1, got 0"):
        run("--num_drawn", 0)
    with pytest.raises(SystemExit, match=r"^error: `num_workers` must not be negative, got -1"):
        run("--num_workers", -1)
    with pytest.raises(SystemExit, match=r"^error: `features`: .* has no color; all models have the mean"):
        run("--features", "color")
    assert not (tmp_path / "out").exists()
