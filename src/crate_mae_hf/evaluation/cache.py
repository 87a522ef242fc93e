"""Cache of features on disk, under a key of everything that they depend on."""

import hashlib
import inspect
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

from .. import adapters
from ..registry import find_code
from . import features
from .results import library_versions

logger = logging.get_logger(__name__)


def digest_bytes(chunks: Iterable[bytes]) -> str:
    """Return the SHA-256 of a sequence of byte strings; where one ends and the next begins counts."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(len(chunk).to_bytes(8, "little"))
        digest.update(chunk)
    return digest.hexdigest()


def digest_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of the names, types, shapes and values of tensors."""

    def chunks() -> Iterable[bytes]:
        for name in sorted(tensors):
            tensor = tensors[name].detach().cpu().contiguous()
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
            yield tensor.flatten().view(torch.uint8).numpy().tobytes()

    return digest_bytes(chunks())


def feature_settings(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    data_digest: str,
    layer: int,
    norm: bool | None,
    with_grid: bool = True,
) -> dict[str, Any]:
    """Return what the features of a model depend on; two dicts are equal where features can be shared.

    Weights count by their values and code by its source, whatever the name of the model and the version number.

    Args:
        model: Model on the device and in the type that it runs in.
        processor: Image processor of the model.
        data_digest: `digest_bytes` of the image files.
        layer: Layer of the features, see `layer_tokens`.
        norm: Whether the final norm is applied, see `layer_tokens`.
        with_grid: Whether the means over the quarters are among them.
    """
    files = {Path(inspect.getfile(module)) for module in (features, adapters)}
    for part in (model, processor):
        file = Path(inspect.getfile(type(part)))
        files |= {file.with_name(name) for name in find_code(file.parent, [f"{file.stem}.{type(part).__name__}"])}
    return {
        "weights": digest_tensors(model.state_dict()),
        "config": {key: value for key, value in model.config.to_dict().items() if key != "_name_or_path"},
        "image_processor": processor.to_dict(),
        "data": data_digest,
        "layer": layer,
        "norm": norm,
        "with_grid": with_grid,
        "dtype": str(model.dtype),
        "device": model.device.type,
        "code": digest_bytes(file.read_bytes() for file in sorted(files, key=lambda file: file.name) if file.is_file()),
        "versions": library_versions(),
    }


class FeatureCache:
    """Features in files of safetensors, each named by its settings and checked when it is read.

    A file appears under its name only when it is complete, so an interrupted run leaves nothing that would be used.

    Args:
        folder: Folder of the files; made when it is missing.

    Raises:
        ValueError: If the folder cannot be made.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"`feature_cache_dir`: cannot make the folder {self.folder}: {error}.") from error

    def get(self, settings: Mapping[str, Any], compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Return the features of these settings: those on disk, else what `compute` gives, which is then kept."""
        path = self.path(settings)
        if path.is_file():
            try:
                return self._read(path)
            except (OSError, SafetensorError, ValueError) as error:
                logger.warning(f"The cached features {path} are damaged ({error}); they are computed again.")
        computed = compute()
        try:
            self._write(path, computed, settings)
        except OSError as error:
            logger.warning(f"The features could not be kept in {path}: {error}")
        return computed

    def path(self, settings: Mapping[str, Any]) -> Path:
        """Return where the features of these settings are, or would be."""
        text = json.dumps(settings, sort_keys=True, default=str)
        return self.folder / f"{digest_bytes([text.encode()])}.safetensors"

    def _read(self, path: Path) -> dict[str, np.ndarray]:
        with safe_open(path, "np") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            expected = (file.metadata() or {}).get("digest")
        if _digest(found) != expected:
            raise ValueError("its checksum is wrong")
        return found

    def _write(self, path: Path, computed: dict[str, np.ndarray], settings: Mapping[str, Any]) -> None:
        metadata = {"settings": json.dumps(settings, default=str), "digest": _digest(computed)}
        descriptor, name = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
        os.close(descriptor)
        try:
            save_file(computed, name, metadata)
            os.replace(name, path)
        except BaseException as error:  # also an interrupt
            Path(name).unlink(missing_ok=True)
            if isinstance(error, SafetensorError):  # a full disk, for one
                raise OSError(str(error)) from error
            raise


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    return digest_tensors({name: torch.from_numpy(values) for name, values in arrays.items()})
