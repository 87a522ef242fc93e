#!/usr/bin/env python
# /// script
# dependencies = ["crate-mae-hf[train,figures]"]
# ///
"""Find the images of a gallery that are nearest to query images by the features of a frozen vision model.

    python examples/retrieve.py
    python examples/retrieve.py --model_name_or_path outputs/mae --gallery FOLDER --queries OTHER --output_dir OUTPUT

Leaves in the output folder `neighbours.png`, some queries beside their nearest images, and `neighbours.json`, all of
them with their cosine distances, and where there are labels the precision among the nearest. Models are folders or
repositories of any vision model of Transformers; without other images the bundled Fashion-MNIST sample is used.
"""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from tqdm.auto import tqdm
from transformers import AutoImageProcessor
from transformers.utils import logging

import crate_mae_hf
from crate_mae_hf.analysis.pictures import neighbours_grid
from crate_mae_hf.cli import check_output_dir, clear_errors, parse_arguments
from crate_mae_hf.data.images import ImageArguments, Split, image_bytes, load_dataset, select_image_column
from crate_mae_hf.data.labels import find_label_column, read_labels
from crate_mae_hf.evaluation.cache import FeatureCache, digest_bytes, feature_settings
from crate_mae_hf.evaluation.comparison import DecodedImages
from crate_mae_hf.evaluation.encoders import load_encoder
from crate_mae_hf.evaluation.features import (
    FEATURES,
    available_features,
    default_workers,
    extract_features,
    image_batches,
    select_features,
)
from crate_mae_hf.loading import load

DATA = Path(__file__).parent / "data" / "fashion_mnist_sample"
FEATURE_CACHE = Path.home() / ".cache" / "crate_mae_hf" / "features"


@dataclass
class Arguments:
    """What to look for, where, and by which features."""

    model_name_or_path: str = field(
        default=str(crate_mae_hf.pretrained.path("fashion_mnist")),
        metadata={"help": "Any vision model of Transformers; the checkpoint that ships when left out."},
    )
    queries: str = field(default=str(DATA), metadata={"help": "A folder of images, or a dataset on the Hub."})
    query_split: str | None = field(
        default=None, metadata={"help": 'Its split; "test" where there is one, else the first.'}
    )
    gallery: str = field(default=str(DATA), metadata={"help": "The images to look among, likewise."})
    gallery_split: str | None = field(
        default=None, metadata={"help": 'Its split; "train" where there is one, else the first.'}
    )
    k: int = field(default=8, metadata={"help": "Number of nearest images."})
    features: Literal[FEATURES] = field(default="mean", metadata={"help": "What stands for an image."})  # type: ignore[valid-type]
    num_drawn: int = field(default=8, metadata={"help": "Queries in the picture, evenly spread over all."})
    batch_size: int = field(default=64, metadata={"help": "Images in memory at a time."})
    num_workers: int = field(
        default_factory=default_workers,
        metadata={"help": "Processes that decode and preprocess images; one per core up to 8 when left out."},
    )
    output_dir: str = field(default="outputs/retrieval", metadata={"help": "A new or empty folder."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Allow a folder with contents; files of the same name are replaced."}
    )
    feature_cache_dir: str = field(
        default=str(FEATURE_CACHE), metadata={"help": "Where features are kept for the next time."}
    )

    def __post_init__(self) -> None:
        for name in ("k", "num_drawn", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.num_workers < 0:
            raise ValueError(f"`num_workers` must not be negative, got {self.num_workers}.")


@dataclass
class Images:
    """Images, undecoded in the column "image", with the names of their classes, None where they have none."""

    dataset: datasets.Dataset
    labels: np.ndarray | None
    digest: str

    def name(self, index: int) -> str | int:
        """Return the path of an image, or its number where it has none."""
        return self.dataset[index]["image"]["path"] or index

    def describe(self, index: int) -> dict[str, Any]:
        """Return what `neighbours.json` says of an image."""
        return {"image": self.name(index), **({} if self.labels is None else {"label": str(self.labels[index])})}


def load_images(name: str, split: str | None, argument: str, usual_split: str) -> Images:
    """Load a split of a folder or dataset, with labels where every image has one.

    Raises:
        ValueError: If there is none, or an image cannot be read.
    """
    splits = load_dataset(ImageArguments(dataset_name=name), argument, with_labels=True)
    split = split or (usual_split if usual_split in splits else next(iter(splits)))
    if split not in splits:
        raise ValueError(f"`{argument}`: there is no split {split!r}, but {', '.join(map(str, splits))}.")
    source = Split(split, splits[split], f"the split {split!r} of {name}")
    images = select_image_column(source.dataset, None)
    labels = None
    with suppress(ValueError):  # which say why there are none
        column = find_label_column(source.dataset.features, None)
        labels = np.array(read_labels(source, images, column))
    return Images(images, labels, digest_bytes(image_bytes(image) for image in tqdm(images["image"], desc="Reading")))


def find_neighbours(gallery: np.ndarray, queries: np.ndarray | None, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosine distances and the numbers of the nearest images of a gallery, `(num_queries, k)` each.

    Args:
        gallery: Features, `(num_images, num_features)`.
        queries: Features; None for those of the gallery itself, of which none is its own neighbour.
        k: Number of neighbours.

    Raises:
        ValueError: If the gallery has no so many.
    """
    available = len(gallery) - (queries is None)
    if k > available:
        raise ValueError(f"`k` must be at most {available}, the number of images to look among, got {k}.")
    return NearestNeighbors(metric="cosine").fit(gallery).kneighbors(queries, k)


def measure(queries: Images, gallery: Images, indices: np.ndarray) -> dict[str, float]:
    """Return the share of neighbours of the query's class, and that of the gallery's images; nothing without labels."""
    if queries.labels is None or gallery.labels is None:
        return {}
    hits = gallery.labels[indices] == queries.labels[:, None]
    chance = (gallery.labels == queries.labels[:, None]).mean()
    return {"precision_at_1": hits[:, 0].mean(), f"precision_at_{hits.shape[1]}": hits.mean(), "chance": chance}


def draw_rows(queries: Images, gallery: Images, distances: np.ndarray, indices: np.ndarray, num_drawn: int) -> list:
    """Return what `neighbours_grid` draws."""
    pictures, found, rows = DecodedImages(queries.dataset), DecodedImages(gallery.dataset), []
    row: list[tuple[Any, str, bool | None]]
    for query in np.linspace(0, len(indices) - 1, min(num_drawn, len(indices))).round().astype(int).tolist():
        true = None if queries.labels is None else queries.labels[query]
        row = [(pictures[query], "query" if true is None else f"query: {true}", None)]
        for distance, index in zip(distances[query], indices[query].tolist(), strict=True):
            label = None if gallery.labels is None else gallery.labels[index]
            is_right = None if true is None or label is None else bool(true == label)
            row.append((found[index], f"{distance:.3f}" if label is None else f"{label}, {distance:.3f}", is_right))
        rows.append(row)
    return rows


def main() -> None:
    """Load, encode, look, and write."""
    (args,) = parse_arguments([Arguments])
    output_dir = Path(args.output_dir)
    check_output_dir(output_dir, args.overwrite_output_dir)
    model, processor = load_encoder(args.model_name_or_path), load(AutoImageProcessor, args.model_name_or_path)
    module: torch.nn.Module = model  # Transformers' own `to` has no types
    module.to("cuda" if torch.cuda.is_available() else "cpu")
    gallery = load_images(args.gallery, args.gallery_split, "gallery", "train")
    queries = load_images(args.queries, args.query_split, "queries", "test")
    cache, num_channels = FeatureCache(args.feature_cache_dir), getattr(model.config, "num_channels", 3)

    def encode(images: Images) -> np.ndarray:
        pictures = DecodedImages(images.dataset, processor)
        batches = image_batches(pictures, processor, num_channels, args.batch_size, args.num_workers)
        with_grid = args.features == "grid"
        settings = feature_settings(model, processor, images.digest, -1, None, with_grid)
        extracted = cache.get(settings, lambda: extract_features(model, batches, with_grid=with_grid))
        if args.features not in available_features(extracted):
            raise ValueError(f"`features`: {args.model_name_or_path} has no {args.features}; all models have the mean.")
        return select_features(extracted, args.features)

    is_same = queries.digest == gallery.digest
    distances, indices = find_neighbours(encode(gallery), None if is_same else encode(queries), args.k)
    measured = {name: round(float(value), 4) for name, value in measure(queries, gallery, indices).items()}
    found = [
        {
            **queries.describe(query),
            "neighbours": [
                {**gallery.describe(index), "distance": round(float(distance), 6)}
                for distance, index in zip(*pair, strict=True)
            ],
        }
        for query, pair in enumerate(zip(distances, indices.tolist(), strict=True))
    ]
    settings = {name: getattr(args, name) for name in ("model_name_or_path", "gallery", "queries", "features", "k")}
    output_dir.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**settings, **measured, "found": found})
    (output_dir / "neighbours.json").write_text(text + "\n", encoding="utf-8")
    figure = neighbours_grid(draw_rows(queries, gallery, distances, indices, args.num_drawn))
    figure.savefig(output_dir / "neighbours.png", dpi=130)
    print(f"{len(found)} queries among {len(gallery.dataset)} images")
    print("".join(f"{name} {value:.3f}\n" for name, value in measured.items()) or "no labels to compare with\n", end="")
    print(f"Written to {output_dir}: neighbours.png, neighbours.json")


if __name__ == "__main__":
    logging.set_verbosity_warning()
    with clear_errors():
        main()
