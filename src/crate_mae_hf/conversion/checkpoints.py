"""Reading files of official checkpoints, safely, and recognising those of other models."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..registry import MODELS

# Keys that betray another kind of checkpoint: what it is, and what to do.
FOREIGN = {
    rf"^({'|'.join(MODELS)})\.": (
        "is in this package's layout already: load it with `from_pretrained`, or add --reverse"
    ),
    r"^transformer\.layers\.\d+\.\d\.(fn\.)?(to_qkv|net)\.": "is a ViT in the layout of vit-pytorch, not a CRATE",
    r"^visual\.transformer\.resblocks\.\d+\.mlp\.c_fc\.weight$": (
        "is a CLIP whose vision tower is a ViT, not a CRATE-alpha"
    ),
    r"^Transformer/encoderblock_\d+/MlpBlock_": "is a ViT in the layout of Big Vision, not a CRATE-alpha",
    r"^(decoder_)?blocks\.\d+\.(attn|mlp)\.": (
        "is a ViT or ViTMAE in the layout of MAE or timm: convert it with Transformers' own script for ViTMAE"
    ),
    r"^(vit|vit_mae|encoder|embeddings)\.": (
        "is a model in the layout of Transformers, such as ViTMAE: load it with `from_pretrained` of its own class"
    ),
}


# Where training scripts keep the state dict in what they save, one within another.
NESTED = ("model", "state_dict")
ZIP_START = b"PK\x03\x04"
# What wrappers of PyTorch put into the names of weights, anywhere, and what models of others put before them.
WRAPPERS = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
PREFIXES = re.compile(r"^((module|model)\.)+")


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Read an official state dict, bare or under `model` or `state_dict`, whatever wrapped the model that was saved.

    Nothing in the file is run: pickles are read with `weights_only=True`. Of a JAX checkpoint (`.npz`) the parameters
    are read, without the state of its optimizer.

    Raises:
        ValueError: If the file is missing, damaged, holds more than tensors and plain values, or is of another model.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"`checkpoint` must be a .pth, .npz or .safetensors file, {path} {found}.")
    content = _read_file(path)
    while isinstance(content, Mapping) and (name := next((n for n in NESTED if _is_mapping(content, n)), None)):
        content = content[name]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(v, torch.Tensor) for v in content.values())
    ):
        raise ValueError(
            f"{path} holds no state dict: it must be a mapping from names to tensors, bare or under `model` or "
            f"`state_dict`; got {list_keys(content) if isinstance(content, Mapping) else type(content).__name__}."
        )
    state_dict: dict[str, torch.Tensor] = {}
    for key, value in content.items():
        name = PREFIXES.sub("", WRAPPERS.sub("", key))
        if name in state_dict:
            raise ValueError(f"{path} holds `{name}` more than once, under different prefixes such as that of `{key}`.")
        state_dict[name] = value
    for pattern, message in FOREIGN.items():
        if any(re.search(pattern, key) for key in state_dict):
            raise ValueError(f"{path} {message}.")
    return state_dict


def list_keys(content: Mapping[Any, Any]) -> str:
    """Return the top parts of the keys of a mapping in one line."""
    tops = list(dict.fromkeys(re.split(r"[./]", str(key))[0] for key in content))
    return f"the keys {', '.join(tops[:10])}" + (" and others" if len(tops) > 10 else "") if tops else "no keys"


def _is_mapping(content: Mapping[str, Any], name: str) -> bool:
    return isinstance(content.get(name), Mapping)


def _read_file(path: Path) -> Any:
    """Read what a file holds.

    Raises:
        ValueError: If it is cut short, damaged, or holds code.
    """
    size = f"{path} ({path.stat().st_size} bytes)"
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with path.open("rb") as file:
            is_archive = file.read(len(ZIP_START)) == ZIP_START
        if is_archive:
            if not zipfile.is_zipfile(path):
                raise ValueError(f"{size} is cut short: the end of the archive is missing. Download it again.")
            with zipfile.ZipFile(path) as archive:
                if broken := archive.testzip():
                    raise ValueError(f"{size} is damaged: the checksum of {broken} in it is wrong. Download it again.")
            if path.suffix == ".npz":
                return _read_arrays(path)
        # Training scripts in the manner of MAE store their command line beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, LookupError) as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise ValueError(
                f"{path} holds Python objects that may run code when loaded ({code[1]}), so it was not loaded. If you "
                "trust where it comes from, save its state dict alone and convert that: "
                "`torch.save(torch.load(path, weights_only=False)['model'], new_path)`."
            ) from error
        if "not fully covered" in str(error):  # what safetensors says
            raise ValueError(f"{size} is cut short: it ends before its last tensor. Download it again.") from error
        raise ValueError(
            f"{size} cannot be read as a {path.suffix or 'PyTorch'} file: it is damaged, cut short, or a web page or "
            "pointer in place of the file. Download it again."
        ) from error


def _read_arrays(path: Path) -> dict[str, torch.Tensor]:
    """Read the parameters in a JAX checkpoint, those under `params/`, or all arrays of one that has nothing else.

    Raises:
        ValueError: If they are no arrays of numbers.
    """
    with np.load(path, allow_pickle=False) as arrays:
        names = [name for name in arrays.files if name.startswith("params/")] or arrays.files
        try:
            return {name.removeprefix("params/"): _to_tensor(arrays[name]) for name in names}
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} must hold arrays of numbers alone: {error}") from error


def _to_tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype == np.dtype("V2"):  # what NumPy makes of bfloat16, which it does not know
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
