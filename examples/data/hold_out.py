#!/usr/bin/env python
# /// script
# dependencies = ["crate-mae-hf[train]"]
# ///
"""Hold out training images of the bundled sample to choose settings by, so that its test images are never seen.

    python examples/data/hold_out.py --output_dir outputs/held_out
    python examples/run_mae.py examples/recipes/fashion_mnist_sample.yaml --dataset_name outputs/held_out

Writes a dataset of the same form: of the 10,000 training images its split "train" has 8,500 and its split "test" the
other 1,500, drawn by the seed, of each class alike.
"""

import argparse
from pathlib import Path

import datasets

from crate_mae_hf.cli import check_output_dir, clear_errors
from crate_mae_hf.data.labels import hold_out

DATA = Path(__file__).parent / "fashion_mnist_sample"
SHARE = 0.15


def main() -> None:
    """Split the training images in two, and write both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/held_out"), help="a new or empty folder")
    parser.add_argument("--seed", type=int, default=0, help="decides which images")
    args = parser.parse_args()
    check_output_dir(args.output_dir, overwrite=False)
    # The images stay the files that they are.
    train = datasets.load_dataset(str(DATA), split="train").cast_column("image", datasets.Image(decode=False))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("train", "test"), hold_out(train, SHARE, args.seed), strict=True):
        path = args.output_dir / f"{name}.parquet"
        part.cast_column("image", datasets.Image()).to_parquet(path)
        print(f"{path}: {len(part)} images")


if __name__ == "__main__":
    with clear_errors():
        main()
