#!/usr/bin/env python
# /// script
# dependencies = ["crate-mae-hf[train]"]
# ///
"""Make scenes for semantic segmentation: garments of the bundled Fashion-MNIST sample on a black canvas, with masks.

    python examples/data/garment_scenes.py --output_dir outputs/garment_scenes

Each scene has two to four garments at places that the seed decides; a later one covers those before. A pixel's class is
the garment that shows there, or 0, the background: a garment's pixels are those that are not black. Scenes of the split
"train" have garments of the training images alone, those of "test" of the test images. The columns are "image", grey,
and "label", the mask.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image

from crate_mae_hf.cli import check_output_dir, clear_errors

SAMPLE = Path(__file__).parent / "fashion_mnist_sample"
GARMENT_SIZE = 28
NUM_GARMENTS = (2, 4)  # fewest and most in a scene


def draw_scene(
    garments: Sequence[Mapping[str, Any]], size: int, generator: np.random.Generator
) -> tuple[PIL.Image.Image, PIL.Image.Image]:
    """Return a scene and its mask.

    Args:
        garments: Grey pictures to choose from, "image", each with its class, "label", which counts from 1 in the mask.
        size: Height and width of the scene.
        generator: Decides which garments, and where.
    """
    scene, mask = np.zeros((2, size, size), dtype=np.uint8)
    for index in generator.integers(len(garments), size=generator.integers(*NUM_GARMENTS, endpoint=True)):
        pixels, label = np.asarray(garments[int(index)]["image"]), garments[int(index)]["label"]
        top, left = generator.integers(size - GARMENT_SIZE, size=2, endpoint=True)
        window = (slice(top, top + GARMENT_SIZE), slice(left, left + GARMENT_SIZE))
        scene[window] = np.where(pixels > 0, pixels, scene[window])
        mask[window] = np.where(pixels > 0, label + 1, mask[window])
    return PIL.Image.fromarray(scene), PIL.Image.fromarray(mask)


def main() -> None:
    """Draw the scenes of each split, and write them as one Parquet file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/garment_scenes"), help="a new or empty folder")
    parser.add_argument("--num_train", type=int, default=4000, help="scenes of training images")
    parser.add_argument("--num_test", type=int, default=500, help="scenes of test images")
    parser.add_argument("--size", type=int, default=56, help="height and width of a scene")
    parser.add_argument("--seed", type=int, default=0, help="decides which garments, and where")
    args = parser.parse_args()
    check_output_dir(args.output_dir, overwrite=False)
    if args.size < GARMENT_SIZE:
        raise ValueError(f"`size` must be at least {GARMENT_SIZE}, the size of a garment, got {args.size}.")
    num_scenes = {"train": args.num_train, "test": args.num_test}
    if min(num_scenes.values()) < 1:
        raise ValueError(f"`num_train` and `num_test` must be positive, got {args.num_train} and {args.num_test}.")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for number, (split, count) in enumerate(num_scenes.items()):
        garments: Any = datasets.load_dataset(str(SAMPLE), split=split)
        generator = np.random.default_rng([args.seed, number])
        pairs = [draw_scene(garments, args.size, generator) for _ in range(count)]
        rows = [{"image": scene, "label": mask} for scene, mask in pairs]
        path = args.output_dir / f"{split}.parquet"
        datasets.Dataset.from_list(rows, features=features).to_parquet(path)
        print(f"{path}: {count} scenes of {args.size} x {args.size} pixels")


if __name__ == "__main__":
    with clear_errors():
        main()
