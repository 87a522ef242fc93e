"""What metadata files say about the images of a folder: rows that name an image by `file_name`, as in `datasets`."""

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from transformers.utils import logging

from .folders import ImageFolder, list_names

logger = logging.get_logger(__name__)


def read_table(file: Path) -> pa.Table:
    """Read one metadata file.

    Raises:
        ValueError: If it cannot be read, or does not say which images it is about; names the file.
    """
    try:
        if file.suffix == ".csv":
            options = pyarrow.csv.ConvertOptions(strings_can_be_null=True)
            table = pyarrow.csv.read_csv(file, convert_options=options)
        elif file.suffix == ".jsonl":
            table = pyarrow.json.read_json(file)
        else:
            table = pyarrow.parquet.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"Cannot read {file}: {error}.") from error
    if "file_name" not in table.column_names:
        raise ValueError(
            f"{file} has no column `file_name`, but {', '.join(table.column_names)}; a CSV file has commas between its "
            "columns."
        )
    return table


def read_rows(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return what metadata files say about each image, by its path.

    Raises:
        ValueError: If a file cannot be read, or two rows are about one image; names the file.
    """
    rows: dict[str, dict[str, Any]] = {}
    for file in files:
        for number, row in enumerate(read_table(file).to_pylist()):
            name = row.pop("file_name")
            if not isinstance(name, str):
                raise ValueError(f"{file} names no image in row {number}, but {name}.")
            path = os.path.normpath(file.parent / name.replace("\\", "/"))
            if path in rows:
                raise ValueError(f"{file} is the second to say something about {path}, in row {number}.")
            rows[path] = row
    return rows


def image_columns(
    folder: ImageFolder, rows: Mapping[str, Mapping[str, Any]], paths: Collection[str], in_splits: bool
) -> dict[str, list]:
    """Return what is known of images: the columns of the metadata, None where an image has no row.

    Where the metadata has neither "label" nor "labels", "label" is the name of the folder around each image.

    Args:
        folder: Folder of the images.
        rows: What `read_rows` found in the folder.
        paths: Some of the images.
        in_splits: Whether folders of splits are no classes.
    """
    names = dict.fromkeys(name for row in rows.values() for name in row if name != "image")
    columns: dict[str, list] = {name: [rows.get(path, {}).get(name) for path in paths] for name in names}
    if not names.keys() & {"label", "labels"}:
        columns["label"] = [folder.class_name(path, in_splits) for path in paths]
    return columns


def check_rows(folder: ImageFolder, rows: Mapping[str, Any], argument: str, skip: bool) -> None:
    """Make sure that every row is about an image of the folder, or say which are not.

    Raises:
        ValueError: If one is not, unless `skip` is set.
    """
    if not (missing := [path for path in rows if path not in folder.images]):
        return
    message = f"{len(missing)} of {len(rows)} rows of metadata name no image in {folder.root}: {list_names(missing)}."
    if not skip:
        raise ValueError(f"`{argument}`: {message} `--skip_bad_images` leaves such out.")
    logger.warning(message)
