"""Golden values: the files in `reference`."""

from pathlib import Path

import torch
from safetensors import safe_open

REFERENCE = Path(__file__).parent / "reference"


def read_golden(name: str) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """The metadata and all tensors of a golden file."""
    with safe_open(REFERENCE / f"{name}.safetensors", "pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
