#!/usr/bin/env python
# /// script
# dependencies = ["crate-mae-hf[train]"]
# ///
"""Compare frozen vision models by a linear probe and nearest neighbours on their features.

    python examples/run_linear_probe.py --model_name_or_path outputs/demo --random_init --raw_pixels
    python examples/run_linear_probe.py --model_name_or_path outputs/demo facebook/vit-mae-base facebook/dinov2-base \
        --dataset_name ORG/NAME --output_dir outputs/probes

Leaves `results.md` and `results.json` in the output folder. Models are folders or repositories of any vision model of
Transformers; without other images the bundled Fashion-MNIST sample is used.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

import crate_mae_hf  # noqa: F401 (registers the Auto classes)
from crate_mae_hf.cli import check_output_dir, clear_errors, parse_arguments
from crate_mae_hf.data.images import decode, image_bytes
from crate_mae_hf.data.labels import LabelledDataArguments, load_labelled_datasets
from crate_mae_hf.evaluation.cache import FeatureCache, digest_bytes, feature_settings
from crate_mae_hf.evaluation.encoders import load_encoder, load_image_processor, random_encoder
from crate_mae_hf.evaluation.features import (
    FEATURES,
    available_features,
    extract_features,
    image_batches,
    layer_tokens,
    select_features,
)
from crate_mae_hf.evaluation.probes import C_GRID, HELD_OUT, check_labels, linear_probe, nearest_neighbours
from crate_mae_hf.evaluation.results import library_versions
from crate_mae_hf.inference import inference
from crate_mae_hf.tables import Row, markdown_table, text_table

DATA = Path(__file__).parent / "data" / "fashion_mnist_sample"
FEATURE_CACHE = Path.home() / ".cache" / "crate_mae_hf" / "features"


@dataclass
class DataArguments(LabelledDataArguments):
    """Which images to probe with; the bundled ones when no others are named."""

    validation_split_name: str = field(
        default="test",
        metadata={"help": "The split to test on; where it is missing, a part of the training images is held out."},
    )


@dataclass
class ProbeArguments:
    """What to compare, and how."""

    model_name_or_path: list[str] = field(
        default_factory=lambda: ["outputs/demo"], metadata={"help": "Folders, or models on the Hub."}
    )
    random_init: bool = field(default=False, metadata={"help": "Add each model with fresh weights of the same shape."})
    raw_pixels: bool = field(
        default=False, metadata={"help": "Add the pixels themselves, as the first model's image processor gives them."}
    )
    features: list[str] | None = field(
        default=None,
        metadata={"help": f"Of {', '.join(FEATURES)}; all that a model has when left out."},
    )
    layer: str = field(
        default="last",
        metadata={"help": 'Index into the hidden states: 0 for the embeddings, k for layer k, -1 or "last".'},
    )
    norm: bool | None = field(
        default=None,
        metadata={"help": "Apply the model's final norm, or do not; when left out, where there is one that fits."},
    )
    k: int = field(default=20, metadata={"help": "Nearest neighbours that vote."})
    temperature: float = field(default=0.07, metadata={"help": "Of the neighbours' votes."})
    seed: int = field(default=0, metadata={"help": "Decides fresh weights, and the images held out to choose C."})
    output_dir: str = field(default="outputs/linear_probe", metadata={"help": "A new or empty folder."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Allow a folder with contents; files of the same name are replaced."}
    )
    feature_cache_dir: str = field(
        default=str(FEATURE_CACHE), metadata={"help": "Where features are kept for the next time."}
    )
    no_feature_cache: bool = field(default=False, metadata={"help": "Neither read nor keep features on disk."})
    batch_size: int = field(default=64, metadata={"help": "Images in memory at a time."})
    num_workers: int = field(default=0, metadata={"help": "Processes that decode and preprocess images."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Of the weights."})
    device: str | None = field(default=None, metadata={"help": 'Where the models run; "cuda" where there is one.'})


@dataclass
class Encoder:
    """A model to probe; `weights` is "trained" or "random"."""

    name: str
    weights: str
    model: PreTrainedModel
    processor: BaseImageProcessor

    @property
    def num_channels(self) -> int:
        return getattr(self.model.config, "num_channels", 3)


class Images(Dataset):
    """Decodes the images of a dataset when they are asked for."""

    def __init__(self, dataset: datasets.Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> PIL.Image.Image:
        return decode(self.dataset[index]["image"], (1, 1), f"number {index}")


def check_arguments(args: ProbeArguments) -> None:
    """Raise ValueError if a setting cannot be meant, before anything is loaded."""
    check_output_dir(Path(args.output_dir), args.overwrite_output_dir)
    if unknown := set(args.features or ()) - set(FEATURES):
        raise ValueError(f"`features` must be of {', '.join(FEATURES)}, got {', '.join(sorted(unknown))}.")
    if args.layer != "last" and not args.layer.removeprefix("-").isdecimal():
        raise ValueError(f'`layer` must be an integer or "last", got {args.layer!r}.')
    for name in ("k", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(args, name)}.")
    if args.num_workers < 0:
        raise ValueError(f"`num_workers` must not be negative, got {args.num_workers}.")
    if not args.temperature > 0:
        raise ValueError(f"`temperature` must be positive, got {args.temperature}.")
    try:
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`device` {args.device}: {error}") from error


def load_encoders(args: ProbeArguments) -> Iterator[Encoder]:
    """Load each model, with the same model with fresh weights after it where asked for."""
    dtype = getattr(torch, args.dtype)
    for name in args.model_name_or_path:
        model, processor = load_encoder(name, dtype), load_image_processor(name)
        yield Encoder(name, "trained", model, processor)
        if args.random_init:
            yield Encoder(name, "random", random_encoder(model.config, args.seed, dtype), processor)


def describe(encoder: Encoder, args: ProbeArguments, layer: int, image: PIL.Image.Image) -> Row:
    """Try a model on one image, and return its row of the table as far as it is known.

    Raises:
        ValueError: If image processor, layer, norm or features do not fit the model.
    """
    (pixel_values,) = image_batches([image], encoder.processor, encoder.num_channels)
    try:
        with inference(encoder.model):
            output = layer_tokens(encoder.model, pixel_values, layer, args.norm)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{encoder.name}: {error}") from error
    missing = [name for name in args.features or () if "cls" in name and not output.num_prefix_tokens]
    if missing:
        raise ValueError(f"`features`: {encoder.name} has no cls token, so there is no {', '.join(missing)}.")
    return {
        "model": encoder.name,
        "weights": encoder.weights,
        "parameters": encoder.model.num_parameters(),
        "layer": args.layer,
        "norm": "yes" if output.normalised else "no",
    }


def batches(encoder: Encoder, args: ProbeArguments, dataset: datasets.Dataset) -> DataLoader:
    """Return the pixel values that an encoder takes, batch by batch."""
    return image_batches(Images(dataset), encoder.processor, encoder.num_channels, args.batch_size, args.num_workers)


def extract(
    encoder: Encoder, args: ProbeArguments, layer: int, dataset: datasets.Dataset, data_digest: str, split: str
) -> dict[str, np.ndarray]:
    """Return the features of a split, from disk where they are."""

    def compute() -> dict[str, np.ndarray]:
        description = f"Features of {encoder.name}, {encoder.weights}, {split}"
        return extract_features(encoder.model, batches(encoder, args, dataset), layer, args.norm, description)

    if args.no_feature_cache:
        return compute()
    settings = feature_settings(encoder.model, encoder.processor, data_digest, layer, args.norm)
    return FeatureCache(args.feature_cache_dir).get(settings, compute)


def read_pixels(encoder: Encoder, args: ProbeArguments, dataset: datasets.Dataset, split: str) -> np.ndarray:
    """Return the pixel values that an encoder takes, one vector an image."""
    parts = [pixels.flatten(1) for pixels in tqdm(batches(encoder, args, dataset), desc=f"Pixels, {split}")]
    return torch.cat(parts).numpy()


def probe(args: ProbeArguments, features: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> Row:
    """Return what both probes make of features, given for "train" and "test"."""
    train, test = features["train"], features["test"]
    linear = linear_probe(train, labels["train"], test, labels["test"], args.seed)
    predicted = nearest_neighbours(train, labels["train"], test, args.k, args.temperature)
    return {
        "width": train.shape[1],
        "C": linear.C,
        "linear": linear.accuracy,
        "knn": float((predicted == labels["test"]).mean()),
        "converged": "yes" if linear.converged else "no",
    }


def write_results(output_dir: Path, rows: list[Row], settings: dict[str, Any]) -> None:
    """Write rows and everything they depend on as `results.json` and `results.md`."""
    output_dir.mkdir(parents=True, exist_ok=True)
    data = json.dumps({"results": rows, **settings}, indent=2)
    (output_dir / "results.json").write_text(data + "\n", encoding="utf-8")
    flat = [{"setting": f"{group}: {name}", "value": v} for group in settings for name, v in settings[group].items()]
    text = f"# Probes\n\nTest accuracy.\n\n{markdown_table(rows)}\n## Settings\n\n{markdown_table(flat)}"
    (output_dir / "results.md").write_text(text, encoding="utf-8")


def main() -> None:
    """Check everything, extract, probe, write."""
    args, data_args = parse_arguments([ProbeArguments, DataArguments])
    if data_args.dataset_name is None and data_args.train_dir is None:
        data_args.dataset_name = str(DATA)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_arguments(args)
    layer = -1 if args.layer == "last" else int(args.layer)
    if not args.no_feature_cache:
        FeatureCache(args.feature_cache_dir)
    encoders = list(load_encoders(args))
    train, test, class_names = load_labelled_datasets(data_args, (1, 1), args.seed)
    splits = {"train": train, "test": test}
    labels = {name: np.array(split["label"][:]) for name, split in splits.items()}
    check_labels(labels["train"], labels["test"])
    if args.k > len(train):
        raise ValueError(f"`k` must be at most {len(train)}, the number of training images, got {args.k}.")
    rows = [describe(encoder, args, layer, Images(train)[0]) for encoder in encoders]

    digests = {
        name: digest_bytes(image_bytes(image) for image in tqdm(split["image"], desc=f"Reading images, {name}"))
        for name, split in splits.items()
    }
    results: list[Row] = []
    for encoder, row in zip(encoders, rows, strict=True):
        module: torch.nn.Module = encoder.model  # Transformers' own `to` has no types
        module.to(args.device)
        extracted = {name: extract(encoder, args, layer, split, digests[name], name) for name, split in splits.items()}
        module.to("cpu")
        for name in tqdm(args.features or available_features(extracted["train"]), desc=f"Probes of {encoder.name}"):
            selected = {split: select_features(parts, name) for split, parts in extracted.items()}
            results.append({**row, "features": name, **probe(args, selected, labels)})
    if args.raw_pixels:
        pixels = {name: read_pixels(encoders[0], args, split, name) for name, split in splits.items()}
        results.append({"model": "raw pixels", "features": "pixels", **probe(args, pixels, labels)})

    settings = {
        "probes": {**asdict(args), "C_grid": C_GRID, "share held out to choose C": HELD_OUT},
        "images": {
            **asdict(data_args),
            **{f"{name} images": len(split) for name, split in splits.items()},
            **{f"{name} sha256": digest for name, digest in digests.items()},
            "classes": class_names,
        },
        "versions": library_versions(),
    }
    write_results(Path(args.output_dir), results, settings)
    print(f"\nTest accuracy on {len(test)} images, {len(train)} to learn from\n\n{text_table(results)}")
    print(f"\nWritten to {args.output_dir}: results.md, results.json")


if __name__ == "__main__":
    logging.set_verbosity_warning()
    with clear_errors():
        main()
