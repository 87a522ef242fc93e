"""Metadata files beside images: pre-training sees every image, labels come from them or from folders."""

import datasets
import numpy as np
import PIL.Image
import pytest

from crate_mae_hf.data.images import ImageArguments, load_splits
from crate_mae_hf.data.labels import LabelledDataArguments, load_labelled_datasets


@pytest.fixture
def folder(tmp_path):
    """Eight images of each of two classes."""
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng(number + 8 * label).integers(0, 256, (12, 12), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def load(folder, tmp_path):
    """The class of each image by its path."""

    def load(**arguments) -> dict[str, str]:
        cache_dir = str(tmp_path / "cache")
        splits = load_splits(ImageArguments(train_dir=str(folder), cache_dir=cache_dir))
        assert len(splits[0].dataset) == 16  # whatever the metadata says
        args = LabelledDataArguments(train_dir=str(folder), cache_dir=cache_dir, train_val_split=0.3, **arguments)
        images = load_labelled_datasets(args, (4, 4), 0)
        rows = [row for part in (images.train, images.test) for row in part]
        start = len(str(folder)) + 1
        return {row["image"]["path"][start:]: images.class_names[row["label"]] for row in rows}

    return load


NAMES = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(8)]


def test_folders_are_the_labels_where_metadata_has_none(load, folder):
    (folder / "cat" / "metadata.csv").write_text("file_name,note\n" + "".join(f"{n}.png,x\n" for n in range(8)))
    expected = {name: name[:3] for name in NAMES}
    assert load() == expected
    lines = [f"dog/{number}.png,{number % 2}" for number in range(8)]
    (folder / "metadata.csv").write_text("file_name,site\n" + "\n".join(lines))
    assert load() == expected
    with pytest.raises(
        ValueError, match=r"8 of 16 images of the folder .* have no label in the column 'site': .*cat/0"
    ):
        load(label_column_name="site")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_labels_from_metadata(load, folder, kind):
    labels = {name: f"kind {number % 2}" for number, name in enumerate(NAMES)}
    table = datasets.Dataset.from_dict({"file_name": list(labels), "label": list(labels.values())})
    file = folder / f"metadata.{kind}"
    {"csv": table.to_csv, "jsonl": table.to_json, "parquet": table.to_parquet}[kind](str(file))
    assert load() == labels


def test_labels_from_one_file_in_each_folder(load, folder):
    for name in ("cat", "dog"):
        lines = [f"{number}.png,{number % 2}" for number in range(8)]
        (folder / name / "metadata.csv").write_text("file_name,label\n" + "\n".join(lines))
    assert load() == {name: str(int(name[4]) % 2) for name in NAMES}


def test_images_without_a_row_are_counted_and_named(load, folder):
    rows = "\n".join(f"{name},{number % 2}" for number, name in enumerate(NAMES[:-4]))
    (folder / "metadata.csv").write_text(f"file_name,label\n{rows}")
    for arguments in ({}, {"skip_bad_images": True}):  # they are not bad
        with pytest.raises(
            ValueError, match=r"4 of 16 images of the folder .* have no label .*dog/4\.png'.*dog/7\.png"
        ):
            load(**arguments)


def test_rows_without_an_image_are_counted_and_named(load, folder, caplog):
    rows = "\n".join(f"{name},{number % 2}" for number, name in enumerate([*NAMES, "cat/gone.png"]))
    (folder / "metadata.csv").write_text(f"file_name,label\n{rows}")
    with pytest.raises(ValueError, match=r"`train_dir`: 1 of 17 rows of metadata name no image in .*cat/gone\.png"):
        load()
    assert len(load(skip_bad_images=True)) == 16
    assert "cat/gone.png" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name;label\ncat/0.png;a\n", "has no column `file_name`, but file_name;label"),
        ("image,label\ncat/0.png,a\n", "has no column `file_name`, but image, label"),
        ("", "Cannot read .*Empty CSV"),
        ("file_name,label\ncat/0.png,a,b\n", "Cannot read .*Expected 2 columns"),
        ("file_name,label\ncat/0.png,a\ncat/0.png,b\n", r"second to say something about .*cat/0\.png, in row 1"),
        ("file_name,label\ncat/0.png,a\n,b\n", "names no image in row 1, but None"),
    ],
)
def test_errors_name_the_file(load, folder, text, message):
    (folder / "metadata.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load()
    assert "metadata.csv" in str(caught.value)
