"""Images per second of the input pipeline in several ways, and of the model: `python -m benchmarks.data`."""

import argparse
import io
import operator
import statistics
import time
from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader

from benchmarks.measure import interleave, keep_freed_memory, summarize
from benchmarks.models import Size, Step
from crate_mae_hf import CrateMaeConfig, CrateMaeImageProcessor
from crate_mae_hf.data.augmentation import build_train_transform
from crate_mae_hf.data.images import decode
from crate_mae_hf.data.masks import MaskingDataset
from crate_mae_hf.tables import markdown_table


def make_photos(number: int, height: int, width: int) -> list[dict[str, dict]]:
    """Encode smooth random pictures as JPEG, undecoded as `datasets` gives them."""
    generator = np.random.default_rng(0)
    records = []
    for _ in range(number):
        small = generator.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        picture = PIL.Image.fromarray(small).resize((width, height), PIL.Image.Resampling.BICUBIC)
        picture.save(buffer := io.BytesIO(), "JPEG", quality=90)
        records.append({"image": {"bytes": buffer.getvalue(), "path": None}})
    return records


class PillowDataset(MaskingDataset):
    """Images that Pillow decodes, whatever else could."""

    def read(self, record: Mapping[str, Any], where: str) -> torch.Tensor:
        return self.transform(decode(record["image"], self.min_size, where))


def build_datasets(num_images: int, photo_size: tuple[int, int], image_size: int, patch_size: int) -> dict:
    """Return the same images by name of the way that they are prepared."""
    records = make_photos(num_images, *photo_size)
    config = CrateMaeConfig(image_size=image_size, patch_size=patch_size)
    processor = CrateMaeImageProcessor(crop_size={"height": image_size, "width": image_size})
    normalised, in_8_bits = (build_train_transform(processor, normalize=normalize) for normalize in (True, False))
    return {
        "decoded by Pillow": PillowDataset(records, normalised, config, seed=0),
        "as it is": MaskingDataset(records, normalised, config, seed=0),
        "normalised on the device": MaskingDataset(records, in_8_bits, config, seed=0),
    }


def time_passes(datasets: dict, batch_size: int, num_workers: int, rounds: int) -> list[dict[str, str]]:
    """Time passes over each dataset in turns, and return a row of a table for each.

    Without workers CPU seconds count, which other programs on the machine disturb less.
    """
    loaders = {
        name: DataLoader(dataset, batch_size, num_workers=num_workers, persistent_workers=num_workers > 0)
        for name, dataset in datasets.items()
    }
    passes: dict[str, Any] = {name: partial(deque, loader, maxlen=0) for name, loader in loaders.items()}
    clock = time.perf_counter if num_workers else time.process_time
    times = interleave(passes, rounds, "cpu", f"{num_workers} workers", warmup=1, clock=clock)
    first = next(iter(times.values()))
    return [
        {
            "input pipeline": name,
            "workers": str(num_workers),
            "images/s": f"{len(datasets[name]) / summarize(seconds)['median']:.0f}",
            "to Pillow": f"{statistics.median(map(operator.truediv, first, seconds)):.2f}",
        }
        for name, seconds in times.items()
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--num_images", type=int, default=256)
    parser.add_argument("--photo_size", nargs=2, type=int, default=[375, 500], help="height and width of the JPEGs")
    parser.add_argument("--num_workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--patch_size", type=int, default=16)
    parser.add_argument("--hidden_size", type=int, default=768)
    parser.add_argument("--num_layers", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(arguments)
    if min(args.photo_size) < 32 or args.num_images < args.batch_size:
        parser.error("`--photo_size` must be at least 32 x 32, and `--num_images` a batch or more.")

    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    datasets = build_datasets(args.num_images, args.photo_size, args.image_size, args.patch_size)
    rows = [
        row
        for num_workers in args.num_workers
        for row in time_passes(datasets, args.batch_size, num_workers, args.rounds)
    ]
    print(markdown_table(rows))
    torch.set_num_threads(threads)
    model_size = Size(args.hidden_size, args.num_layers, args.hidden_size // 64 or 1, args.image_size, args.patch_size)
    step = Step("crate_mae", "train", model_size, torch.float32, args.device)
    step.set_batch_size(args.batch_size)
    times = interleave(step.phases, args.rounds, args.device, "model")
    rate = args.batch_size / sum(summarize(seconds)["median"] for seconds in times.values())
    print(f"A training step takes {rate:.1f} images per second.")


if __name__ == "__main__":
    main()
