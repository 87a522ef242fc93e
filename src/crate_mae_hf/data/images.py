"""Images: which ones, from the Hub, from folders or streamed; undecoded until they are asked for."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import PIL.ImageOps
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.utils.file_utils import xopen
from transformers.utils import logging

logger = logging.get_logger(__name__)

# What `datasets` takes for images in a folder; other files there are metadata or mistakes.
IMAGE_SUFFIXES = frozenset(ImageFolder.EXTENSIONS)
METADATA_SUFFIXES = frozenset({".csv", ".jsonl", ".parquet"})


@dataclass
class ImageArguments:
    """Which images to train on and to evaluate with."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "A dataset on the Hub, or a folder that `datasets.load_dataset` can read."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The configuration of the dataset."})
    train_dir: str | None = field(default=None, metadata={"help": "A folder of training images, in any subfolders."})
    validation_dir: str | None = field(default=None, metadata={"help": "A folder of validation images."})
    train_split_name: str = field(default="train", metadata={"help": "The split of the dataset to train on."})
    validation_split_name: str = field(
        default="validation",
        metadata={"help": "The split to evaluate on; where it is missing, a part of the training images is held out."},
    )
    train_val_split: float = field(
        default=0.15, metadata={"help": "Share of the training images to hold out where there are no others."}
    )
    image_column_name: str | None = field(
        default=None, metadata={"help": "The column with the images; the first one that holds images when left out."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many images only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on so many images only."})
    skip_bad_images: bool = field(
        default=False, metadata={"help": "Leave out images that cannot be read, and say how many, instead of stopping."}
    )
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Processes that look for bad images with `skip_bad_images`."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where `datasets` keeps its files."})


@dataclass
class DataArguments(ImageArguments):
    """Images without labels, which may be streamed."""

    streaming: bool = field(
        default=False, metadata={"help": "Read the training images while training; needs `max_steps`."}
    )
    shuffle_buffer_size: int = field(default=10_000, metadata={"help": "Images to shuffle among when streaming."})


class BadImageError(ValueError):
    """An image that cannot be used; the message names it."""


def check_folder(folder: str, argument: str) -> None:
    """Make sure that a folder has images, and name the files in it that are none.

    Raises:
        ValueError: If the folder is missing or has no image.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"`{argument}`: there is no folder {folder}.")
    files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file() and not path.name.startswith(".")]
    if not any(path.suffix.lower() in IMAGE_SUFFIXES for path in files):
        raise ValueError(f"`{argument}`: there are no images in {folder}.")
    others = [path for path in files if path.suffix.lower() not in IMAGE_SUFFIXES | METADATA_SUFFIXES]
    for path in others:
        logger.warning(f"{path} is not an image and is left out.")


def load_splits(args: ImageArguments, streaming: bool = False, drop_labels: bool = True) -> Mapping[str, Any]:
    """Load the splits that the arguments name; the images stay undecoded.

    Args:
        args: Arguments that name the images.
        streaming: Whether to read the images only when they are needed.
        drop_labels: Whether the subfolders of `train_dir` tell nothing; otherwise they are the column "label".

    Raises:
        ValueError: If the arguments name no images, or images that are not there.
    """
    if args.dataset_name is not None:
        source: dict[str, Any] = {"path": args.dataset_name, "name": args.dataset_config_name}
    elif args.train_dir is not None:
        folders = {"train": args.train_dir, "validation": args.validation_dir}
        for split, folder in folders.items():
            if folder is not None:
                check_folder(folder, f"{split}_dir")
        patterns = {split: str(Path(folder) / "**") for split, folder in folders.items() if folder is not None}
        source = {"path": "imagefolder", "data_files": patterns, "drop_labels": drop_labels}
    else:
        raise ValueError("Name the images with `--dataset_name` or `--train_dir`, or start with a recipe file.")
    try:
        splits = datasets.load_dataset(**source, cache_dir=args.cache_dir, streaming=streaming)
    except (FileNotFoundError, datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise ValueError(f"`dataset_name`: cannot load {source['path']}: {error}") from error
    if args.train_split_name not in splits:
        raise ValueError(
            f"`train_split_name`: there is no split {args.train_split_name!r}, but {', '.join(map(str, splits))}."
        )
    return splits


def find_image_column(features: Mapping[str, Any], name: str | None) -> str:
    """Return the name of the column of images: the one asked for, or the first.

    Raises:
        ValueError: If there is no such column, or it holds no images.
    """
    if name is None:
        name = next((column for column, feature in features.items() if isinstance(feature, datasets.Image)), None)
        if name is None:
            raise ValueError(f"`image_column_name` is needed: none of the columns {', '.join(features)} holds images.")
    elif features and name not in features:
        raise ValueError(f"`image_column_name`: there is no column {name!r}, but {', '.join(features)}.")
    elif features and features[name] != datasets.Value("string") and not isinstance(features[name], datasets.Image):
        raise ValueError(f"`image_column_name`: the column {name!r} holds {features[name]}, not images.")
    return name


def select_image_column(dataset: Any, name: str | None) -> Any:
    """Keep the column of images alone, undecoded and named "image".

    Raises:
        ValueError: If there is no such column, or it holds no images.
    """
    name = find_image_column(dataset.features or {}, name)  # a stream may not know them
    dataset = dataset.select_columns([name]).cast_column(name, datasets.Image(decode=False))
    return dataset if name == "image" else dataset.rename_column(name, "image")


def image_bytes(record: Mapping[str, Any]) -> bytes:
    """Return the file of an image, undecoded; `record` as `decode` takes it."""
    if record.get("bytes") is not None:
        return record["bytes"]
    with xopen(record["path"], "rb") as file:  # local, in an archive, or remote
        return file.read()


def decode(record: Mapping[str, Any], min_size: tuple[int, int], where: str) -> PIL.Image.Image:
    """Decode one image.

    Args:
        record: `bytes` and `path`, as `datasets.Image(decode=False)` gives them.
        min_size: Smallest usable (height, width), the size of a patch.
        where: Name of the image in errors where it has no path.

    Raises:
        BadImageError: If it cannot be read or is smaller than that.
    """
    name = record.get("path") or where
    try:
        image = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(image_bytes(record))))
        image.load()
    except Exception as error:  # Pillow's plugins raise errors of many kinds
        raise BadImageError(f"Cannot read the image {name}: {error}. `--skip_bad_images` leaves such out.") from error
    if image.height < min_size[0] or image.width < min_size[1]:
        raise BadImageError(
            f"The image {name} is {image.height} x {image.width} pixels, smaller than a patch of {min_size[0]} x "
            f"{min_size[1]}. `--skip_bad_images` leaves such out."
        )
    return image


def is_readable(record: Mapping[str, Any], min_size: tuple[int, int]) -> bool:
    """Whether an image can be used; warns with its name where not."""
    try:
        decode(record["image"], min_size, "without a name")
    except BadImageError as error:
        logger.warning(str(error).removesuffix(" `--skip_bad_images` leaves such out."))
        return False
    return True


def drop_bad_images(dataset: datasets.Dataset, min_size: tuple[int, int], num_proc: int | None) -> datasets.Dataset:
    """Leave out the images that cannot be used, naming and counting them."""
    kept = dataset.filter(is_readable, fn_kwargs={"min_size": min_size}, num_proc=num_proc, desc="Checking images")
    if len(kept) < len(dataset):
        logger.warning(f"Left out {len(dataset) - len(kept)} of {len(dataset)} images that cannot be used.")
    if not len(kept):
        raise ValueError("None of the images can be used.")
    return kept
