"""Reading files of official checkpoints, safely, and recognising those of other models."""

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    r"^(decoder_)?blocks\.\d+\.(attn|mlp)\.": (
        "is a ViT or ViTMAE in the layout of MAE or timm: convert it with Transformers' own script for ViTMAE"
    ),
    r"^(vit|vit_mae|encoder|embeddings)\.": (
        "is a model in the layout of Transformers, such as ViTMAE: load it with `from_pretrained` of its own class"
    ),
}


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Read an official state dict, bare or under `model` or `state_dict`, without `module.` prefixes.

    Nothing in the file is run: pickles are read with `weights_only=True`.

    Raises:
        ValueError: If the file is missing, damaged, holds more than tensors and plain values, or is of another model.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"`checkpoint` must be a .pth or .safetensors file, {path} {found}.")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            # Training scripts in the manner of MAE store their command line beside the weights.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise ValueError(
                f"{path} holds Python objects that may run code when loaded ({code[1]}), so it was not loaded. If you "
                "trust where it comes from, save its state dict alone and convert that: "
                "`torch.save(torch.load(path, weights_only=False)['model'], new_path)`."
            ) from error
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as a {path.suffix or 'PyTorch'} file: it is damaged, "
            "cut short, or a web page or pointer in place of the file. Download it again."
        ) from error
    for name in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(v, torch.Tensor) for v in content.values())
    ):
        raise ValueError(
            f"{path} holds no state dict: it must be a mapping from names to tensors, bare or under `model` or "
            "`state_dict`."
        )
    state_dict = {key.removeprefix("module."): value for key, value in content.items()}
    for pattern, message in FOREIGN.items():
        if any(re.search(pattern, key) for key in state_dict):
            raise ValueError(f"{path} {message}.")
    return state_dict
