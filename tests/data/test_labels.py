from collections import Counter

import datasets
import numpy as np
import PIL.Image
import pytest

from crate_mae_hf.data.labels import LabelledDataArguments, load_labelled_datasets


def picture(number: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8))


@pytest.fixture
def write(tmp_path):
    """Write splits, each a list of labels or a dictionary of columns, as parquet files; return their folder."""

    def write(feature=None, **splits):
        for split, columns in splits.items():
            columns = columns if isinstance(columns, dict) else {"label": columns}
            size = len(next(iter(columns.values())))
            dataset = datasets.Dataset.from_dict({**columns, "picture": [picture(index) for index in range(size)]})
            for name in columns if feature is not None else ():
                dataset = dataset.cast_column(name, feature)
            dataset.to_parquet(tmp_path / "data" / f"{split}.parquet")
        return str(tmp_path / "data")

    return write


@pytest.fixture
def load(tmp_path):
    def load(folder=None, seed=0, **arguments):
        if folder is not None:
            arguments["dataset_name"] = folder
        args = LabelledDataArguments(cache_dir=str(tmp_path / "cache"), **arguments)
        images = load_labelled_datasets(args, (4, 4), seed)
        return images.train, images.test, images.class_names

    return load


def labels(dataset) -> list[int]:
    return dataset["label"][:]


@pytest.mark.parametrize(
    ("train", "test", "names", "numbers"),
    [
        (["dog", "cat", "dog", "ant"], ["cat", "ant"], ["ant", "cat", "dog"], [2, 1, 2, 0]),
        ([7, -3, 100, 7], [100], ["-3", "7", "100"], [1, 0, 2, 1]),
        ([True, False, True], [True], ["False", "True"], [1, 0, 1]),
    ],
)
def test_labels_of_any_kind_become_numbers(load, write, train, test, names, numbers):
    train_set, test_set, found = load(write(train=train, validation=test))
    assert found == names
    assert labels(train_set) == numbers
    assert [names[number] for number in labels(test_set)] == [str(label) for label in test]
    assert train_set.column_names == ["image", "label"]
    assert set(train_set[0]["image"]) == {"bytes", "path"}


def test_declared_classes_keep_their_numbers(load, write):
    feature = datasets.ClassLabel(names=["zebra", "unused", "ant"])
    folder = write(feature, train={"species": [0, 2, 0]}, validation={"species": [2]})
    train, test, names = load(folder)
    assert (labels(train), labels(test), names) == ([0, 2, 0], [2], ["zebra", "unused", "ant"])


def test_which_column(load, write):
    folder = write(train={"labels": ["a", "b"], "other": ["x", "y"]}, validation={"labels": ["a"], "other": ["x"]})
    assert load(folder)[2] == ["a", "b"]
    assert load(folder, label_column_name="other")[2] == ["x", "y"]
    with pytest.raises(ValueError, match="`label_column_name`: there is no column 'label', but labels, other, picture"):
        load(folder, label_column_name="label")
    with pytest.raises(ValueError, match="`label_column_name`: the column 'picture' holds Image"):
        load(folder, label_column_name="picture")


def test_folders_are_classes(load, tmp_path):
    for split in ("train", "val"):
        for index, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                picture(number + 3 * index).save(tmp_path / split / name / f"{number}.png")
    folders = {"train_dir": str(tmp_path / "train"), "validation_dir": str(tmp_path / "val")}
    train, test, names = load(**folders)
    assert names == ["cat", "dog"]
    assert Counter(labels(train)) == Counter(labels(test)) == {0: 3, 1: 3}
    assert all(("cat", "dog")[record["label"]] in record["image"]["path"] for record in train)

    (tmp_path / "train" / "dog" / "3.png").write_bytes(b"no image")
    assert Counter(labels(load(**folders, skip_bad_images=True)[0])) == {0: 3, 1: 3}

    picture(0).save(tmp_path / "val" / "stray.png")
    with pytest.raises(ValueError, match=r"1 of 7 images of the folder .*val have no label .*stray\.png"):
        load(**folders)


def test_a_part_of_each_class_is_held_out(load, write):
    folder = write(train=["a"] * 20 + ["b"] * 10)
    train, test, _ = load(folder, train_val_split=0.2)
    assert (Counter(labels(train)), Counter(labels(test))) == ({0: 16, 1: 8}, {0: 4, 1: 2})
    images = [{record["image"]["bytes"] for record in part} for part in (train, test)]
    assert images[0].isdisjoint(images[1])
    again, other = (load(folder, train_val_split=0.2, seed=seed)[1] for seed in (0, 1))
    assert again[:] == test[:] != other[:]
    with pytest.raises(ValueError, match=r"`train_val_split` 0\.03 of 30 images: .*number of classes = 2"):
        load(folder, train_val_split=0.03)
    with pytest.raises(ValueError, match="`train_val_split` must lie between 0 and 1, got 1"):
        load(folder, train_val_split=1)
    with pytest.raises(ValueError, match="`train_val_split`: none of class 'b' can be held out"):
        load(write(train=["a"] * 20 + ["b"]))


def test_fewer_images_are_drawn_from_all_classes(load, write):
    folder = write(train=["a"] * 50 + ["b"] * 50, validation=["a"] * 50 + ["b"] * 50)
    train, test, names = load(folder, max_train_samples=20, max_eval_samples=10)
    assert (len(train), len(test), names) == (20, 10, ["a", "b"])
    assert set(labels(train)) == set(labels(test)) == {0, 1}
    assert load(folder, max_train_samples=500)[0].num_rows == 100


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": {"kind": ["a", "b"]}}, "`label_column_name` is needed: none of the columns kind, picture is named"),
        (
            {"train": ["a", "b"], "validation": ["a", "c"]},
            "'c' in the column 'label' of the split 'validation' is the class of no image in 'train'",
        ),
        ({"train": ["a"] * 4}, "all images in the split 'train' have the class 'a' in the column 'label'"),
        (
            {"train": ["a", None, "b"]},
            r"1 of 3 images of the split 'train' of .*data have no label in the column 'label': 1\.",
        ),
        ({"train": [None, None]}, "2 of 2 images of the split 'train' of .*data have no label"),
        ({"train": [0.0, 1.0]}, "the column 'label' holds float64; one class an image is needed"),
        ({"train": [["a", "b"], ["a"]]}, "the column 'label' holds List; one class an image is needed"),
    ],
)
def test_mistakes_in_labels(load, write, splits, message):
    with pytest.raises(ValueError, match=message):
        load(write(**splits))


def test_hidden_labels_are_no_class(load, write):
    folder = write(datasets.ClassLabel(names=["a", "b"]), train=[0, 1], validation=[-1, -1])
    with pytest.raises(ValueError, match=r"2 of 2 images of the split 'validation' of .*data have no label"):
        load(folder)
