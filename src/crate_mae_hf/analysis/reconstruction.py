"""Reconstructions of masked images, in the scale of `pixel_values`."""

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from ..adapters import check_pixel_values, inference, patch_grid, predict_patches
from ..configuration_crate import to_pair

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
        num_passes: Number of forwards that the output was put together from, see `reconstruct_whole`.
    """

    original: torch.Tensor
    output: torch.Tensor
    bool_masked_pos: torch.Tensor
    pixel_mask: torch.Tensor
    statistics: Statistics
    num_passes: int = 1

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


def to_pixels(patch_values: torch.Tensor, patch_size: tuple[int, int]) -> torch.Tensor:
    """Repeat one value per patch over its pixels: `(batch_size, rows, columns)` to `(batch_size, 1, height, width)`."""
    return patch_values.repeat_interleave(patch_size[0], 1).repeat_interleave(patch_size[1], 2).unsqueeze(1)


def to_patch_grid(images: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """Cut images: `(batch_size, channels, height, width)` to `(batch_size, channels, rows, p, columns, q)`."""
    rows, columns = grid_size
    return images.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))


def interpolate_visible(values: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Fill the masked places of a grid from the visible ones, by inverse distance weighting (Shepard).

        v_i = sum_j w_ij v_j / sum_j w_ij,   w_ij = |position_i - position_j|^-4,   j visible

    Args:
        values: One number per patch, `(batch_size, rows, columns)`; what stands at masked places is not read.
        visible: Boolean, same shape, at least one True per image.

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


def stitch(
    normalized: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, masked: torch.Tensor, pull: float = 0.01
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose mean m and standard deviation s of the masked patches so that neighbouring patches fit together.

        minimise   sum over borders of mean_k |(m_a + s_a y_ak) - (m_b + s_b y_bk)|²
                   + pull * sum over masked i of (m_i - m°_i)² + (s_i - s°_i)²

    A border is where patches a and b touch, k runs over the pairs of pixels on its two sides, and m°, s° are
    interpolated from the visible patches (`interpolate_visible`). The visible patches' m and s are given, so this is
    linear least squares, solved image by image in float64. Natural images are smooth across most borders; an edge that
    runs exactly along a border is lost.

    Args:
        normalized: Images y whose patches have mean 0 and variance 1, `(batch_size, num_channels, height, width)`.
        mean: Mean of each patch, `(batch_size, rows, columns)`; what stands at masked places is not read.
        std: Standard deviation of each patch, likewise.
        masked: Boolean, same shape, at least one False per image.
        pull: How strongly the interpolated statistics are held on to.

    Returns:
        Mean and standard deviation of all patches, unchanged where they are visible.
    """
    rows, columns = masked.shape[1:]
    num_patches = rows * columns
    index = torch.arange(num_patches).view(rows, columns)
    patches = to_patch_grid(normalized.double(), (rows, columns))
    left, right = patches[..., :-1, -1].permute(0, 2, 4, 1, 3), patches[..., 1:, 0].permute(0, 2, 4, 1, 3)
    upper, lower = patches[:, :, :-1, -1].permute(0, 2, 3, 1, 4), patches[:, :, 1:, 0].permute(0, 2, 3, 1, 4)
    unknown = masked.flatten(1).repeat(1, 2)
    solution = torch.cat([interpolate_visible(x, ~masked).flatten(1) for x in (mean, std)], dim=1).double()
    for b in range(len(masked)):
        quadratic = torch.eye(2 * num_patches, dtype=torch.float64) * pull
        for i, j, y_i, y_j in (
            (index[:, :-1], index[:, 1:], left[b], right[b]),
            (index[:-1], index[1:], upper[b], lower[b]),
        ):
            # The difference over a border is linear in m_i, s_i, m_j, s_j: one row of coefficients per pair of pixels.
            y_i, y_j = y_i.flatten(2).flatten(0, 1), y_j.flatten(2).flatten(0, 1)  # (borders, pairs of pixels)
            coefficients = torch.stack([torch.ones_like(y_i), y_i, -torch.ones_like(y_j), -y_j], dim=2)
            unknowns = torch.stack([i, num_patches + i, j, num_patches + j], dim=2).flatten(0, 1)
            blocks = coefficients.transpose(1, 2) @ coefficients / y_i.shape[1]
            quadratic.index_put_((unknowns.unsqueeze(2), unknowns.unsqueeze(1)), blocks, accumulate=True)
        free, known = unknown[b], ~unknown[b]
        target = pull * solution[b, free] - quadratic[free][:, known] @ solution[b, known]
        solution[b, free] = torch.linalg.solve(quadratic[free][:, free], target)
    stitched_mean, stitched_std = solution.to(mean.dtype).unflatten(1, (2, rows, columns)).unbind(1)
    return torch.where(masked, stitched_mean, mean), torch.where(masked, stitched_std.clamp(min=0), std)


def denormalize(
    output: torch.Tensor, original: torch.Tensor, masked: torch.Tensor, statistics: Statistics
) -> torch.Tensor:
    """Give normalised patches y mean and standard deviation back, x = mean + std * y; `reconstruct` says from where.

    Args:
        output: y, `(batch_size, num_channels, height, width)`.
        original: The images, same shape; with `"visible"` the masked pixels are not read.
        masked: True where a patch is masked, `(batch_size, rows, columns)`.
        statistics: `"none"`, `"visible"` or `"oracle"`.
    """
    if statistics == "none":
        return output
    patches = to_patch_grid(original, (masked.shape[1], masked.shape[2]))
    patch_size = (patches.shape[3], patches.shape[5])
    variance, mean = torch.var_mean(patches, dim=(1, 3, 5))
    std = (variance + 1e-6).sqrt()
    if statistics == "visible":
        normalized = (original - to_pixels(mean, patch_size)) / to_pixels(std, patch_size)
        mean, std = stitch(torch.where(to_pixels(masked, patch_size), output, normalized), mean, std, masked)
    return to_pixels(mean, patch_size) + to_pixels(std, patch_size) * output


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
    - `"visible"`: a visible patch has its own; those of the masked ones are chosen so that the patches fit together,
      see `stitch`. Nothing that was masked is looked at.
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
    original, bool_masked_pos = pixel_values.detach().float().cpu(), bool_masked_pos.cpu()
    masked = bool_masked_pos.unflatten(1, (rows, columns))
    outputs = []
    with inference(model):
        starts = range(0, len(pixel_values), batch_size)
        for start in tqdm(starts, desc="Reconstructing", disable=len(starts) == 1):
            chunk = slice(start, start + batch_size)
            patches = predict_patches(model, pixel_values[chunk], bool_masked_pos[chunk]).float().cpu()
            output = cast(Any, model).unpatchify(patches, tuple(pixel_values.shape[2:]))
            outputs.append(denormalize(output, original[chunk], masked[chunk], statistics))
    pixel_mask = to_pixels(masked, to_pair(model.config.patch_size))
    return Reconstruction(original, torch.cat(outputs), bool_masked_pos, pixel_mask, statistics)


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
    return Reconstruction(reconstruction.original, output, bool_masked_pos, pixel_mask, statistics, num_parts)
