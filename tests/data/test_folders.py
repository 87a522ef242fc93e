"""Folders of images as users have them: names with brackets, links, hidden and odd folders, splits."""

import os
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest

from crate_mae_hf.data.folders import find_images, read_folder
from crate_mae_hf.data.images import ImageArguments, load_dataset, load_splits


def write(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / name)
    return folder


def found(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in find_images(folder)]


@pytest.fixture
def load(tmp_path):
    """The paths of all images that a dataset has, by split."""

    def load(folder: Path, **options) -> dict[str, list[str]]:
        args = ImageArguments(dataset_name=str(folder), cache_dir=str(tmp_path / "cache"))
        splits = load_dataset(args, **options)
        undecoded = {name: split.cast_column("image", datasets.Image(decode=False)) for name, split in splits.items()}
        return {
            name: [str(Path(row["image"]["path"]).relative_to(folder)) for row in split]
            for name, split in undecoded.items()
        }

    return load


PLAIN = ("b.png", "a/1.png", "a/0.png", "a-b/0.png", "a b/0.jpg", "A/0.PNG", "a/c/10.png", "a/c/9.png", "é/0.png")


def test_plain_folders_have_the_order_of_datasets(tmp_path):
    folder = write(tmp_path / "images", *PLAIN)
    files = {"train": str(folder / "**")}
    dataset = datasets.load_dataset("imagefolder", data_files=files, cache_dir=str(tmp_path / "cache"))["train"]
    records = dataset.cast_column("image", datasets.Image(decode=False))["image"]
    assert [str(path) for path in find_images(folder)] == [record["path"] for record in records]


@pytest.mark.parametrize("name", ["photos[12]", "photos*", "photos?", "[!a]", "{a,b}", "~"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_path_is_no_pattern(load, tmp_path, name, streaming):
    for other in ("photos1", "photos2", "b", "a"):
        write(tmp_path / other, "0.png", "1.png")
    folder = write(tmp_path / name, "x/0.png", "y/1.png", "y/2.png")
    assert found(folder) == ["x/0.png", "y/1.png", "y/2.png"]
    assert load(folder, streaming=streaming) == {"train": ["x/0.png", "y/1.png", "y/2.png"]}
    args = ImageArguments(train_dir=str(folder), validation_dir=str(folder), cache_dir=str(tmp_path / "cache"))
    assert [len(list(split.dataset)) for split in load_splits(args, streaming)] == [3, 3]


def test_shards_in_a_folder_with_a_pattern_for_a_name_are_refused(load, tmp_path):
    for name in ("data[1]", "data1"):
        table = datasets.Dataset.from_dict({"image": [PIL.Image.new("RGB", (12, 12))]})
        table.to_parquet(tmp_path / name / "train.parquet")
    with pytest.raises(ValueError, match=r"`dataset_name`: .*data\[1\] as a pattern: rename the folder"):
        load(tmp_path / "data[1]")


def test_links_are_followed_once(tmp_path, caplog):
    write(tmp_path / "elsewhere" / "dog", "0.png", "1.png")
    folder = write(tmp_path / "images", "cat/0.png", "file.png")
    (folder / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    (folder / "linked.png").symlink_to(tmp_path / "elsewhere" / "dog" / "0.png")
    (folder / "gone.png").symlink_to(tmp_path / "gone.png")
    (folder / "again").symlink_to("cat")
    (folder / "cat" / "around").symlink_to("..")
    (folder / "cat" / "further").symlink_to(tmp_path)
    expected = ["cat/0.png", "dog/0.png", "dog/1.png", "file.png", "gone.png", "linked.png"]
    assert found(folder) == expected
    for name in ("again", "around", "further"):
        assert f"/{name}: it links to a folder" in caplog.text
    (tmp_path / "link").symlink_to(folder)
    assert found(tmp_path / "link") == expected


def test_what_is_left_out_is_named(tmp_path, caplog):
    folder = write(tmp_path / ".images", "__other__/0.png", "a/.hidden.png", ".b/0.png", "a/0.png", "a/d.e/0.png")
    (folder / "notes.txt").write_text("about these images")
    (folder / ".DS_Store").write_text("")
    (folder / "metadata.csv").write_text("")
    assert found(folder) == ["__other__/0.png", "a/0.png", "a/d.e/0.png"]
    assert "Left out 2 hidden images in " in caplog.text
    assert "Left out 1 files that are no images in " in caplog.text
    for name in (".hidden.png", ".b/0.png", "notes.txt"):
        assert name in caplog.text


def test_a_name_that_is_no_text_is_an_error(tmp_path):
    folder = write(tmp_path / "images", "0.png")
    try:
        os.rename(folder / "0.png", os.fsencode(folder) + b"/\xff.png")
    except OSError:
        pytest.skip("names are text on this system")
    with pytest.raises(ValueError, match=r"`images`: the path '.*udcff\.png' is not in UTF-8"):
        find_images(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="may read everything")
def test_a_folder_that_cannot_be_read_is_an_error(tmp_path):
    folder = write(tmp_path / "images", "a/0.png", "b/0.png")
    (folder / "b").chmod(0)
    with pytest.raises(ValueError, match=r"`train_dir`: cannot read the folder .*b: Permission denied"):
        read_folder(folder, "train_dir")


@pytest.mark.parametrize(
    "names",
    [
        ("train/a/0.png", "train/b/1.png", "test/a/0.png", "validation/a/0.png"),
        ("data/my-train-2/0.png", "data/val/x.png", "data/train_old/0.png"),
        ("Train/0.png", "trains/0.png", "a/0.png"),
    ],
)
def test_splits_are_those_of_datasets(load, tmp_path, names):
    folder = write(tmp_path / "images", *names)
    splits = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {name: len(paths) for name, paths in load(folder).items()} == {n: len(split) for n, split in splits.items()}


def test_images_in_no_split_are_named(load, tmp_path, caplog):
    folder = write(tmp_path / "images", "train/0.png", "test/0.png", "extra/0.png")
    assert load(folder) == {"train": ["train/0.png"], "test": ["test/0.png"]}
    assert "Left out 1 images" in caplog.text
    assert "extra/0.png" in caplog.text
