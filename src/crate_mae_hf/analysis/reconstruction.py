"""Reconstructions of masked images, in the scale of `pixel_values`."""

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from transformers import PreTrainedModel

from ..configuration_crate_mae import to_pair
from .models import check_pixel_values, inference, patch_grid, predict_patches

Statistics = Literal["none", "oracle", "visible"]


@dataclass
class Reconstruction:
    """Images, and what a masked autoencoder makes of them; tensors lie on the CPU.

    Args:
        original: The images as they were given, `(batch_size, num_channels, height, width)`, float32.
        output: The predictions of all patches, put together; same shape.
        bool_masked_pos: True where a patch was masked, `(batch_size, num_patches)`.
        pixel_mask: The same for pixels, `(batch_size, 1, height, width)`.
        statistics: Where mean and standard deviation of the predicted patches come from, see `reconstruct`.
    """

    original: torch.Tensor
    output: torch.Tensor
    bool_masked_pos: torch.Tensor
    pixel_mask: torch.Tensor
    statistics: Statistics

    @property
    def pasted(self) -> torch.Tensor:
        """The output with the visible patches pasted over it: the model's answer where it could not look."""
        return torch.where(self.pixel_mask, self.output, self.original)

    @property
    def mask_ratio(self) -> float:
        """Share of the patches that were masked."""
        return self.bool_masked_pos.float().mean().item()

    @property
    def error(self) -> torch.Tensor:
        """Mean squared error over the masked pixels of each image, `(batch_size,)`; 0 where nothing is masked."""
        squared = (self.output - self.original).square().mean(dim=1, keepdim=True)
        masked = self.pixel_mask.sum(dim=(1, 2, 3))
        return (squared * self.pixel_mask).sum(dim=(1, 2, 3)) / masked.clamp(min=1)


def random_masks(
    num_images: int, num_patches: int, mask_ratio: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Mask `num_patches - int(num_patches * (1 - mask_ratio))` patches of each image, drawn without replacement.

    Returns:
        `bool_masked_pos` of shape `(num_images, num_patches)`.

    Raises:
        ValueError: If `mask_ratio` lies outside [0, 1).
    """
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"`mask_ratio` must lie in [0, 1), got {mask_ratio}.")
    noise = torch.rand(num_images, num_patches, generator=generator)
    return noise.argsort(dim=1).argsort(dim=1) >= int(num_patches * (1 - mask_ratio))


def to_pixels(patch_values: torch.Tensor, patch_size: tuple[int, int]) -> torch.Tensor:
    """Repeat one value a patch over its pixels: `(batch_size, rows, columns)` to `(batch_size, 1, height, width)`."""
    return patch_values.repeat_interleave(patch_size[0], 1).repeat_interleave(patch_size[1], 2).unsqueeze(1)


def interpolate_visible(values: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Fill the masked places of a grid from the visible ones, by inverse distance weighting (Shepard).

        v_i = sum_j w_ij v_j / sum_j w_ij,   w_ij = |position_i - position_j|^-4,   j visible

    Args:
        values: One number a patch, `(batch_size, rows, columns)`; what stands at masked places is not read.
        visible: Boolean, same shape, at least one True an image.

    Returns:
        The grid, unchanged where it is visible.
    """
    rows, columns = values.shape[1:]
    positions = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double()
    # At distance 0 a masked patch meets itself only, and has no weight there.
    weights = torch.cdist(positions, positions).clamp(min=1).pow(-4) * visible.flatten(1).unsqueeze(1)
    known = torch.where(visible, values, 0).flatten(1).double().unsqueeze(2)
    filled = (weights @ known).squeeze(2) / weights.sum(dim=2)
    return torch.where(visible, values, filled.view_as(values).to(values.dtype))


def reconstruct(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    bool_masked_pos: torch.Tensor,
    statistics: Statistics = "none",
    batch_size: int = 8,
) -> Reconstruction:
    """Mask patches and let the model predict the image.

    A model trained with `norm_pix_loss` predicts y, each patch with mean 0 and variance 1: x = mean + std * y.
    `statistics` says where mean and standard deviation come from:

    - `"none"`: nowhere, the output is y itself. The only choice without `norm_pix_loss`, where y is the image.
    - `"visible"`: a visible patch has its own, a masked one those of the visible patches around it, see
      `interpolate_visible`. Nothing that was masked is looked at.
    - `"oracle"`: every patch has its true ones. This leaks the answer: the mean alone is a coarse image.

    Args:
        model: `CrateMaeForPreTraining`, or `ViTMAEForPreTraining` of Transformers. It is run in evaluation mode and
            left as it was.
        pixel_values: Images of shape `(num_images, num_channels, height, width)`, as the model takes them; positions
            are interpolated if the images have another size than the model's.
        bool_masked_pos: True where a patch is masked, `(num_images, num_patches)`, see `random_masks`.
        statistics: `"none"`, `"visible"` or `"oracle"`.
        batch_size: Number of images that are processed at a time.

    Raises:
        ValueError: If images, mask or statistics do not fit the model.
    """
    if statistics not in get_args(Statistics):
        raise ValueError(f"`statistics` must be one of {', '.join(get_args(Statistics))}, got {statistics!r}.")
    if statistics != "none" and not model.config.norm_pix_loss:
        raise ValueError(
            f'`statistics` must be "none" for a model with `norm_pix_loss=False`, got {statistics!r}: such a model '
            "predicts the pixels themselves."
        )
    check_pixel_values(model, pixel_values)
    rows, columns = patch_grid(model, pixel_values)
    if bool_masked_pos.dtype != torch.bool or bool_masked_pos.shape != (len(pixel_values), rows * columns):
        raise ValueError(
            f"`bool_masked_pos` must be a boolean tensor of shape {(len(pixel_values), rows * columns)}, True where a "
            f"patch is masked; got {bool_masked_pos.dtype} of shape {tuple(bool_masked_pos.shape)}."
        )
    if statistics == "visible" and bool_masked_pos.all(dim=1).any():
        raise ValueError('`bool_masked_pos` must leave a patch visible in every image for `statistics="visible"`.')
    chunks = zip(pixel_values.split(batch_size), bool_masked_pos.split(batch_size), strict=True)
    with inference(model):
        logits = torch.cat([predict_patches(model, *chunk).float().cpu() for chunk in chunks])
        output = cast(Any, model).unpatchify(logits, tuple(pixel_values.shape[2:]))
    original, bool_masked_pos = pixel_values.detach().float().cpu(), bool_masked_pos.cpu()
    masked_grid, patch_size = bool_masked_pos.unflatten(1, (rows, columns)), to_pair(model.config.patch_size)
    if statistics != "none":
        patches = original.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))  # (B, C, rows, p, columns, q)
        variance, mean = torch.var_mean(patches, dim=(1, 3, 5))
        std = (variance + 1e-6).sqrt()
        if statistics == "visible":
            mean, std = interpolate_visible(mean, ~masked_grid), interpolate_visible(std, ~masked_grid)
        output = to_pixels(mean, patch_size) + to_pixels(std, patch_size) * output
    return Reconstruction(original, output, bool_masked_pos, to_pixels(masked_grid, patch_size), statistics)


def reconstruct_whole(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    num_parts: int = 4,
    statistics: Statistics = "none",
    generator: torch.Generator | None = None,
    batch_size: int = 8,
) -> Reconstruction:
    """Predict every patch of the images while it is masked, by complementary masks.

    The patches are dealt at random into `num_parts` parts. Pass i sees part i alone (mask ratio 1 - 1 / num_parts), and
    a patch's prediction is the mean over the passes that masked it.

    Args:
        model: As for `reconstruct`.
        pixel_values: As for `reconstruct`.
        num_parts: Number of parts and passes, at least 2 and at most the number of patches.
        statistics: As for `reconstruct`.
        generator: Deals the patches.
        batch_size: Number of images that are processed at a time.

    Returns:
        A reconstruction in which every patch counts as masked.

    Raises:
        ValueError: If `num_parts`, images or statistics do not fit the model.
    """
    check_pixel_values(model, pixel_values)
    rows, columns = patch_grid(model, pixel_values)
    num_patches = rows * columns
    if not 2 <= num_parts <= num_patches:
        raise ValueError(f"`num_parts` must lie in [2, {num_patches}], the number of patches, got {num_parts}.")
    noise = torch.rand(len(pixel_values), num_patches, generator=generator)
    parts = noise.argsort(dim=1).argsort(dim=1) % num_parts
    output = torch.zeros(pixel_values.shape)
    for part in range(num_parts):
        reconstruction = reconstruct(model, pixel_values, parts != part, statistics, batch_size)
        output += torch.where(reconstruction.pixel_mask, reconstruction.output, 0) / (num_parts - 1)
    bool_masked_pos = torch.ones_like(parts, dtype=torch.bool)
    pixel_mask = torch.ones_like(reconstruction.pixel_mask)
    return Reconstruction(reconstruction.original, output, bool_masked_pos, pixel_mask, statistics)
