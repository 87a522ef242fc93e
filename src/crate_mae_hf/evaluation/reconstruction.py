"""Reconstruction errors of a masked autoencoder, beside two predictions that need no learning."""

import numpy as np
import torch
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..adapters import inference, masked_pass
from ..modeling_crate_mae import CrateMaeForPreTraining


def inpaint(image: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Fill the masked pixels of an image from the visible ones, without learning.

    Inside the convex hull of the visible pixels by piecewise linear interpolation over their Delaunay triangulation,
    outside of it by the nearest visible pixel.

    Args:
        image: `(num_channels, height, width)`; what stands at masked pixels is not read.
        visible: True where a pixel is visible, `(height, width)`.

    Returns:
        The filled image, of the same shape; zero where nothing is visible.
    """
    if not visible.any():
        return np.zeros_like(image)
    places, values = np.argwhere(visible), image[:, visible].T
    masked = np.argwhere(~visible)
    filled = NearestNDInterpolator(places, values)(masked)
    if np.ptp(places, axis=0).all():  # otherwise there is no triangle
        linear = LinearNDInterpolator(places, values)(masked)
        filled = np.where(np.isnan(linear), filled, linear)
    output = image.copy()
    output[:, ~visible] = filled.T
    return output


def inpaint_batch(pixel_values: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Apply `inpaint` to `(batch_size, num_channels, height, width)` images and `(batch_size, height, width)` masks."""
    pairs = zip(pixel_values.numpy(), visible.numpy(), strict=True)
    return torch.from_numpy(np.stack([inpaint(image, seen) for image, seen in pairs]))


def reconstruction_errors(
    model: CrateMaeForPreTraining, train_dataset: Dataset, eval_dataset: Dataset, batch_size: int = 250
) -> dict[str, float]:
    """Mean squared error over masked patches, of the model and of two baselines, in the space of the model's loss.

    With `norm_pix_loss` targets and predictions of the baselines are normalised patch by patch.

    Args:
        model: Put into evaluation mode and left in the mode it had.
        train_dataset: Items with `pixel_values`, for the mean patch.
        eval_dataset: Items with `pixel_values` and the `noise` that decides their mask.
        batch_size: Images at a time.

    Returns:
        Errors of the `"model"`, of predicting the training set's `"mean_patch"`, and of `"inpainting"`, see `inpaint`.
    """
    total, num_patches = torch.zeros(()), 0
    for batch in tqdm(DataLoader(train_dataset, batch_size), desc="Mean patch"):
        targets = model.patch_targets(batch["pixel_values"])
        total, num_patches = total + targets.sum((0, 1)), num_patches + targets.shape[0] * targets.shape[1]
    mean_patch = total / num_patches

    errors: dict[str, list[torch.Tensor]] = {"model": [], "mean_patch": [], "inpainting": []}
    for batch in tqdm(DataLoader(eval_dataset, batch_size), desc="Reconstruction errors"):
        pixel_values = batch["pixel_values"]
        with inference(model):
            outputs = model(pixel_values.to(model.device), noise=batch["noise"].to(model.device))
        mask = outputs.mask.cpu().bool()
        pixel_mask = model.unpatchify(mask.unsqueeze(-1).expand_as(outputs.logits), tuple(pixel_values.shape[2:]))[:, 0]
        logits = outputs.logits.float().cpu()
        predictions = {
            "model": logits,
            "mean_patch": mean_patch.expand_as(logits),
            "inpainting": model.patch_targets(inpaint_batch(pixel_values, ~pixel_mask)),
        }
        for name, prediction in predictions.items():
            errors[name].append(model.patch_errors(pixel_values, prediction)[mask])
    return {name: float(torch.cat(values).mean()) for name, values in errors.items()}


def masked_error(autoencoder: PreTrainedModel, eval_dataset: Dataset, batch_size: int = 250) -> float:
    """Mean squared error over masked patches, in the space of the model's loss.

    Args:
        autoencoder: CRATE-MAE or ViTMAE with its decoder; put into evaluation mode and left in the mode it had.
        eval_dataset: Items with `pixel_values` and the `noise` that decides their mask, by the model's own mask ratio.
        batch_size: Images at a time.
    """
    errors = []
    for batch in tqdm(DataLoader(eval_dataset, batch_size), desc="Masked error"):
        with inference(autoencoder):
            result = masked_pass(
                autoencoder, batch["pixel_values"].to(autoencoder.device), batch["noise"].to(autoencoder.device)
            )
        errors.append(result.errors[result.mask.bool()])
    return float(torch.cat(errors).mean())
