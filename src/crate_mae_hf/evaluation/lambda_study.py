"""Which `ista_lambda` a converted checkpoint was trained with: the masked loss of each candidate on given images."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from ..data.decoding import open_picture
from ..data.folders import find_images  # noqa: F401 (for commands that compare)
from ..image_processing_crate_mae import CrateMaeImageProcessor
from ..loading import load, load_model
from ..modeling_crate_mae import CrateMaeForPreTraining

LAMBDA_FILE = "lambda_comparison.json"


@torch.no_grad()
def compare_lambda(folder: str | Path, candidates: Sequence[float], images: Sequence[Path]) -> dict[float, float]:
    """Return the masked loss on given images for each candidate of `ista_lambda`, which a checkpoint does not hold.

    Every candidate sees the same images with the same masks. Also written to `lambda_comparison.json` in the folder.

    Args:
        folder: Converted checkpoint.
        candidates: Values of lambda.
        images: Image files.
    """
    processor = load(CrateMaeImageProcessor, folder, "folder")
    models = {
        value: load_model(
            CrateMaeForPreTraining, folder, "folder", with_head=True, ista_lambda=value, dtype=torch.float32
        )
        for value in candidates
    }
    rows, columns = models[candidates[0]].config.grid_size
    generator = torch.Generator().manual_seed(0)
    totals = dict.fromkeys(candidates, 0.0)
    for start in tqdm(range(0, len(images), 16), desc="Comparing lambda", unit="batch"):
        batch = images[start : start + 16]
        pictures = [open_picture(path.read_bytes(), str(path)) for path in batch]
        pixel_values = processor(pictures, return_tensors="pt").pixel_values
        noise = torch.rand(len(batch), rows * columns, generator=generator)
        for value, model in models.items():
            totals[value] += model(pixel_values, noise=noise).loss.item() * len(batch)
    losses = {value: total / len(images) for value, total in totals.items()}
    comparison = {"images": len(images), "masked_loss": losses}
    (Path(folder) / LAMBDA_FILE).write_text(json.dumps(comparison, indent=2) + "\n")
    return losses
