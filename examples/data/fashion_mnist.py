#!/usr/bin/env python
# /// script
# dependencies = ["crate-mae-hf[train]"]
# ///
"""Make a dataset of all 60,000 training images of Fashion-MNIST, with the bundled test images beside them.

    apt-get install dataset-fashion-mnist
    python examples/data/fashion_mnist.py --source /usr/share/datasets/fashion-mnist --output_dir outputs/fashion_mnist

The source is a folder with the four files of github.com/zalandoresearch/fashion-mnist, here Debian's. A training image
that is among the bundled test images, pixel by pixel, would be left out and counted; there is none.
"""

import argparse
import gzip
import math
import zlib
from pathlib import Path

import datasets
import numpy as np
import PIL.Image

from crate_mae_hf.cli import check_output_dir, clear_errors

SAMPLE = Path(__file__).parent / "fashion_mnist_sample"
IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def read_idx(path: Path) -> np.ndarray:
    """Return the bytes of an IDX file as an array of the shape that it says.

    Raises:
        ValueError: If there is no such file, or it is no IDX file of bytes.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"`source`: cannot read {path}: {error}") from error
    # Two zeros, 8 for unsigned bytes, the number of dimensions; then each dimension as four bytes, the highest first.
    dimensions = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(content[offset : offset + 4], "big") for offset in range(4, start, 4)]
    if not dimensions or len(content) - start != math.prod(shape):
        raise ValueError(f"`source`: {path} is no IDX file of unsigned bytes.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def main() -> None:
    """Read the source, leave out what the test images have, and write one Parquet file per split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help=f"folder with {IMAGES} and {LABELS}")
    parser.add_argument("--output_dir", type=Path, required=True, help="a new or empty folder")
    args = parser.parse_args()
    check_output_dir(args.output_dir, overwrite=False)
    images, labels = read_idx(args.source / IMAGES), read_idx(args.source / LABELS)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(f"`source` has images of shape {images.shape} and labels of shape {labels.shape}.")

    test = datasets.load_dataset(str(SAMPLE), split="test")
    held_back = {np.asarray(image).tobytes() for image in test["image"]}
    kept = [index for index, image in enumerate(images) if image.tobytes() not in held_back]
    rows = {"image": [PIL.Image.fromarray(images[index]) for index in kept], "label": labels[kept].tolist()}
    splits = {"train": datasets.Dataset.from_dict(rows, features=test.features), "test": test}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        split.to_parquet(args.output_dir / f"{name}.parquet")
    print(f"{len(kept)} training images ({len(images) - len(kept)} left out) and {len(test)} test images written.")


if __name__ == "__main__":
    with clear_errors():
        main()
