#!/usr/bin/env python
# /// script
# dependencies = ["crate-mae-hf[train,figures]"]
# ///
"""Measure and draw what every layer of a CRATE-MAE, CRATE or CRATE-alpha does, and what the first reconstructs.

    python examples/visualize.py
    python examples/visualize.py --model_name_or_path ORG/MODEL --images DIR --output_dir outputs/white_box

Leaves in the output folder: pictures, `layers` and `reconstructions` as CSV and JSON, and all of it as one
`report.html`. Of a ViTMAE, attention, principal components and reconstructions are drawn. docs/white_box.md says how to
read them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    PreTrainedModel,
)
from transformers.utils import logging

import crate_mae_hf  # noqa: F401 (registers the Auto classes)
from crate_mae_hf.adapters import has_decoder, is_white_box, key_name, patch_grid
from crate_mae_hf.analysis import (
    LayerReport,
    Reconstruction,
    attention_maps,
    figures,
    layer_report,
    patch_codes,
    pca_maps,
    random_masks,
    reconstruct,
    reconstruct_whole,
)
from crate_mae_hf.analysis.report import html_definitions, html_page, html_picture, html_table
from crate_mae_hf.cli import check_output_dir, clear_errors, parse_arguments
from crate_mae_hf.configuration_crate import to_pair
from crate_mae_hf.data.images import ImageArguments, load_dataset, read_image, select_image_column
from crate_mae_hf.evaluation.features import preprocess
from crate_mae_hf.loading import load, load_model
from crate_mae_hf.registry import MODELS
from crate_mae_hf.tables import Row, text_table, write_table

DATA = Path(__file__).parent / "data" / "fashion_mnist_sample"
SUMMARY = ("subspace_rate_before_unit", "subspace_rate_after_unit", "nonzero_share", "mssa_energy", "dictionary_defect")
NUM_MASKS = 3


@dataclass
class Arguments:
    """What to look at."""

    model_name_or_path: str = field(
        default="outputs/demo", metadata={"help": "A pre-trained CRATE-MAE or ViTMAE, a CRATE or CRATE-alpha."}
    )
    images: str = field(default=str(DATA), metadata={"help": "A folder of images, or a dataset on the Hub."})
    split_name: str | None = field(
        default=None, metadata={"help": 'Split of the dataset; "test" where there is one, else the first.'}
    )
    image_column_name: str | None = field(
        default=None, metadata={"help": "The column with the images; the first one that holds images when left out."}
    )
    output_dir: str = field(default="outputs/white_box", metadata={"help": "A new or empty folder."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Allow a folder with contents; files of the same name are replaced."}
    )
    num_images: int = field(default=64, metadata={"help": "Measure so many images."})
    num_pictures: int = field(default=6, metadata={"help": "Draw so many of them."})
    layer: int = field(default=-1, metadata={"help": "Encoder layer of head grid and components; -1 is the last."})
    mask_ratios: list[float] = field(default_factory=lambda: [0.5, 0.75, 0.9], metadata={"help": "Mask ratios."})
    statistics: Literal["none", "visible", "oracle"] | None = field(
        default=None,
        metadata={
            "help": "Where mean and spread of predicted patches come from with norm_pix_loss; "
            '"visible" when left out. "oracle" leaks the answer.'
        },
    )
    eps_squared: float = field(default=0.01, metadata={"help": "eps² of the coding rates."})
    batch_size: int = field(default=4, metadata={"help": "Images in memory at a time."})
    seed: int = field(default=0, metadata={"help": "Draws the masks."})


@dataclass
class Report:
    """The output folder: every picture and table as a file, and all of them on one page."""

    folder: Path
    sections: dict[str, list[str]] = field(default_factory=dict)

    def add(self, heading: str, part: str) -> None:
        """Add a piece of HTML to the page, below a heading."""
        self.sections.setdefault(heading, []).append(part)

    def add_figures(self, heading: str, named_figures: Iterable[tuple[str, Figure]]) -> None:
        for name, figure in named_figures:
            figure.savefig(self.folder / f"{name}.png", dpi=110)
            self.add(heading, html_picture(self.folder / f"{name}.png"))

    def add_table(self, heading: str, name: str, rows: list[Row]) -> None:
        write_table(rows, self.folder / name)
        self.add(heading, html_table(rows))

    def write(self, title: str) -> None:
        (self.folder / "report.html").write_text(html_page(title, self.sections), encoding="utf-8")


def check_arguments(args: Arguments) -> None:
    """Raise ValueError if a setting cannot be meant, before anything is loaded."""
    check_output_dir(Path(args.output_dir), args.overwrite_output_dir)
    for name in ("num_images", "num_pictures", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(args, name)}.")
    if not args.eps_squared > 0:
        raise ValueError(f"`eps_squared` must be positive, got {args.eps_squared}.")
    if not all(0 <= mask_ratio < 1 for mask_ratio in args.mask_ratios):
        raise ValueError(f"`mask_ratios` must lie in [0, 1), got {args.mask_ratios}.")


def check_model(args: Arguments, model: PreTrainedModel) -> None:
    """Raise ValueError if a setting does not fit the model."""
    num_layers = model.config.num_hidden_layers
    if not -num_layers <= args.layer < num_layers:
        raise ValueError(f"`layer` must lie in [{-num_layers}, {num_layers - 1}], got {args.layer}.")
    if args.statistics not in (None, "none") and not (has_decoder(model) and model.config.norm_pix_loss):
        raise ValueError(
            f'`statistics` must be "none" for a model without `norm_pix_loss=True`, got {args.statistics!r}.'
        )


def load_subject(name: str) -> tuple[PreTrainedModel, Any]:
    """Return a model for pre-training, or a CRATE, and its image processor.

    Raises:
        ValueError: If there is none, or its weights have no decoder.
    """
    if name == Arguments.model_name_or_path and not Path(name).exists():
        raise ValueError(f"`model_name_or_path`: there is no {name} yet: `make demo` trains it.")
    row = MODELS.get(load(AutoConfig, name).model_type)
    is_autoencoder = row is None or "AutoModelForPreTraining" in row.model_classes
    auto_class = AutoModelForPreTraining if is_autoencoder else AutoModelForImageClassification
    model = load_model(auto_class, name, with_head=is_autoencoder)
    return model.eval(), load(AutoImageProcessor, name)


def load_images(args: Arguments, model: PreTrainedModel, processor: Any) -> torch.Tensor:
    """Return the first images of the folder or dataset as `pixel_values`.

    Raises:
        ValueError: If there are none, or they cannot be read.
    """
    splits = load_dataset(ImageArguments(dataset_name=args.images), "images", streaming=True)
    split = args.split_name or ("test" if "test" in splits else next(iter(splits)))
    if split not in splits:
        raise ValueError(f"`split_name`: there is no split {split!r}, but {', '.join(map(str, splits))}.")
    records = select_image_column(splits[split], args.image_column_name).take(args.num_images)
    min_size = to_pair(model.config.patch_size)
    images = [read_image(record["image"], min_size, f"number {i}") for i, record in enumerate(records)]
    return preprocess(processor, model.config.num_channels, images)


def draw_layers(report: LayerReport) -> Iterator[tuple[str, Figure]]:
    """Draw what every layer does to its tokens."""
    yield "compression_and_sparsity", figures.compression_and_sparsity(report)
    yield "layer_steps", figures.layer_steps(report)


def draw_maps(
    args: Arguments, model: PreTrainedModel, pixel_values: torch.Tensor, pictures: torch.Tensor
) -> Iterator[tuple[str, Figure]]:
    """Draw attention and principal components; the latter are joint over all images."""
    num_layers = model.config.num_hidden_layers
    layer = args.layer % num_layers
    maps = attention_maps(model, pixel_values[: len(pictures)], range(num_layers), args.batch_size)
    yield "attention_heads", figures.attention_heads(pictures, maps[:, layer], layer + 1)
    shown = np.unique(np.linspace(0, num_layers - 1, min(num_layers, 6)).round().astype(int))
    yield "attention_layers", figures.attention_overlays(pictures, maps[:, shown], (shown + 1).tolist())
    components = pca_maps(patch_codes(model, pixel_values, layer, args.batch_size))
    caption = f"{key_name(model)} of the patches in encoder layer {layer + 1}"
    yield "pca", figures.pca_grid(pictures, components, caption)


def reconstructions(
    args: Arguments, model: PreTrainedModel, pixel_values: torch.Tensor
) -> dict[str, list[Reconstruction]]:
    """Reconstruct the images: with several mask ratios, masks and patch statistics, and as a whole."""
    statistics = args.statistics or ("visible" if model.config.norm_pix_loss else "none")
    rows, columns = patch_grid(model, pixel_values)
    generator = torch.Generator().manual_seed(args.seed)

    def masks(mask_ratio: float) -> torch.Tensor:
        return random_masks(len(pixel_values), rows * columns, mask_ratio, generator)

    same = masks(model.config.mask_ratio)
    groups = {
        "reconstruction": [reconstruct(model, pixel_values, same, statistics)],
        "reconstruction_mask_ratios": [
            reconstruct(model, pixel_values, masks(r), statistics) for r in args.mask_ratios
        ],
        "reconstruction_masks": [
            reconstruct(model, pixel_values, masks(model.config.mask_ratio), statistics) for _ in range(NUM_MASKS)
        ],
        "reconstruction_whole": [
            reconstruct_whole(model, pixel_values, num_parts, statistics, generator) for num_parts in (2, 4)
        ],
    }
    if model.config.norm_pix_loss:
        groups["reconstruction_statistics"] = [
            reconstruct(model, pixel_values, same, choice) for choice in ("none", "visible", "oracle")
        ]
    return groups


def draw_reconstructions(groups: dict[str, list[Reconstruction]], processor: Any) -> Iterator[tuple[str, Figure]]:
    """Draw each group of reconstructions."""
    for name, results in groups.items():
        yield name, figures.reconstruction_grid(results, processor.image_mean, processor.image_std)


def error_table(groups: dict[str, list[Reconstruction]]) -> list[Row]:
    """Return mean and spread of the error of each reconstruction."""
    return [
        {
            "picture": name,
            "mask_ratio": result.mask_ratio,
            "statistics": result.statistics,
            "error_mean": result.error.mean().item(),
            "error_std": result.error.std(correction=0).item(),
        }
        for name, results in groups.items()
        for result in results
    ]


def main() -> None:
    """Measure, draw, write, and say where everything is."""
    (args,) = parse_arguments([Arguments])
    check_arguments(args)
    model, processor = load_subject(args.model_name_or_path)
    check_model(args, model)
    pixel_values = load_images(args, model, processor)
    shown = pixel_values[: args.num_pictures]
    pictures = figures.to_display(shown, processor.image_mean, processor.image_std)

    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    report = Report(output_dir)
    if is_white_box(model):
        heading = "What every layer does"
        layers = layer_report(model, pixel_values, None, args.eps_squared, args.batch_size)
        rows = layers.table()
        report.add_figures(heading, draw_layers(layers))
        report.add_table(heading, "layers", rows)
        report.add(heading, html_definitions(layers.descriptions))
        print(text_table([{k: r[k] for k in ("part", "layer", *(f"{n}_mean" for n in SUMMARY))} for r in rows]))
    report.add_figures("Attention and principal components", draw_maps(args, model, pixel_values, pictures))
    if has_decoder(model):
        groups = reconstructions(args, model, shown)
        rows = error_table(groups)
        report.add_figures("Reconstructions", draw_reconstructions(groups, processor))
        report.add_table("Reconstructions", "reconstructions", rows)
        print(text_table(rows))
    report.write(f"{args.model_name_or_path} on {len(pixel_values)} images of {Path(args.images).name}")
    print(f"\nWritten to {output_dir}: report.html, " + ", ".join(sorted(p.name for p in output_dir.glob("*.*g"))))


if __name__ == "__main__":
    logging.set_verbosity_warning()
    with clear_errors():
        main()
