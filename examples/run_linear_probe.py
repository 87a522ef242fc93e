#!/usr/bin/env python
# /// script
# dependencies = ["crate-mae-hf[train]"]
# ///
"""Compare frozen vision models by a linear probe and nearest neighbours on their features.

    python examples/run_linear_probe.py --model_name_or_path outputs/demo --raw_pixels --few_labels 1000 100
    python examples/run_linear_probe.py --model_name_or_path outputs/demo facebook/vit-mae-base facebook/dinov2-base \
        --dataset_name ORG/NAME --output_dir outputs/probes

Leaves `results.md` and `results.json` in the output folder. Models are folders or repositories of any vision model of
Transformers; without other images the bundled Fashion-MNIST sample is used.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from transformers.utils import logging

import crate_mae_hf  # noqa: F401 (registers the Auto classes)
from crate_mae_hf.cli import check_output_dir, clear_errors, parse_arguments
from crate_mae_hf.data.labels import LabelledDataArguments, LabelledImages, load_labelled_datasets
from crate_mae_hf.evaluation.cache import FeatureCache
from crate_mae_hf.evaluation.comparison import ProbeImages, ProbeSettings, compare, load_encoders
from crate_mae_hf.evaluation.encoders import fastest_dtype
from crate_mae_hf.evaluation.features import default_workers
from crate_mae_hf.evaluation.probes import C_GRID, HELD_OUT
from crate_mae_hf.evaluation.results import library_versions
from crate_mae_hf.tables import Row, markdown_table, text_table

DATA = Path(__file__).parent / "data" / "fashion_mnist_sample"
FEATURE_CACHE = Path.home() / ".cache" / "crate_mae_hf" / "features"


@dataclass
class DataArguments(LabelledDataArguments):
    """Which images to probe with; the bundled ones when no others are named."""

    default_validation_split: ClassVar[str] = "test"


@dataclass
class ProbeArguments(ProbeSettings):
    """What to compare, how, and where to write."""

    model_name_or_path: list[str] = field(
        default_factory=lambda: ["outputs/demo"], metadata={"help": "Folders, or models on the Hub."}
    )
    random_init: bool = field(default=False, metadata={"help": "Add each model with fresh weights of the same shape."})
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = field(
        default="float32",
        metadata={"help": 'Of the weights; "auto" takes bfloat16 where the device multiplies faster in it.'},
    )
    num_workers: int = field(
        default_factory=default_workers,
        metadata={"help": "Processes that decode and preprocess images; one per core up to 8 when left out."},
    )
    output_dir: str = field(default="outputs/linear_probe", metadata={"help": "A new or empty folder."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Allow a folder with contents; files of the same name are replaced."}
    )
    feature_cache_dir: str = field(
        default=str(FEATURE_CACHE), metadata={"help": "Where features are kept for the next time."}
    )
    no_feature_cache: bool = field(default=False, metadata={"help": "Neither read nor keep features on disk."})


def describe_images(args: DataArguments, images: LabelledImages, digests: dict[str, str]) -> dict[str, Any]:
    """Return which images the results come from."""
    return {
        **asdict(args),
        "train images": len(images.train),
        "train images from": images.sources["train"],
        "test images": len(images.test),
        "test images from": images.sources["validation"],
        **{f"{name} sha256": digest for name, digest in digests.items()},
        "classes": images.class_names,
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
    """Check everything, compare, write."""
    args, data_args = parse_arguments([ProbeArguments, DataArguments])
    check_output_dir(Path(args.output_dir), args.overwrite_output_dir)
    if data_args.dataset_name is None and data_args.train_dir is None and data_args.validation_dir is None:
        data_args.dataset_name = str(DATA)
    cache = None if args.no_feature_cache else FeatureCache(args.feature_cache_dir)
    random_seed = args.seed if args.random_init else None
    if args.dtype == "auto":
        args.dtype = str(fastest_dtype(str(args.device))).removeprefix("torch.")
        print(f"Models run in {args.dtype}.")
    encoders = load_encoders(args.model_name_or_path, getattr(torch, args.dtype), random_seed)
    images = load_labelled_datasets(data_args, (1, 1), args.seed)
    probed = ProbeImages(images.train, images.test)
    results = compare(encoders, probed, args, cache)
    settings = {
        "probes": {**asdict(args), "C_grid": C_GRID, "share held out to choose C": HELD_OUT},
        "images": describe_images(data_args, images, probed.digests),
        "versions": library_versions(),
    }
    write_results(Path(args.output_dir), results, settings)
    print(f"\nTest accuracy on {len(images.test)} images, {len(images.train)} to learn from\n\n{text_table(results)}")
    print(f"\nWritten to {args.output_dir}: results.md, results.json")


if __name__ == "__main__":
    logging.set_verbosity_warning()
    with clear_errors():
        main()
