"""Images for pre-training: from the Hub, from folders or streamed, with crops and masks that the seed decides alone."""

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.utils.file_utils import xopen
from tqdm.auto import tqdm
from transformers.utils import logging

from ..configuration_crate import to_pair
from ..configuration_crate_mae import CrateMaeConfig

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
        args: Name the images.
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
        where: What to call the image where it has no path.

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


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let PyTorch's default generator draw from a seed, and go on as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class SeededDataset(torch.utils.data.Dataset, ABC):
    """Images with everything random about them a function of (seed, epoch, index).

    What is drawn does not depend on the number of processes, data loader workers or gradient accumulation steps nor on
    where a run was interrupted; it differs between images and epochs, and so between ranks.

    Args:
        records: Undecoded images under the key "image", by index.
        transform: From a Pillow image to a tensor; may draw from PyTorch's default generator.
        min_size: Smallest usable (height, width), the size of a patch.
        seed: Two runs with the same seed see the same draws.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        transform: Callable[[PIL.Image.Image], torch.Tensor],
        min_size: tuple[int, int],
        seed: int,
    ):
        self.records = records
        self.transform = transform
        self.min_size = min_size
        self.seed = seed
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()  # reaches workers that outlive an epoch

    @abstractmethod
    def build_item(self, pixel_values: torch.Tensor, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return the item of a transformed image; may draw from PyTorch's default generator."""

    def set_epoch(self, epoch: int) -> None:
        """Draw anew from here on."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        image = decode(record["image"], self.min_size, f"number {index}")
        (item_seed,) = np.random.SeedSequence([self.seed, int(self.epoch), index]).generate_state(1, np.uint64)
        with seeded(int(item_seed)):
            return self.build_item(self.transform(image), record)


class MaskingDataset(SeededDataset):
    """Images for pre-training; crop, flip and mask are a function of (seed, epoch, index).

    Each item is `pixel_values` `(num_channels, height, width)` and `noise` `(num_patches,)`, which decides the mask.

    Args:
        records: Undecoded images under the key "image", by index.
        transform: From a Pillow image to a tensor; may draw from PyTorch's default generator.
        config: Of the model.
        seed: Two runs with the same seed see the same crops and masks.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        transform: Callable[[PIL.Image.Image], torch.Tensor],
        config: CrateMaeConfig,
        seed: int,
    ):
        super().__init__(records, transform, to_pair(config.patch_size), seed)
        self.num_patches = config.grid_size[0] * config.grid_size[1]

    def build_item(self, pixel_values: torch.Tensor, record: Mapping[str, Any]) -> dict[str, Any]:
        return {"pixel_values": pixel_values, "noise": torch.rand(self.num_patches)}


def stream_images(
    dataset: datasets.IterableDataset,
    transform: Callable[[PIL.Image.Image], torch.Tensor],
    min_size: tuple[int, int],
    args: DataArguments,
    seed: int,
) -> datasets.IterableDataset:
    """Shuffle and transform images while they are read. Masks are drawn by the model."""
    if args.skip_bad_images:
        dataset = dataset.filter(is_readable, fn_kwargs={"min_size": min_size})
    dataset = dataset.shuffle(seed=seed, buffer_size=args.shuffle_buffer_size)
    return dataset.map(
        lambda record: {"pixel_values": transform(decode(record["image"], min_size, "in the stream"))},
        remove_columns=["image"],
    )


def load_datasets(
    args: DataArguments,
    config: CrateMaeConfig,
    train_transform: Callable[[PIL.Image.Image], torch.Tensor],
    eval_transform: Callable[[PIL.Image.Image], torch.Tensor],
    seed: int,
) -> tuple[Any, MaskingDataset]:
    """Return the training and the evaluation images that the arguments name.

    Raises:
        ValueError: If the arguments do not fit each other or the data.
    """
    if not 0 < args.train_val_split < 1:
        raise ValueError(f"`train_val_split` must lie between 0 and 1, got {args.train_val_split}.")
    splits = load_splits(args, args.streaming)
    min_size = to_pair(config.patch_size)
    train = select_image_column(splits[args.train_split_name], args.image_column_name)
    validation = splits.get(args.validation_split_name)
    if validation is not None:
        validation = select_image_column(validation, args.image_column_name)

    if args.streaming:
        num_eval = args.max_eval_samples or 1000
        held_out = (train if validation is None else validation).take(num_eval)
        if args.skip_bad_images:
            held_out = held_out.filter(is_readable, fn_kwargs={"min_size": min_size})
        records = list(tqdm(held_out, total=num_eval, desc="Reading evaluation images"))
        if validation is None:
            train = train.skip(num_eval)
        if args.max_train_samples is not None:
            train = train.take(args.max_train_samples)
        return (
            stream_images(train, train_transform, min_size, args, seed),
            MaskingDataset(records, eval_transform, config, seed),
        )

    if validation is None:
        if len(train) < 2:
            raise ValueError("`train_val_split`: a single image cannot be split into training and validation images.")
        parts = train.train_test_split(args.train_val_split, seed=seed)
        train, validation = parts["train"], parts["test"]
    if args.max_train_samples is not None:
        train = train.select(range(min(args.max_train_samples, len(train))))
    if args.max_eval_samples is not None:
        validation = validation.select(range(min(args.max_eval_samples, len(validation))))
    if args.skip_bad_images:
        train, validation = (
            drop_bad_images(dataset, min_size, args.preprocessing_num_workers) for dataset in (train, validation)
        )
    return (
        MaskingDataset(train, train_transform, config, seed),
        MaskingDataset(validation, eval_transform, config, seed),
    )
