"""examples/data/hold_out.py as a user runs it."""

import gzip
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest

DATA = Path(__file__).parents[1] / "examples" / "data"


def read(folder: Path, cache: Path, split: str) -> datasets.Dataset:
    dataset = datasets.load_dataset(str(folder), split=split, cache_dir=str(cache))
    return dataset.cast_column("image", datasets.Image(decode=False))


def pictures(dataset: datasets.Dataset) -> set[tuple[bytes, int]]:
    return {(image["bytes"], label) for image, label in zip(dataset["image"], dataset["label"], strict=True)}


def test_training_images_are_held_out_by_class_and_seed(run_script, tmp_path, capsys):
    splits = {}
    for name, flags in {"first": [], "again": [], "other": ["--seed", 1]}.items():
        run_script(DATA / "hold_out.py", "--output_dir", tmp_path / name, *flags)
        splits[name] = {split: read(tmp_path / name, tmp_path / "cache", split) for split in ("train", "test")}
    assert f"{tmp_path / 'first' / 'test.parquet'}: 1500 images" in capsys.readouterr().out
    train, test = splits["first"]["train"], splits["first"]["test"]
    assert set(Counter(train["label"][:]).values()) == {850}
    assert set(Counter(test["label"][:]).values()) == {150}
    bundled = read(DATA / "fashion_mnist_sample", tmp_path / "cache", "train")
    assert train.features == bundled.features
    assert pictures(train) | pictures(test) == pictures(bundled)
    assert not pictures(train) & pictures(test)
    assert pictures(splits["again"]["test"]) == pictures(test) != pictures(splits["other"]["test"])
    with pytest.raises(SystemExit, match="is not empty"):
        run_script(DATA / "hold_out.py", "--output_dir", tmp_path / "first")


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + values.tobytes(), compresslevel=1))


@pytest.fixture
def source(tmp_path) -> Path:
    """The files of Fashion-MNIST: five bundled test images, ten bundled training images, and 10,003 that are noise."""
    bundled = datasets.load_dataset(str(DATA / "fashion_mnist_sample"))
    known = [*bundled["test"][:5]["image"], *bundled["train"][:10]["image"]]
    noise = np.random.default_rng(0).integers(0, 256, (10_003, 28, 28), dtype=np.uint8)
    images = np.concatenate([[np.asarray(image) for image in known], noise])
    (tmp_path / "source").mkdir()
    write_idx(tmp_path / "source" / "train-images-idx3-ubyte.gz", images)
    write_idx(tmp_path / "source" / "train-labels-idx1-ubyte.gz", np.arange(len(images), dtype=np.uint8) % 10)
    return tmp_path / "source"


def test_all_of_fashion_mnist_without_the_test_images(run_script, source, tmp_path, capsys):
    run_script(DATA / "fashion_mnist.py", "--source", source, "--output_dir", tmp_path / "all")
    assert "10013 training images (5 left out) and 2000 test images written." in capsys.readouterr().out
    written = {split: read(tmp_path / "all", tmp_path / "cache", split) for split in ("train", "test")}
    bundled = read(DATA / "fashion_mnist_sample", tmp_path / "cache", "test")
    assert pictures(written["test"]) == pictures(bundled)
    assert written["train"].features == bundled.features
    assert written["train"]["label"][:3] == [5, 6, 7]

    run_script(DATA / "hold_out.py", "--others", tmp_path / "all", "--output_dir", tmp_path / "held_out")
    parts = {split: read(tmp_path / "held_out", tmp_path / "cache", split) for split in ("train", "test")}
    sample = read(DATA / "fashion_mnist_sample", tmp_path / "cache", "train")
    assert len(parts["train"]) == len(parts["test"]) == 10_000
    assert pictures(parts["train"]) == pictures(sample)
    assert not pictures(parts["test"]) & pictures(sample)

    (source / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x05ab"))
    with pytest.raises(SystemExit, match=r"train-images-idx3-ubyte\.gz is no IDX file of unsigned bytes"):
        run_script(DATA / "fashion_mnist.py", "--source", source, "--output_dir", tmp_path / "new")
    with pytest.raises(SystemExit, match=r"`source`: cannot read .*nowhere"):
        run_script(DATA / "fashion_mnist.py", "--source", tmp_path / "nowhere", "--output_dir", tmp_path / "new")
    with pytest.raises(SystemExit, match=r"`others` must be a dataset that fashion_mnist\.py made"):
        run_script(DATA / "hold_out.py", "--others", tmp_path / "new", "--output_dir", tmp_path / "new")
