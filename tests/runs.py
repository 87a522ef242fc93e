"""What tests that run example scripts have in common: images to train on, and what a run has logged."""

import json
from pathlib import Path

import numpy as np
import PIL.Image


def write_noise(path: Path, generator: np.random.Generator) -> None:
    """Write a small picture of noise, with the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)


def logged(folder: Path, name: str) -> list[float]:
    """The values of a name in the log of a run."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [float(entry[name]) for entry in history if name in entry]
