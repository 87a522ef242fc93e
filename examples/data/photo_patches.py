#!/usr/bin/env python
# /// script
# dependencies = ["crate-mae-hf[train]", "scikit-image"]
# ///
"""Cut patches out of the photographs that scikit-image and scikit-learn ship, with the photograph as label.

    python examples/data/photo_patches.py --output_dir outputs/photo_patches
    python examples/data/photo_patches.py --source FOLDER --output_dir outputs/photo_patches

Of each photograph the left half gives the split "train", 1,000 patches, and the right half "test", 250. A patch is a
square of 32 x 32 pixels, or of `--size`, at a place that the seed decides. `--source` is a folder with scikit-image's
files, where it is not installed.

Only photographs that everybody may use are taken. By the documentation of scikit-image: astronaut.png (NASA, public
domain), chelsea.png (CC0, Stefan van der Walt), coffee.png (CC0, Rachel Michetti), hubble_deep_field.jpg (NASA, public
domain), retina.jpg (CC0, Mikael Häggström) and rocket.jpg (SpaceX, public domain). By that of scikit-learn: china.jpg
(CC BY 2.0, danielbuechele on Flickr) and flower.jpg (CC BY 2.0, vultilion on Flickr), whose authors have to be named
with what is made of them.
"""

import argparse
import importlib.util
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import sklearn

from crate_mae_hf.cli import check_output_dir, clear_errors
from crate_mae_hf.data.decoding import open_picture

SCIKIT_IMAGE = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "retina.jpg",
    "rocket.jpg",
)
SCIKIT_LEARN = ("china.jpg", "flower.jpg")
NUM_PATCHES = {"train": 1000, "test": 250}  # of each photograph


def find_photographs(source: Path | None) -> list[Path]:
    """Return the files of all photographs.

    Args:
        source: Folder with scikit-image's; that of the installed package when left out.

    Raises:
        ValueError: If one is missing.
    """
    if source is None:
        package = importlib.util.find_spec("skimage")  # importing it would take long
        if package is None or not package.submodule_search_locations:
            raise ValueError(
                f"scikit-image is not installed: `pip install scikit-image`, or name a folder with "
                f"{', '.join(SCIKIT_IMAGE)} by `--source`."
            )
        source = Path(package.submodule_search_locations[0]) / "data"
    folders = {source: SCIKIT_IMAGE, Path(sklearn.__file__).parent / "datasets" / "images": SCIKIT_LEARN}
    paths = [folder / name for folder, names in folders.items() for name in names]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise ValueError(f"`source` lacks {', '.join(missing)}.")
    return paths


def draw_patches(
    picture: PIL.Image.Image, size: int, num_patches: int, generator: np.random.Generator
) -> list[PIL.Image.Image]:
    """Return squares of a picture, `size` pixels wide."""
    patches = []
    for _ in range(num_patches):
        left, top = (int(generator.integers(0, length - size, endpoint=True)) for length in picture.size)
        patches.append(picture.crop((left, top, left + size, top + size)))
    return patches


def halves(photograph: PIL.Image.Image) -> dict[str, PIL.Image.Image]:
    """Return the left half of a photograph to train on, and the right half to test on."""
    width, height = photograph.size
    boxes = {"train": (0, 0, width // 2, height), "test": (width - width // 2, 0, width, height)}
    return {split: photograph.crop(box) for split, box in boxes.items()}


def main() -> None:
    """Find the photographs, cut them, and write one Parquet file per split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="folder with the photographs of scikit-image")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/photo_patches"), help="a new or empty folder")
    parser.add_argument("--size", type=int, default=32, help="height and width of a patch")
    parser.add_argument("--seed", type=int, default=0, help="decides which patches")
    args = parser.parse_args()
    check_output_dir(args.output_dir, overwrite=False)
    paths = find_photographs(args.source)
    generator = np.random.default_rng(args.seed)
    rows: dict[str, dict[str, list]] = {split: {"image": [], "label": []} for split in NUM_PATCHES}
    for label, path in enumerate(paths):
        photograph = open_picture(path.read_bytes(), str(path)).convert("RGB")
        for split, half in halves(photograph).items():
            if not 0 < args.size <= min(half.size):
                raise ValueError(f"`size` must be positive, and at most {min(half.size)} for {path}, got {args.size}.")
            rows[split]["image"] += draw_patches(half, args.size, NUM_PATCHES[split], generator)
            rows[split]["label"] += [label] * NUM_PATCHES[split]
    names = datasets.ClassLabel(names=[path.stem for path in paths])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for split, columns in rows.items():
        path = args.output_dir / f"{split}.parquet"
        datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
        print(f"{path}: {len(columns['label'])} patches of {len(paths)} photographs")


if __name__ == "__main__":
    with clear_errors():
        main()
