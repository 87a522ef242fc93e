"""Images with segmentation masks, pictures of one number per pixel, its class: from the Hub or from folders."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import PIL.Image
import torch
from tqdm.auto import tqdm

from .folders import list_names, read_folder
from .images import (
    ImageArguments,
    Split,
    build_dataset,
    decode,
    drop_bad_images,
    find_image_column,
    image_bytes,
    load_splits,
    name_sources,
    say_what_is_used,
    select_image_column,
)
from .labels import limit
from .seeded import SeededDataset

# Pixels of no class, which count neither in the loss nor in a metric; Transformers' models have the same number.
IGNORED = 255
# Names of columns of masks, the first choice first.
MASK_COLUMNS = ("label", "annotation", "mask", "labels")


@dataclass
class SegmentationDataArguments(ImageArguments):
    """Images with masks: columns of a dataset, or folders in which a mask has the name of its image."""

    alternatives: ClassVar[dict[tuple[str, ...], tuple[str, ...]]] = {
        ("dataset_name",): (*ImageArguments.alternatives[("dataset_name",)], "mask_column_name"),
        ("train_dir", "validation_dir"): ("train_mask_dir", "validation_mask_dir"),
    }

    mask_column_name: str | None = field(
        default=None,
        metadata={"help": "The column with the masks; when left out the first there is of " + ", ".join(MASK_COLUMNS)},
    )
    train_mask_dir: str | None = field(
        default=None, metadata={"help": "A folder with the masks of `train_dir`, each with the name of its image."}
    )
    validation_mask_dir: str | None = field(default=None, metadata={"help": "The same for `validation_dir`."})
    class_names: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the classes 0, 1, ...; when left out they are numbers, up to the largest in the training "
            "masks, which are all read for that."
        },
    )


@dataclass
class SegmentedImages:
    """Images with their masks.

    Attributes:
        train: Images to learn from, undecoded (`bytes` and `path`) in the column "image", their masks in "mask".
        test: Images to test on, in the same columns.
        class_names: Name of each class.
        sources: Where the "train" and the "validation" images come from, in words.
    """

    train: datasets.Dataset
    test: datasets.Dataset
    class_names: list[str]
    sources: dict[str, str]


def find_mask_column(args: SegmentationDataArguments, features: Mapping[str, Any]) -> str:
    """Return the name of the column of masks.

    Raises:
        ValueError: If there is no such column, or it holds no images.
    """
    image_column = find_image_column(features, args.image_column_name)
    pictures = [name for name, kind in features.items() if isinstance(kind, datasets.Image) and name != image_column]
    names = MASK_COLUMNS if args.mask_column_name is None else (args.mask_column_name,)
    found = next((name for name in names if name in pictures), None)
    if found is None:
        raise ValueError(
            f"`mask_column_name`: none of the columns {', '.join(features)} is called {' or '.join(names)} and holds "
            f"pictures other than the images in {image_column!r}."
        )
    return found


def match_masks(args: SegmentationDataArguments, split: Split, images: datasets.Dataset) -> datasets.Dataset:
    """Return the masks of the images of a folder, found by their names, in the column "image".

    Raises:
        ValueError: If there is no folder of masks, or an image has none in it.
    """
    image_dir, argument = getattr(args, f"{split.name}_dir"), f"{split.name}_mask_dir"
    mask_dir = getattr(args, argument)
    if mask_dir is None:
        raise ValueError(f"`{argument}` is needed: the folder with the masks of {image_dir}.")
    found = read_folder(mask_dir, argument)
    masks = {Path(path).relative_to(found.root).with_suffix(""): path for path in found.images}
    root = Path(image_dir).absolute()
    names = [Path(image["path"]).relative_to(root).with_suffix("") for image in images["image"]]
    if missing := [f"{name}.*" for name in names if name not in masks]:
        raise ValueError(
            f"`{argument}`: {len(missing)} of {len(names)} images of {split.source} have no mask of the same name in "
            f"{mask_dir}: {list_names(missing)}."
        )
    paths = [masks[name] for name in names]
    # Each once, which is all that a dictionary holds; several images may share one.
    dataset = build_dataset({path: found.images[path] for path in paths}, {}, args.cache_dir)
    number = {path: index for index, path in enumerate(dict.fromkeys(paths))}
    return dataset.select([number[path] for path in paths]).cast_column("image", datasets.Image(decode=False))


def add_masks(args: SegmentationDataArguments, split: Split) -> datasets.Dataset:
    """Return the images and the masks of a split, both undecoded, in the columns "image" and "mask"."""
    images = select_image_column(split.dataset, args.image_column_name)
    if args.dataset_name is None:
        masks = match_masks(args, split, images)
    else:
        masks = select_image_column(split.dataset, find_mask_column(args, split.dataset.features))
    return datasets.concatenate_datasets([images, masks.rename_column("image", "mask")], axis=1)


def read_mask(record: Mapping[str, Any] | None, where: str) -> tuple[np.ndarray, str]:
    """Return a mask, `(height, width)`, with its name.

    Args:
        record: `bytes` and `path`, as `datasets.Image(decode=False)` gives them.
        where: Name of the mask in errors where it has no path.

    Raises:
        ValueError: If it cannot be read, or its pixels are no single integers.
    """
    if record is None or (record.get("bytes") is None and record.get("path") is None):
        raise ValueError(f"There is no mask {where}: its row is empty.")
    name = record.get("path") or where
    try:
        image: PIL.Image.Image = PIL.Image.open(io.BytesIO(image_bytes(record)))
        mask = np.asarray(image)  # of a palette, the numbers of its colours
    except Exception as error:  # Pillow's plugins raise errors of many kinds
        raise ValueError(f"Cannot read the mask {name}: {str(error).rstrip('.')}.") from error
    if mask.ndim != 2 or mask.dtype.kind not in "bui":
        raise ValueError(
            f"The mask {name} has the mode {image.mode}: a mask has one integer per pixel, its class (modes L, P, I)."
        )
    return mask, name


def check_mask(mask: np.ndarray, name: str, image: PIL.Image.Image, num_classes: int) -> None:
    """Check that a mask fits its image and the classes.

    Raises:
        ValueError: If it does not.
    """
    if mask.shape != (image.height, image.width):
        raise ValueError(
            f"The mask {name} is {mask.shape[0]} x {mask.shape[1]} pixels, its image {image.height} x {image.width}."
        )
    wrong = mask[(mask != IGNORED) & ((mask < 0) | (mask >= num_classes))]
    if wrong.size:
        raise ValueError(
            f"The mask {name} has the value {wrong[0]}: with {num_classes} classes values are 0 to {num_classes - 1}, "
            f"and {IGNORED} where there is none."
        )


def name_classes(args: SegmentationDataArguments, masks: datasets.Dataset) -> list[str]:
    """Return the names of the classes: those given, or numbers up to the largest in the masks.

    Raises:
        ValueError: If there are fewer than two, or more than a mask of 8 bits can tell apart.
    """
    names = args.class_names
    if names is None:
        arrays = (read_mask(row["mask"], f"number {index}")[0] for index, row in enumerate(masks))
        arrays = tqdm(arrays, total=len(masks), desc="Looking for classes")
        names = [str(number) for number in range(1 + max(int(a[a != IGNORED].max(initial=0)) for a in arrays))]
    if not 2 <= len(names) <= IGNORED:
        raise ValueError(f"`class_names`: there must be 2 to {IGNORED} classes, got {len(names)}.")
    return names


def load_segmented_datasets(args: SegmentationDataArguments, min_size: tuple[int, int], seed: int) -> SegmentedImages:
    """Load the training and the test images that the arguments name, with their masks, and say what they are.

    Where there is no test split, a part of the training images is held out.

    Args:
        args: Arguments that name the images.
        min_size: Smallest usable (height, width), the size of a patch, for `skip_bad_images`.
        seed: Decides which images `max_train_samples` and `max_eval_samples` keep, and which are held out.

    Raises:
        ValueError: If the arguments do not fit each other or the data.
    """
    if not 0 < args.train_val_split < 1:
        raise ValueError(f"`train_val_split` must lie between 0 and 1, got {args.train_val_split}.")
    train_split, test_split = load_splits(args)
    parts = [add_masks(args, split) for split in (train_split, test_split) if split is not None]
    if test_split is None:
        try:
            parts = list(parts[0].train_test_split(args.train_val_split, seed=seed).values())
        except ValueError as error:
            raise ValueError(f"`train_val_split` {args.train_val_split}: {error}") from error
    train, test = limit(parts[0], args.max_train_samples, seed), limit(parts[1], args.max_eval_samples, seed)
    if args.skip_bad_images:
        train, test = (drop_bad_images(part, min_size, args.preprocessing_num_workers) for part in (train, test))
    sources = name_sources(train_split, test_split)
    say_what_is_used(len(train), len(test), sources)
    return SegmentedImages(train, test, name_classes(args, train), sources)


class SegmentationDataset(SeededDataset):
    """Images with masks; their augmentation is a function of (seed, epoch, index).

    Each item is `pixel_values` `(num_channels, height, width)` and `labels` `(height, width)`, int64.

    Args:
        records: Undecoded images under the key "image", undecoded masks under "mask", by index.
        transform: From a Pillow image and its mask to both as tensors; may draw from PyTorch's default generator.
        min_size: Smallest usable (height, width), the size of a patch.
        seed: Two runs with the same seed see the same augmentation.
        num_classes: Number of classes; masks are checked for it.
    """

    def __init__(
        self,
        records: Any,
        transform: Callable[[PIL.Image.Image, np.ndarray], tuple[torch.Tensor, torch.Tensor]],
        min_size: tuple[int, int],
        seed: int,
        num_classes: int,
    ):
        transform_any: Any = transform  # those of other datasets take an image alone
        super().__init__(records, transform_any, min_size, seed)
        self.num_classes = num_classes

    def read(self, record: Mapping[str, Any], where: str) -> Any:
        """Decode, check and transform one image and its mask."""
        image = decode(record["image"], self.min_size, where)
        mask, name = read_mask(record["mask"], where)
        check_mask(mask, name, image, self.num_classes)
        pair: Any = (image, mask.astype(np.uint8))
        return self.transform(*pair)

    def build_item(self, pixel_values: Any, record: Mapping[str, Any]) -> dict[str, Any]:
        pixels, labels = pixel_values
        return {"pixel_values": pixels, "labels": labels}
