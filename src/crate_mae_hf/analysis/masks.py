"""Masks to look at a model with: scattered patches, one block of patches, or what somebody painted over."""

import math

import torch


def count_masked(num_patches: int, mask_ratio: float) -> int:
    """Return how many patches a mask ratio masks, `num_patches - int(num_patches * (1 - mask_ratio))`.

    Raises:
        ValueError: If `mask_ratio` lies outside [0, 1).
    """
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"`mask_ratio` must lie in [0, 1), got {mask_ratio}.")
    return num_patches - int(num_patches * (1 - mask_ratio))


def random_masks(
    num_images: int, num_patches: int, mask_ratio: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Mask `num_patches - int(num_patches * (1 - mask_ratio))` patches of each image, drawn without replacement.

    Returns:
        `bool_masked_pos` of shape `(num_images, num_patches)`.

    Raises:
        ValueError: If `mask_ratio` lies outside [0, 1).
    """
    num_masked = count_masked(num_patches, mask_ratio)
    noise = torch.rand(num_images, num_patches, generator=generator)
    return noise.argsort(dim=1).argsort(dim=1) >= num_patches - num_masked


def block_masks(
    num_images: int, grid_size: tuple[int, int], mask_ratio: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Mask one block of patches in each image, of the grid's shape as far as patches allow, at a random place.

    The block has at least as many patches as `random_masks` masks, and less than one column of the block more.

    Args:
        num_images: How many masks.
        grid_size: Number of patches as (rows, columns).
        mask_ratio: Share of the patches to mask.
        generator: Draws the places.

    Returns:
        `bool_masked_pos` of shape `(num_images, rows * columns)`.

    Raises:
        ValueError: If `mask_ratio` lies outside [0, 1).
    """
    rows, columns = grid_size
    num_masked = count_masked(rows * columns, mask_ratio)
    height = max(round(rows * (num_masked / (rows * columns)) ** 0.5), math.ceil(num_masked / columns), 1)
    width = math.ceil(num_masked / height)
    masks = torch.zeros(num_images, rows, columns, dtype=torch.bool)
    for mask in masks:
        top = int(torch.randint(rows - height + 1, (), generator=generator))
        left = int(torch.randint(columns - width + 1, (), generator=generator))
        mask[top : top + height, left : left + width] = True
    return masks.flatten(1)


def painted_masks(painted: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """Mask every patch of which a pixel is painted.

    Args:
        painted: True where a pixel is painted, `(num_images, height, width)`, boolean; of any size of whole patches.
        grid_size: Number of patches as (rows, columns).

    Returns:
        `bool_masked_pos` of shape `(num_images, rows * columns)`.

    Raises:
        ValueError: If `painted` cannot be cut into so many patches.
    """
    rows, columns = grid_size
    if painted.ndim != 3 or painted.shape[1] % rows or painted.shape[2] % columns:
        raise ValueError(
            f"`painted` must have shape (num_images, height, width), height and width divisible by the number of "
            f"patches {grid_size}, got {tuple(painted.shape)}."
        )
    return painted.unflatten(2, (columns, -1)).unflatten(1, (rows, -1)).any(dim=4).any(dim=2).flatten(1)
