"""Datasets in which everything random is a function of the seed, the epoch and the index."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import PIL.Image
import torch

from .images import decode


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Context manager: PyTorch's default generator draws from a seed, and goes on as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class SeededDataset(torch.utils.data.Dataset, ABC):
    """Images, of which everything random is a function of (seed, epoch, index).

    What is drawn does not depend on the number of processes, data loader workers or gradient accumulation steps nor on
    where a run was interrupted; it differs between images and epochs, and so between ranks.

    Args:
        records: Undecoded images under the key "image", by index.
        transform: From a Pillow image to a tensor; may draw from PyTorch's default generator.
        min_size: Smallest usable (height, width), the size of a patch.
        seed: Two runs with the same seed see the same draws.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        transform: Callable[[PIL.Image.Image], torch.Tensor],
        min_size: tuple[int, int],
        seed: int,
    ):
        self.records = records
        self.transform = transform
        self.min_size = min_size
        self.seed = seed
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()  # reaches workers that outlive an epoch

    @abstractmethod
    def build_item(self, pixel_values: torch.Tensor, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return the item of a transformed image; may draw from PyTorch's default generator."""

    def set_epoch(self, epoch: int) -> None:
        """Draw anew from here on."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        image = decode(record["image"], self.min_size, f"number {index}")
        (item_seed,) = np.random.SeedSequence([self.seed, int(self.epoch), index]).generate_state(1, np.uint64)
        with seeded(int(item_seed)):
            return self.build_item(self.transform(image), record)
