"""Labelled images: from the Hub or from folders, with classes numbered from 0."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch

from .decoding import Picture
from .folders import list_names
from .images import (
    ImageArguments,
    Split,
    drop_bad_images,
    load_splits,
    name_sources,
    say_what_is_used,
    select_image_column,
)
from .seeded import SeededDataset

# Types of a column that can hold classes; a column without any value gets an error of its own.
CLASS_TYPES = ("int", "uint", "bool", "string", "large_string", "null")


@dataclass
class LabelledDataArguments(ImageArguments):
    """Images with labels.

    In folders the name of the folder around an image is its class, unless metadata files (`metadata.csv`, `.jsonl` or
    `.parquet`, with a column `file_name`) have a column of labels.
    """

    label_column_name: str | None = field(
        default=None,
        metadata={
            "help": 'The column with the classes; when left out the one declared as such, else "label", "labels".'
        },
    )


def find_label_column(features: datasets.Features, name: str | None) -> str:
    """Return the name of the column of labels: the one asked for, the one of class labels, "label" or "labels".

    Raises:
        ValueError: If there is no such column, or what it holds cannot be one class per image.
    """
    if name is None:
        declared = (column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel))
        name = next(declared, None) or next((column for column in ("label", "labels") if column in features), None)
        if name is None:
            raise ValueError(
                f"`label_column_name` is needed: none of the columns {', '.join(features)} is named a label."
            )
    elif name not in features:
        raise ValueError(f"`label_column_name`: there is no column {name!r}, but {', '.join(features)}.")
    feature = features[name]
    kind = feature.dtype if isinstance(feature, (datasets.Value, datasets.ClassLabel)) else type(feature).__name__
    if not kind.startswith(CLASS_TYPES):
        raise ValueError(
            f"`label_column_name`: the column {name!r} holds {kind}; one class an image is needed, as a string or an "
            "integer."
        )
    return name


def read_labels(split: Split, images: datasets.Dataset, column: str) -> list[str]:
    """Return the name of each image's class.

    Args:
        split: Images with the column of labels.
        images: The same images under the name "image", for errors.
        column: Name of the column of labels.

    Raises:
        ValueError: If an image has no label; -1 stands for none where the column is declared as class labels.
    """
    dataset = split.dataset
    if column not in dataset.features:
        raise ValueError(
            f"`label_column_name`: {split.source} has no column {column!r}, but {', '.join(dataset.features)}."
        )
    feature, values = dataset.features[column], dataset[column][:]
    if isinstance(feature, datasets.ClassLabel):
        values = [None if value is None or value < 0 else feature.int2str(value) for value in values]
    if missing := [number for number, value in enumerate(values) if value is None]:
        names = [images[number]["image"]["path"] or number for number in missing[:5]] + missing[5:]
        raise ValueError(
            f"`label_column_name`: {len(missing)} of {len(values)} images of {split.source} have no label in the "
            f"column {column!r}: {list_names(names)}. In folders a label is the name of the subfolder, or stands in a "
            "metadata file."
        )
    return [str(value) for value in values]


def find_classes(feature: Any, labels: list[list[str]], column: str, splits: list[str]) -> list[str]:
    """Return the names of the classes: those declared, or those that occur, integers in their order.

    Args:
        feature: Type of the column.
        labels: Labels of the training images and, where there is a test split, of the test images.
        column: Name of the column.
        splits: Name of each split.

    Raises:
        ValueError: If there is only one class, or one that no training image has.
    """
    found = set(labels[0])
    if unknown := sorted(set(labels[-1]) - found):
        raise ValueError(
            f"`label_column_name`: {list_names(unknown)} in the column {column!r} of the split {splits[-1]!r} is the "
            f"class of no image in {splits[0]!r}."
        )
    if len(found) < 2:
        raise ValueError(
            f"`label_column_name`: all images in the split {splits[0]!r} have the class {labels[0][0]!r} in the column "
            f"{column!r}; at least two classes are needed."
        )
    if isinstance(feature, datasets.ClassLabel):
        return feature.names
    return sorted(found, key=int) if "int" in feature.dtype else sorted(found)


def limit(dataset: datasets.Dataset, max_samples: int | None, seed: int) -> datasets.Dataset:
    """Keep some images, drawn at random: folders and many datasets come sorted by class."""
    if max_samples is None or max_samples >= len(dataset):
        return dataset
    return dataset.shuffle(seed=seed).select(range(max_samples))


def hold_out(
    dataset: datasets.Dataset, share: float, seed: int, argument: str = "train_val_split"
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split images in two, with the same share of each class.

    Args:
        dataset: Images with classes in the column "label".
        share: Share of the second part.
        seed: Decides which images these are.
        argument: Name of the share in errors.

    Raises:
        ValueError: If a class or the share is too small for that.
    """
    count, label = min((count, label) for label, count in Counter(dataset["label"][:]).items())
    if count < 2:
        name = dataset.features["label"].int2str(label)
        raise ValueError(f"`{argument}`: none of class {name!r} can be held out, there is one image of it.")
    try:
        parts = dataset.train_test_split(share, seed=seed, stratify_by_column="label")
    except ValueError as error:
        raise ValueError(f"`{argument}` {share} of {len(dataset)} images: {error}.") from error
    return parts["train"], parts["test"]


@dataclass
class LabelledImages:
    """Images with their classes.

    Attributes:
        train: Images to learn from, undecoded (`bytes` and `path`) in the column "image", with a number in "label".
        test: Images to test on, in the same columns.
        class_names: Name of each class.
        sources: Where the "train" and the "validation" images come from, in words.
    """

    train: datasets.Dataset
    test: datasets.Dataset
    class_names: list[str]
    sources: dict[str, str]


def load_labelled_datasets(args: LabelledDataArguments, min_size: tuple[int, int], seed: int) -> LabelledImages:
    """Load the training and the test images that the arguments name, with their labels, and say what they are.

    Strings and integers of any kind become 0 to n - 1; the names of a column that is declared as class labels keep
    their numbers. Where there is no test split, a part of each class is held out of the training images.

    Args:
        args: Arguments that name the images.
        min_size: Smallest usable (height, width), the size of a patch, for `skip_bad_images`.
        seed: Decides which images `max_train_samples` and `max_eval_samples` keep, and which are held out.

    Raises:
        ValueError: If the arguments do not fit each other or the data: among others where there is no label column, it
            holds decimal numbers or nothing, there is only one class, or one that no training image has.
    """
    if not 0 < args.train_val_split < 1:
        raise ValueError(f"`train_val_split` must lie between 0 and 1, got {args.train_val_split}.")
    train_split, test_split = load_splits(args, with_labels=True)
    splits = [train_split] if test_split is None else [train_split, test_split]
    images = [select_image_column(split.dataset, args.image_column_name) for split in splits]
    features = train_split.dataset.features
    column = find_label_column(features, args.label_column_name)
    labels = [read_labels(split, part, column) for split, part in zip(splits, images, strict=True)]
    names = find_classes(features[column], labels, column, [split.name for split in splits])
    number = {name: index for index, name in enumerate(names)}
    parts = [
        part.add_column("label", [number[label] for label in values], feature=datasets.ClassLabel(names=names))
        for part, values in zip(images, labels, strict=True)
    ]
    train, test = parts if len(parts) == 2 else hold_out(parts[0], args.train_val_split, seed)
    train, test = limit(train, args.max_train_samples, seed), limit(test, args.max_eval_samples, seed)
    if args.skip_bad_images:
        train, test = (drop_bad_images(part, min_size, args.preprocessing_num_workers) for part in (train, test))
    sources = name_sources(train_split, test_split)
    say_what_is_used(len(train), len(test), sources)
    return LabelledImages(train, test, names, sources)


class LabelledDataset(SeededDataset):
    """Images for classification; their augmentation is a function of (seed, epoch, index).

    Each item is `pixel_values` `(num_channels, height, width)` and `labels`, the number of the class.

    Args:
        records: Undecoded images under the key "image", with a "label", by index.
        transform: From a Pillow image to a tensor; may draw from PyTorch's default generator.
        min_size: Smallest usable (height, width), the size of a patch.
        seed: Two runs with the same seed see the same augmentation.
        with_mixing_seed: Whether each item has a `mixing_seed` for [`MixingCollator`].
    """

    def __init__(
        self,
        records: Any,
        transform: Callable[[Picture], torch.Tensor],
        min_size: tuple[int, int],
        seed: int,
        with_mixing_seed: bool = False,
    ):
        super().__init__(records, transform, min_size, seed)
        self.with_mixing_seed = with_mixing_seed

    def build_item(self, pixel_values: torch.Tensor, record: Mapping[str, Any]) -> dict[str, Any]:
        item = {"pixel_values": pixel_values, "labels": record["label"]}
        if self.with_mixing_seed:
            item["mixing_seed"] = torch.randint(2**62, ())
        return item
