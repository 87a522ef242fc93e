"""What all objectives share: an autoencoder that is kept, and everything else, which is there for training alone."""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..adapters import has_decoder

# The weights of an objective without its autoencoder, beside those of the autoencoder.
FILE = "objective.safetensors"
PREFIX = "autoencoder."


class Objective(nn.Module, ABC):
    """What an autoencoder is trained by. `autoencoder` is what is saved; everything else is left behind.

    `forward` takes a batch and returns a `ModelOutput` with `loss` and the terms of which it is made, for the log.

    Args:
        autoencoder: [`CrateMaeForPreTraining`], or `ViTMAEForPreTraining` of Transformers.

    Attributes:
        progress: Share of the training that is over, which the Trainer sets; 1 outside of training.
        elsewhere: How the names of weights begin that have files of their own.

    Raises:
        ValueError: If the model has no decoder.
    """

    progress: torch.Tensor
    elsewhere: tuple[str, ...] = (PREFIX,)

    def __init__(self, autoencoder: PreTrainedModel):
        super().__init__()
        if not has_decoder(autoencoder):
            raise ValueError(f"`autoencoder` must have a decoder, got {type(autoencoder).__name__}.")
        self.autoencoder = autoencoder
        self.register_buffer("progress", torch.ones(()), persistent=False)

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """Return what a model card says of the objective: "objective" and its paper, and the settings by name.

        "labels" says which were used; it is left out where none were.
        """

    @property
    def config(self) -> PreTrainedConfig:
        """The autoencoder's configuration, which Trainer and its callbacks look at."""
        return self.autoencoder.config

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Recompute the autoencoder's activations in the backward pass, as `PreTrainedModel` has it."""
        self.autoencoder.activation_checkpointing_enable(*args, **kwargs)

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """The same, as Transformers called it before 5.23."""
        self.autoencoder.gradient_checkpointing_enable(*args, **kwargs)

    def _rest(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in self.state_dict().items() if not name.startswith(self.elsewhere)}

    def save_rest(self, folder: str | Path) -> None:
        """Write everything but the autoencoder to a folder, with what `describe` says in the file's metadata."""
        # One entry: several would be written in any order.
        save_file(self._rest(), Path(folder) / FILE, metadata={"description": json.dumps(self.describe())})

    def load_rest(self, folder: str | Path) -> None:
        """Read what `save_rest` wrote.

        Raises:
            ValueError: If the folder has no such file, or one of another objective or of other sizes.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise ValueError(f"There is no {FILE} in {folder}: it is none of a run with an objective.")
        rest = load_file(path)
        expected = {name: value.shape for name, value in self._rest().items()}
        if {name: value.shape for name, value in rest.items()} != expected:
            raise ValueError(f"{path} is not that of this {type(self).__name__}: it has other weights or sizes.")
        self.load_state_dict(rest, strict=False)


def read_description(folder: str | Path) -> dict[str, str]:
    """Return what `Objective.describe` said of the run that wrote a folder; nothing where there was no objective."""
    path = Path(folder) / FILE
    if not path.is_file():
        return {}
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get("description", "{}"))
