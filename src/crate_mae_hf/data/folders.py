"""Folders of images: which files, in which order, and in which split. A path is a path, never a pattern."""

import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import PIL.Image
from transformers.utils import logging

logger = logging.get_logger(__name__)

# What Pillow can open, but for containers that may hold no picture or several.
IMAGE_SUFFIXES = frozenset(
    suffix for suffix, kind in PIL.Image.registered_extensions().items() if kind in PIL.Image.OPEN
) - {".h5", ".hdf"}
METADATA_NAMES = frozenset({"metadata.csv", "metadata.jsonl", "metadata.parquet"})
# A subfolder belongs to a split if one of these words stands in its name, as in `datasets`.
SPLIT_WORDS = {
    "train": "train|training",
    "validation": "validation|valid|dev|val",
    "test": "test|testing|eval|evaluation",
}
SPLITS = {name: re.compile(rf"(^|[-._ 0-9])({words})([-._ 0-9]|$)") for name, words in SPLIT_WORDS.items()}


@dataclass
class ImageFolder:
    """What a folder and its subfolders hold.

    Attributes:
        root: The folder.
        images: Path of each image, sorted as text ("a-b/0.png" before "a/0.png"), with the time of its last change.
        metadata: Metadata files, sorted.
        hidden: Images whose name, or the name of a folder around them, starts with a dot.
        others: Other files.
    """

    root: Path
    images: dict[str, int] = field(default_factory=dict)
    metadata: list[Path] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def split(self) -> dict[str, dict[str, int]]:
        """Return the images by split: those of the subfolders that are named so, or all of them as "train"."""
        found: dict[str, dict[str, int]] = {name: {} for name in SPLITS}
        others: list[str] = []
        for path, changed in self.images.items():
            folders = Path(path).relative_to(self.root).parts[:-1]
            name = next((name for part in folders if (name := split_name(part))), None)
            if name is None:
                others.append(path)
            else:
                found[name][path] = changed
        found = {name: images for name, images in found.items() if images}
        if not found:
            return {"train": self.images}
        if others:
            logger.warning(
                f"Left out {len(others)} images in {self.root} that lie in no folder of a split ({', '.join(found)}): "
                f"{list_names(others)}."
            )
        return found

    def class_name(self, path: str, in_splits: bool) -> str | None:
        """Return the name of the folder around an image; None right in the root, or in the folder of a split."""
        folders = Path(path).relative_to(self.root).parts[:-1]
        return None if not folders or (in_splits and split_name(folders[-1])) else folders[-1]


def split_name(folder: str) -> str | None:
    """Return the split whose word stands in the name of a folder."""
    return next((name for name, words in SPLITS.items() if words.search(folder)), None)


def list_names(names: Sequence[object]) -> str:
    """Return the first few names in one line."""
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def walk(root: Path, argument: str) -> Iterator[os.DirEntry]:
    """Yield the files in a folder and its subfolders, each folder once, whatever links lead to it.

    Raises:
        ValueError: If a folder cannot be read.
    """
    seen: set[str] = set()
    folders = deque([str(root)])
    while folders:
        folder = folders.popleft()
        real = os.path.realpath(folder)
        if real in seen or Path(os.path.realpath(os.path.dirname(folder))).is_relative_to(real):
            logger.warning(f"Left out {folder}: it links to a folder that is read anyway, or around it.")
            continue
        seen.add(real)
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise ValueError(f"`{argument}`: cannot read the folder {folder}: {error.strerror}.") from error
        for entry in entries:
            if not entry.is_dir():
                yield entry
            elif entry.is_symlink():
                folders.append(entry.path)  # after all folders that are there in their own right
            else:
                folders.appendleft(entry.path)


def scan_folder(folder: str | Path, argument: str) -> ImageFolder:
    """Find what is in a folder and its subfolders, also behind links.

    Args:
        folder: Path of the folder.
        argument: The argument that names it, for errors.

    Raises:
        ValueError: If the folder is missing or cannot be read, or an image has a name that cannot be kept as text.
    """
    found = ImageFolder(Path(folder).absolute())
    if not found.root.is_dir():
        raise ValueError(f"`{argument}`: there is no folder {folder}.")
    images: list[tuple[str, int]] = []
    for entry in walk(found.root, argument):
        path = Path(entry.path)
        is_image = path.suffix.lower() in IMAGE_SUFFIXES and (entry.is_file() or entry.is_symlink())
        if any(part.startswith(".") for part in path.relative_to(found.root).parts):
            found.hidden += [entry.path] if is_image else []
        elif is_image and any("\udc80" <= character <= "\udcff" for character in entry.path):
            raise ValueError(f"`{argument}`: the path {entry.path!r} is not in UTF-8: rename it.")
        elif is_image:  # a link to nothing is one that cannot be read
            images.append((entry.path, entry.stat().st_mtime_ns if entry.is_file() else 0))
        elif entry.name in METADATA_NAMES:
            found.metadata.append(path)
        else:
            found.others.append(entry.path)
    found.images = dict(sorted(images))
    found.metadata.sort()
    return found


def warn_of_rest(found: ImageFolder, folder: str | Path) -> None:
    """Say which files in a folder are left out, by the name that the user has for it."""
    for paths, kind in ((found.hidden, "hidden images"), (found.others, "files that are no images")):
        if paths:
            logger.warning(f"Left out {len(paths)} {kind} in {folder}: {list_names(sorted(paths))}.")


def read_folder(folder: str | Path, argument: str) -> ImageFolder:
    """Find the images in a folder and its subfolders, also behind links, and say which files are left out.

    Args:
        folder: Path of the folder.
        argument: The argument that names it, for errors.

    Raises:
        ValueError: If the folder is missing, cannot be read or has no image.
    """
    found = scan_folder(folder, argument)
    if not found.images:
        raise ValueError(f"`{argument}`: there are no images in {folder}.")
    warn_of_rest(found, folder)
    return found


def find_images(folder: str | Path, argument: str = "images") -> list[Path]:
    """Return the images in a folder and its subfolders, see `read_folder`."""
    return [Path(path) for path in read_folder(folder, argument).images]
