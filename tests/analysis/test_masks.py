"""Masks of one block, and of what is painted over; those of scattered patches are tested where they are used."""

import pytest
import torch

from crate_mae_hf.analysis import block_masks, painted_masks, random_masks


@pytest.mark.parametrize("grid_size", [(4, 4), (14, 14), (2, 20), (5, 3), (1, 6)])
@pytest.mark.parametrize("mask_ratio", [0, 0.05, 0.25, 0.5, 0.75, 0.9])
def test_a_block_is_one_rectangle_of_about_the_ratio(grid_size, mask_ratio):
    rows, columns = grid_size
    wanted = int(random_masks(1, rows * columns, mask_ratio).sum())
    masks = block_masks(20, grid_size, mask_ratio, torch.Generator().manual_seed(0)).unflatten(1, grid_size)
    for mask in masks:
        height, width = int(mask.any(dim=1).sum()), int(mask.any(dim=0).sum())
        assert mask.sum() == height * width
        assert wanted <= height * width < wanted + max(height, 1)


def test_blocks_are_drawn_by_the_generator():
    masks = block_masks(30, (4, 4), 0.25, torch.Generator().manual_seed(3))
    assert torch.equal(masks, block_masks(30, (4, 4), 0.25, torch.Generator().manual_seed(3)))
    assert len(masks.unique(dim=0)) == 9  # all places of a block of 2 x 2
    assert masks.any(dim=0).all()
    with pytest.raises(ValueError, match="`mask_ratio` must lie in"):
        block_masks(1, (4, 4), 1)


def test_a_touched_patch_is_masked():
    painted = torch.zeros(2, 8, 12, dtype=torch.bool)
    painted[0, 3, 4] = painted[1, 4:, 11] = True
    masks = painted_masks(painted, (2, 3))
    assert masks.tolist() == [[False, True, False, False, False, False], [False, False, False, False, False, True]]
    with pytest.raises(ValueError, match="`painted` must have shape"):
        painted_masks(painted, (3, 3))
