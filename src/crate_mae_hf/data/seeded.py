"""Images of which everything random is a function of the seed and of where they stand: epoch and index, or position."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import torch

from .decoding import Picture
from .images import read_pixels, say_how_to_skip


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
        transform: From a picture to a tensor; may draw from PyTorch's default generator.
        min_size: Smallest usable (height, width), the size of a patch.
        seed: Two runs with the same seed see the same draws.
    """

    needs_color = False  # whether grey images cannot be used

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        transform: Callable[[Picture], torch.Tensor],
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

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        """Return an item by its index in this epoch, or by (epoch, index), as [`EndlessBatches`] has it."""
        epoch, index = index if isinstance(index, tuple) else (int(self.epoch), index)
        return self.make_item(self.records[index], f"number {index}", epoch, index)

    def make_item(self, record: Mapping[str, Any], where: str, *position: int) -> dict[str, Any]:
        """Return the item of one image.

        Args:
            record: Undecoded image under the key "image".
            where: Name of the image in errors where it has no path.
            *position: What decides the draws beside the seed.
        """
        (item_seed,) = np.random.SeedSequence([self.seed, *position]).generate_state(1, np.uint64)
        with seeded(int(item_seed)):
            return self.build_item(self.read(record, where), record)

    def read(self, record: Mapping[str, Any], where: str) -> torch.Tensor:
        """Decode and transform one image; may draw from PyTorch's default generator."""
        with say_how_to_skip():
            image = read_pixels(record["image"], self.min_size, where, self.needs_color)
        return self.transform(image)


class EndlessBatches(torch.utils.data.Sampler[list[tuple[int, int]]]):
    """Batches without an end, of (epoch, index): each epoch has its own order, a function of the seed.

    All batches are of one size: the images that are left over at the end of an epoch are left out of it.

    Args:
        num_items: Number of images.
        batch_size: Images per batch; all of them where there are fewer.
        seed: Two runs with the same seed see the same batches.
        start: Number of the first batch.
    """

    def __init__(self, num_items: int, batch_size: int, seed: int, start: int = 0):
        self.num_items = num_items
        self.batch_size = min(batch_size, num_items)
        self.seed = seed
        self.start = start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first, place = divmod(self.start, self.num_items // self.batch_size)
        for epoch in itertools.count(first):
            order = np.random.default_rng([self.seed, epoch]).permutation(self.num_items).tolist()
            for begin in range(place * self.batch_size, self.num_items - self.batch_size + 1, self.batch_size):
                yield [(epoch, index) for index in order[begin : begin + self.batch_size]]
            place = 0


class SeededStream(torch.utils.data.IterableDataset):
    """Images read one after the other, again and again; everything random is a function of (seed, pass, position).

    It has no end: the number of steps ends a run. So the position alone says where an interrupted run was. Data loader
    workers share the files of the stream, and shuffle each its own: another number of workers gives another order.

    Args:
        stream: Undecoded images under the key "image".
        items: Makes the items; its own images are not used, its seed is.
        buffer_size: Number of images to shuffle among.
    """

    def __init__(self, stream: datasets.IterableDataset, items: SeededDataset, buffer_size: int):
        self.stream = stream
        self.items = items
        self.buffer_size = buffer_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = torch.utils.data.get_worker_info()
        worker = 0 if info is None else info.id
        for number in itertools.count():
            position = -1
            for position, record in enumerate(
                self.stream.shuffle(seed=self.items.seed + number, buffer_size=self.buffer_size)
            ):
                where = f"{position} of pass {number} of the stream"
                yield self.items.make_item(record, where, number, worker, position)
            if position < 0:  # a worker without a file of its own
                return
