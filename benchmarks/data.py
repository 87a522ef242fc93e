"""Images per second of the input pipeline beside the model's: `python -m benchmarks.data`."""

import argparse
import io
import time

import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader

from benchmarks.measure import interleave, keep_freed_memory, summarize
from benchmarks.models import Size, Step
from crate_mae_hf import CrateMaeConfig, CrateMaeImageProcessor
from crate_mae_hf.data.augmentation import build_train_transform
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


def images_per_second(dataset: MaskingDataset, batch_size: int, num_workers: int) -> float:
    """Rate of the second of two passes, so that starting workers does not count."""
    loader = DataLoader(dataset, batch_size, num_workers=num_workers, persistent_workers=num_workers > 0)
    for _ in loader:
        pass
    start = time.perf_counter()
    number = sum(len(batch["pixel_values"]) for batch in loader)
    return number / (time.perf_counter() - start)


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
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(arguments)
    if min(args.photo_size) < 32 or args.num_images < args.batch_size:
        parser.error("`--photo_size` must be at least 32 x 32, and `--num_images` a batch or more.")

    keep_freed_memory()
    config = CrateMaeConfig(image_size=args.image_size, patch_size=args.patch_size)
    size = {"height": args.image_size, "width": args.image_size}
    transform = build_train_transform(CrateMaeImageProcessor(crop_size=size))
    dataset = MaskingDataset(make_photos(args.num_images, *args.photo_size), transform, config, seed=0)
    rates = {
        f"input pipeline, {workers} workers": images_per_second(dataset, args.batch_size, workers)
        for workers in args.num_workers
    }
    model_size = Size(args.hidden_size, args.num_layers, args.hidden_size // 64 or 1, args.image_size, args.patch_size)
    step = Step("crate_mae", "train", model_size, torch.float32, args.device)
    step.set_batch_size(args.batch_size)
    times = interleave(step.phases, args.rounds, args.device, "model")
    rates["training step"] = args.batch_size / sum(summarize(seconds)["median"] for seconds in times.values())
    print(markdown_table([{"": name, "images/s": f"{rate:.1f}"} for name, rate in rates.items()]), end="")


if __name__ == "__main__":
    main()
