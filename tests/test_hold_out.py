"""examples/data/hold_out.py as a user runs it."""

from collections import Counter
from pathlib import Path

import datasets
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
