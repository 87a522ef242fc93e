"""Images: which ones, from the Hub, from folders or streamed; undecoded until they are asked for."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import has_magic
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import datasets
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
from datasets.utils.file_utils import xopen
from huggingface_hub import DatasetCard
from transformers.utils import logging

from ..image_processing_crate_mae import is_grey
from .decoding import BadImageError, Picture, check_size, decode_plain_jpeg, open_picture
from .folders import ImageFolder, list_names, read_folder, scan_folder, warn_of_rest
from .metadata import check_rows, image_columns, read_rows

logger = logging.get_logger(__name__)

# Shards of a dataset; a folder that has some is no folder of pictures, whatever else lies in it.
SHARD_SUFFIXES = frozenset({".parquet", ".arrow", ".tar", ".zip"})

# Columns that may name files, as a CSV file gives them.
PATH_TYPES = (datasets.Value("string"), datasets.Value("large_string"))


@dataclass
class ImageArguments:
    """Which images to train on and to evaluate with.

    They come from a dataset or from folders. Fields about the dataset describe it, in folders they do not count, but
    for the names of columns, which metadata files there may have.
    """

    # Arguments of one kind on the command line drop what a recipe says of the other; see `cli.parse_arguments`.
    alternatives: ClassVar[dict[tuple[str, ...], tuple[str, ...]]] = {
        ("dataset_name",): (
            "dataset_config_name",
            "train_split_name",
            "validation_split_name",
            "image_column_name",
            "label_column_name",
        ),
        ("train_dir", "validation_dir"): (),
    }
    default_validation_split: ClassVar[str] = "validation"

    dataset_name: str | None = field(
        default=None, metadata={"help": "A dataset on the Hub, or a folder that `datasets.load_dataset` can read."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The configuration of the dataset."})
    train_dir: str | None = field(default=None, metadata={"help": "A folder of training images, in any subfolders."})
    validation_dir: str | None = field(default=None, metadata={"help": "A folder of validation images."})
    train_split_name: str = field(default="train", metadata={"help": "The split of the dataset to train on."})
    validation_split_name: str | None = field(
        default=None,
        metadata={
            "help": 'The split to evaluate on; when left out "validation" ("test" for probes), or, where that is '
            "missing, a part of the training images. An empty name is as good as none."
        },
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
        default=False, metadata={"help": "Leave out images that cannot be read, and say which, instead of stopping."}
    )
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Processes that look for bad images with `skip_bad_images`."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where `datasets` keeps its files."})

    @property
    def hub_dataset(self) -> str | None:
        """The dataset on the Hub that is trained on; None for a folder."""
        return None if Path(str(self.dataset_name)).exists() else self.dataset_name

    @property
    def data_folders(self) -> str | None:
        """The folder that is trained on, in a sentence; None for a dataset on the Hub."""
        source = self.dataset_name or self.train_dir
        return f"Images of the folder {Path(source).name}." if source and Path(source).exists() else None


@dataclass
class DataArguments(ImageArguments):
    """Images without labels, which may be streamed."""

    streaming: bool = field(
        default=False, metadata={"help": "Read the training images while training; needs `max_steps`."}
    )
    shuffle_buffer_size: int = field(default=10_000, metadata={"help": "Images to shuffle among when streaming."})


class Split(NamedTuple):
    """Images, with their other columns.

    Attributes:
        name: Of the split; "train" or "validation" for folders.
        dataset: The images, as `datasets` has them.
        source: Where they come from, in words.
    """

    name: str
    dataset: Any
    source: str


def generate_rows(
    paths: Sequence[str], changed: Sequence[int], columns: Mapping[str, Sequence[Any]]
) -> Iterator[dict[str, Any]]:
    """Yield each image with what is known of it; `changed` counts for the cache of `datasets` alone."""
    for number, path in enumerate(paths):
        yield {**{name: values[number] for name, values in columns.items()}, "image": path}


def build_dataset(images: Mapping[str, int], columns: dict[str, list], cache_dir: str | None) -> datasets.Dataset:
    """Return images, by path and time of their last change, and what is known of them as a dataset."""
    try:
        features = datasets.Dataset.from_dict(columns).features
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"Metadata of {next(iter(images))} and other images do not fit together: {error}.") from error
    return datasets.Dataset.from_generator(
        generate_rows,
        features=datasets.Features({"image": datasets.Image(), **features}),
        cache_dir=cache_dir,
        # Lists would be taken for shards.
        gen_kwargs={"paths": tuple(images), "changed": tuple(images.values()), "columns": columns},
    )


def load_folders(
    args: ImageArguments, folder: ImageFolder, argument: str, splits: Mapping[str, Mapping[str, int]], with_labels: bool
) -> dict[str, Any]:
    """Return the images of a folder as datasets; with labels, they have a column "label" or those of metadata files.

    Args:
        args: Whether to skip bad images, and where `datasets` keeps its files.
        folder: What is in the folder.
        argument: The argument that names the folder, for errors.
        splits: Images of each split, from `folder`.
        with_labels: Whether labels are asked for; otherwise folders and metadata files tell nothing.
    """
    if not with_labels:
        return {name: build_dataset(images, {}, args.cache_dir) for name, images in splits.items()}
    rows = read_rows(folder.metadata)
    check_rows(folder, rows, argument, args.skip_bad_images)
    in_splits = args.dataset_name is not None
    return {
        name: build_dataset(images, image_columns(folder, rows, images, in_splits), args.cache_dir)
        for name, images in splits.items()
    }


def is_folder_of_pictures(found: ImageFolder) -> bool:
    """Whether a folder holds images as files, and nothing that says how `datasets` should read it."""
    card = found.root / "README.md"
    has_configs = card.is_file() and bool(DatasetCard.load(card).data.get("configs"))
    has_shards = any(Path(path).suffix.lower() in SHARD_SUFFIXES for path in found.others)
    return bool(found.images) and not has_shards and not has_configs


def load_dataset(
    args: ImageArguments, argument: str = "dataset_name", streaming: bool = False, with_labels: bool = False
) -> Mapping[str, Any]:
    """Load all splits of the dataset that the arguments name; a folder of pictures is read as it is.

    Args:
        args: Arguments with `dataset_name`.
        argument: What the user calls that, for errors.
        streaming: Whether to read the images only when they are needed.
        with_labels: Whether folders and metadata files in a folder of pictures become columns.

    Raises:
        ValueError: If it cannot be loaded.
    """
    name = str(args.dataset_name)
    folder = Path(name).absolute()
    if folder.is_dir() and is_folder_of_pictures(found := scan_folder(folder, argument)):
        warn_of_rest(found, folder)
        splits = load_folders(args, found, argument, found.split(), with_labels)
        return {split: part.to_iterable_dataset() for split, part in splits.items()} if streaming else splits
    if folder.is_dir() and has_magic(str(folder)):
        raise ValueError(
            f"`{argument}`: `datasets` reads the characters *, ? and [ in {folder} as a pattern: rename the folder."
        )
    try:
        return datasets.load_dataset(name, args.dataset_config_name, cache_dir=args.cache_dir, streaming=streaming)
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(f"`{argument}`: cannot load {name!r}: {error.__cause__ or error}") from error
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"`{argument}`: cannot load {name!r}: {error}") from error


def check_sources(args: ImageArguments) -> None:
    """Make sure that the arguments name images, and in one way.

    Raises:
        ValueError: If they do not.
    """
    folders = [name for name in ("train_dir", "validation_dir") if getattr(args, name) is not None]
    if args.dataset_name is not None and folders:
        raise ValueError(f"`dataset_name` and `{folders[0]}` name images in two ways: leave one of them out.")
    if folders == ["validation_dir"]:
        raise ValueError("`validation_dir` needs `train_dir` beside it.")
    if args.dataset_name is None and not folders:
        raise ValueError("Name the images with `--dataset_name` or `--train_dir`, or start with a recipe file.")


def find_splits(args: ImageArguments, splits: Mapping[str, Any]) -> list[Split]:
    """Return the training and, where there is one, the validation split of a dataset.

    Raises:
        ValueError: If there is no such training split, or not the validation split that was asked for.
    """
    found = []
    wanted = {
        "train_split_name": args.train_split_name,
        "validation_split_name": args.validation_split_name or args.default_validation_split,
    }
    for argument, name in wanted.items():
        if name in splits:
            found.append(Split(name, splits[name], f"the split {name!r} of {args.dataset_name}"))
        elif argument == "train_split_name" or args.validation_split_name:
            raise ValueError(f"`{argument}`: there is no split {name!r}, but {', '.join(map(str, splits))}.")
    return found


def load_splits(args: ImageArguments, streaming: bool = False, with_labels: bool = False) -> tuple[Split, Split | None]:
    """Load the training and the validation images that the arguments name; they stay undecoded.

    Args:
        args: Arguments that name the images.
        streaming: Whether to read the images only when they are needed.
        with_labels: Whether folders and metadata files become columns, where the images lie in folders.

    Returns:
        The training images, and those to evaluate on; None where a part of the training images is to be held out.

    Raises:
        ValueError: If the arguments name no images, or images that are not there.
    """
    check_sources(args)
    if args.dataset_name is not None:
        found = find_splits(args, load_dataset(args, streaming=streaming, with_labels=with_labels))
    else:
        found = []
        for name in ("train", "validation"):
            if (path := getattr(args, f"{name}_dir")) is not None:
                folder = read_folder(path, f"{name}_dir")
                loaded = load_folders(args, folder, f"{name}_dir", {name: folder.images}, with_labels)[name]
                found.append(Split(name, loaded.to_iterable_dataset() if streaming else loaded, f"the folder {path}"))
    if not streaming:
        found = [split._replace(dataset=check_images(split, args)) for split in found]
    return found[0], found[1] if len(found) == 2 else None


def check_images(split: Split, args: ImageArguments) -> datasets.Dataset:
    """Make sure that every row has an image, or leave out and name those that have none.

    Raises:
        ValueError: If one has none, unless bad images are to be skipped.
    """
    dataset = split.dataset
    column = dataset.data.column(find_image_column(dataset.features, args.image_column_name))
    is_missing = pc.is_null(column)
    if pa.types.is_struct(column.type):
        parts = [pc.is_null(pc.struct_field(column, name)) for name in ("bytes", "path")]
        is_missing = pc.or_(is_missing, pc.and_(*parts))
    missing = [number for number, flag in enumerate(is_missing.to_pylist()) if flag]
    if not missing:
        return dataset
    numbers = f"{list_names(missing)} (counted from 0)"
    message = f"{len(missing)} of {len(dataset)} rows of {split.source} have no image: {numbers}."
    if not args.skip_bad_images:
        raise ValueError(f"`image_column_name`: {message} `--skip_bad_images` leaves such out.")
    logger.warning(message)
    return dataset.select(sorted(set(range(len(dataset))) - set(missing)))


def name_sources(train: Split, validation: Split | None) -> dict[str, str]:
    """Return where the images to train on and to evaluate on come from, in words."""
    held_out = f"{train.source}, held out of the training images"
    return {"train": train.source, "validation": held_out if validation is None else validation.source}


def say_what_is_used(num_train: int | None, num_validation: int, sources: Mapping[str, str]) -> None:
    """Tell the user how many images there are to train on and to evaluate on, and from where.

    Args:
        num_train: Number of images to train on; None for a stream.
        num_validation: Number of images to evaluate on.
        sources: See `name_sources`.
    """
    logger.warning(
        f"Training on {'a stream of' if num_train is None else num_train} images of {sources['train']}; evaluating on "
        f"{num_validation} images of {sources['validation']}."
    )


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
    elif features and features[name] not in PATH_TYPES and not isinstance(features[name], datasets.Image):
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
    """Return the file of an image, undecoded; `record` as `decode` takes it.

    Raises:
        BadImageError: If the file cannot be read.
    """
    if record.get("bytes") is not None:
        return record["bytes"]
    try:
        with xopen(record["path"], "rb") as file:  # local, in an archive, or remote
            return file.read()
    except OSError as error:
        raise BadImageError(f"Cannot read the image {record['path']}: {error.strerror or error}.") from error


def find_file(record: Mapping[str, Any] | None, where: str) -> tuple[bytes, str]:
    """Return the file of an image, undecoded, and its name for errors; arguments as for `read_image`.

    Raises:
        BadImageError: If there is none, or it cannot be read.
    """
    if record is None or (record.get("bytes") is None and record.get("path") is None):
        raise BadImageError(f"There is no image {where}: its row is empty.")
    return image_bytes(record), record.get("path") or where


def open_image(content: bytes, name: str, min_size: tuple[int, int], needs_color: bool) -> PIL.Image.Image:
    """Decode a file, see `read_image`."""
    image = open_picture(content, name)
    check_size(image, min_size, name)
    if needs_color and is_grey(image):
        raise BadImageError(f"The image {name} is grey (mode {image.mode}): there is no colour to learn from.")
    return image


def read_image(
    record: Mapping[str, Any] | None, min_size: tuple[int, int], where: str, needs_color: bool = False
) -> PIL.Image.Image:
    """Decode one image.

    Args:
        record: `bytes` and `path`, as `datasets.Image(decode=False)` gives them.
        min_size: Smallest usable (height, width), the size of a patch.
        where: Name of the image in errors where it has no path.
        needs_color: Whether a grey image cannot be used.

    Raises:
        BadImageError: If it cannot be read, is smaller than that, or grey where colour is needed.
    """
    return open_image(*find_file(record, where), min_size, needs_color)


def read_pixels(
    record: Mapping[str, Any] | None, min_size: tuple[int, int], where: str, needs_color: bool = False
) -> Picture:
    """Decode one image as `read_image` does; to pixels `(channels, height, width)` where that is quicker."""
    content, name = find_file(record, where)
    pixels = decode_plain_jpeg(content)
    if pixels is not None:
        channels, height, width = pixels.shape
        if height >= min_size[0] and width >= min_size[1] and (channels == 3 or not needs_color):
            return pixels
    return open_image(content, name, min_size, needs_color)


@contextmanager
def say_how_to_skip() -> Iterator[None]:
    """Context manager: errors about an image say how to leave bad images out."""
    try:
        yield
    except BadImageError as error:
        raise BadImageError(f"{error} `--skip_bad_images` leaves such out.") from error


def decode(record: Mapping[str, Any] | None, min_size: tuple[int, int], where: str) -> PIL.Image.Image:
    """Decode one image, see `read_image`; errors say how to leave bad images out."""
    with say_how_to_skip():
        return read_image(record, min_size, where)


def find_problem(
    image: Mapping[str, Any] | None, min_size: tuple[int, int], where: str, needs_color: bool = False
) -> str | None:
    """Return why an image cannot be used; None where it can."""
    try:
        read_image(image, min_size, where, needs_color)
    except BadImageError as error:
        return str(error)
    return None


def is_readable(record: Mapping[str, Any], min_size: tuple[int, int], needs_color: bool = False) -> bool:
    """Whether an image can be used; warns with its name where not."""
    problem = find_problem(record["image"], min_size, "in the stream", needs_color)
    if problem is not None:
        logger.warning(problem)
    return problem is None


def add_problem(
    record: Mapping[str, Any], index: int, min_size: tuple[int, int], needs_color: bool
) -> dict[str, str | None]:
    """Return the column that `drop_bad_images` reads."""
    return {"problem": find_problem(record["image"], min_size, f"number {index}", needs_color)}


def drop_bad_images(
    dataset: datasets.Dataset, min_size: tuple[int, int], num_proc: int | None, needs_color: bool = False
) -> datasets.Dataset:
    """Leave out the images that cannot be used, naming and counting them.

    `datasets` keeps what was found, so that a second run is quick; the images are named each time.
    """
    checked = dataset.map(
        add_problem,
        with_indices=True,
        fn_kwargs={"min_size": min_size, "needs_color": needs_color},
        remove_columns=dataset.column_names,
        features=datasets.Features({"problem": datasets.Value("string")}),
        num_proc=num_proc,
        desc="Checking images",
    )
    problems: Iterable[str | None] = checked["problem"][:]
    for problem in filter(None, problems):
        logger.warning(problem)
    kept = dataset.select([index for index, problem in enumerate(problems) if problem is None])
    if len(kept) < len(dataset):
        logger.warning(f"Left out {len(dataset) - len(kept)} of {len(dataset)} images that cannot be used.")
    if not len(kept):
        raise ValueError("None of the images can be used.")
    return kept
