"""Checkpoints of Trainer: whether one holds all that a run goes on from; it is written bit by bit."""

import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint import FileSystemReader
from transformers.utils import logging

logger = logging.get_logger(__name__)

NAME = re.compile(r"checkpoint-(\d+)")
STATE = "trainer_state.json"  # Trainer writes it last
# What a run goes on from, and the files it may lie in: of one process or DDP, of FSDP (a file, or a folder of shards),
# and of DeepSpeed, whose file `latest` names a folder.
PARTS = {
    "weights": ("model.safetensors", "model.safetensors.index.json", "pytorch_model_fsdp*", "latest"),
    "state of the optimizer": ("optimizer.pt", "optimizer.bin", "optimizer_*", "latest"),
    "state of the learning rate": ("scheduler.pt", "latest"),
    "state of the random numbers": ("rng_state*.pth",),
}


def list_checkpoints(output_dir: Path) -> dict[int, Path]:
    """Return the checkpoints in a folder by their step, the last one first."""
    found = {int(match[1]): path for path in output_dir.glob("*") if (match := NAME.fullmatch(path.name))}
    return dict(sorted(found.items(), reverse=True))


def read_state(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint or an output folder says of its run; nothing where it does not.

    Raises:
        ValueError: If it cannot be read.
    """
    path = folder / STATE
    return json.loads(path.read_text()) if path.is_file() else {}


def check_file(path: Path) -> None:
    """Check that a file was written to its end.

    Raises:
        ValueError: If it was not; the message says no more than that.
        OSError: If it cannot be read.
    """
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt"):
                pass  # reads the header, and compares the length with it
        except SafetensorError as error:
            raise ValueError(str(error)) from error
    elif path.suffix in (".pt", ".pth", ".bin"):  # a zip: the table at its end, then every checksum
        try:
            with zipfile.ZipFile(path) as file:
                broken = file.testzip()
        except zipfile.BadZipFile as error:
            raise ValueError(str(error)) from error
        if broken:
            raise ValueError(f"the checksum of {broken} is wrong")
    elif path.suffix == ".distcp" and not (path.parent / ".metadata").is_file():
        raise ValueError("there is no .metadata beside it")
    elif path.name == ".metadata":
        for part in FileSystemReader(path.parent).read_metadata().storage_data.values():
            if (path.parent / part.relative_path).stat().st_size < part.offset + part.length:
                raise ValueError(f"{part.relative_path} is too short")


def find_fault(folder: Path) -> str | None:
    """Return why a run cannot be resumed from a checkpoint; None if it can.

    Every file is read through, as it is in resuming.
    """
    missing = [part for part, names in PARTS.items() if not any(any(folder.glob(name)) for name in names)]
    if not (folder / STATE).is_file():
        missing.append(STATE)
    for path in sorted(folder.glob("*.index.json")):
        try:
            shards = set(json.loads(path.read_text())["weight_map"].values())
        except (ValueError, KeyError) as error:
            return f"{path.name} cannot be read: {error}"
        missing += [name for name in sorted(shards) if not (folder / name).is_file()]
    if missing:
        return f"it lacks {', '.join(missing)}"
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            check_file(path)
        except (ValueError, OSError, EOFError, pickle.UnpicklingError) as error:
            return f"{path.relative_to(folder)} is not complete: {error}"
    return None


def last_complete_checkpoint(output_dir: Path) -> Path | None:
    """Return the last checkpoint that a run can be resumed from; those passed over are named in a warning."""
    for folder in list_checkpoints(output_dir).values():
        if (fault := find_fault(folder)) is None:
            return folder
        logger.warning(f"{folder} is passed over: {fault}.")
    return None
