"""Images for pre-training, at hand or streamed: crops and masks that the seed and the image's place decide alone."""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from functools import partial
from typing import Any, TypeVar

import torch
from tqdm.auto import tqdm

from ..configuration_crate import patch_grid_size, to_pair
from ..configuration_crate_mae import CrateMaeConfig
from .decoding import Picture
from .images import (
    DataArguments,
    drop_bad_images,
    is_readable,
    load_splits,
    name_sources,
    say_what_is_used,
    select_image_column,
)
from .seeded import SeededDataset, SeededStream

Dataset = TypeVar("Dataset", bound=SeededDataset)


class MaskingDataset(SeededDataset):
    """Images for pre-training, of which crop, flip and mask are a function of (seed, epoch, index).

    Each item is `pixel_values` `(num_channels, height, width)` and `noise` `(num_patches,)`, which decides the mask.

    Args:
        records: Undecoded images under the key "image", by index.
        transform: From a picture to a tensor; may draw from PyTorch's default generator.
        config: Configuration of the model.
        seed: Two runs with the same seed see the same crops and masks.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        transform: Callable[[Picture], torch.Tensor],
        config: CrateMaeConfig,
        seed: int,
    ):
        super().__init__(records, transform, to_pair(config.patch_size), seed)
        rows, columns = patch_grid_size(config.image_size, config.patch_size)  # which a ViTMAE's configuration has too
        self.num_patches = rows * columns

    def build_item(self, pixel_values: torch.Tensor, record: Mapping[str, Any]) -> dict[str, Any]:
        return {"pixel_values": pixel_values, "noise": torch.rand(self.num_patches)}


def identify(record: Mapping[str, Any]) -> Hashable:
    """Return what tells an undecoded image from others: the digest of its bytes, or its path where it is a file."""
    image = record["image"] or {}  # a row may be empty
    content = image.get("bytes")
    return image.get("path") if content is None else hashlib.sha256(content).digest()


def is_none_of(record: Mapping[str, Any], identities: Set[Hashable]) -> bool:
    """Whether an undecoded image is not among those given by what [`identify`] returns."""
    return identify(record) not in identities


def load_datasets(
    args: DataArguments,
    config: CrateMaeConfig,
    train_transform: Callable[[Picture], torch.Tensor],
    eval_transform: Callable[[Picture], torch.Tensor],
    seed: int,
) -> tuple[Any, MaskingDataset]:
    """Return the training and the evaluation images that the arguments name.

    Raises:
        ValueError: If the arguments do not fit each other or the data.
    """
    return load_seeded(
        args,
        to_pair(config.patch_size),
        partial(MaskingDataset, transform=train_transform, config=config, seed=seed),
        partial(MaskingDataset, transform=eval_transform, config=config, seed=seed),
        seed,
    )


def load_seeded(
    args: DataArguments,
    min_size: tuple[int, int],
    make_train: Callable[[Any], Dataset],
    make_eval: Callable[[Any], Dataset],
    seed: int,
    needs_color: bool = False,
) -> tuple[Any, Dataset]:
    """Return the training and the evaluation images that the arguments name, as datasets of any kind.

    Args:
        args: Arguments that name the images.
        min_size: Smallest usable (height, width), the size of a patch.
        make_train: From undecoded images by index to a dataset to train on.
        make_eval: The same for the dataset to evaluate with.
        seed: Seed that decides which images are held out, where there are no others.
        needs_color: Whether grey images cannot be used.

    Raises:
        ValueError: If the arguments do not fit each other or the data.
    """
    if not 0 < args.train_val_split < 1:
        raise ValueError(f"`train_val_split` must lie between 0 and 1, got {args.train_val_split}.")
    train_split, validation_split = load_splits(args, args.streaming)
    sources = name_sources(train_split, validation_split)
    usable: dict[str, Any] = {"min_size": min_size, "needs_color": needs_color}
    train = select_image_column(train_split.dataset, args.image_column_name)
    validation = None
    if validation_split is not None:
        validation = select_image_column(validation_split.dataset, args.image_column_name)

    if args.streaming:
        num_eval = args.max_eval_samples or 1000
        held_out = (train if validation is None else validation).take(num_eval)
        if args.skip_bad_images:
            held_out = held_out.filter(is_readable, fn_kwargs=usable)
        records = list(tqdm(held_out, total=num_eval, desc="Reading evaluation images"))
        if validation is None:
            # Not `skip`: of that every data loader worker would do a part, on files of its own.
            train = train.filter(is_none_of, fn_kwargs={"identities": frozenset(map(identify, records))})
        if args.max_train_samples is not None:
            train = train.take(args.max_train_samples)
        if args.skip_bad_images:
            train = train.filter(is_readable, fn_kwargs=usable)
        if next(iter(train), None) is None:
            raise ValueError(
                f"The stream has no images to train on: it ends before those held out, up to {num_eval} by "
                "`max_eval_samples`, or none of the others can be used."
            )
        say_what_is_used(None, len(records), sources)
        return SeededStream(train, make_train(()), args.shuffle_buffer_size), make_eval(records)

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
            drop_bad_images(dataset, num_proc=args.preprocessing_num_workers, **usable)
            for dataset in (train, validation)
        )
    say_what_is_used(len(train), len(validation), sources)
    return make_train(train), make_eval(validation)
