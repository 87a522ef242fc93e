"""The configuration of a model, read off the tensors of its official checkpoint."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..configuration_crate import CrateConfig, CrateEncoderConfig
from ..configuration_crate_mae import CrateMaeConfig
from ..crate_patches import sincos_position_table


def read_grid_size(position_table: torch.Tensor) -> tuple[int, int]:
    """Return the (rows, columns) of the patch grid whose sine-cosine table, `(1, rows * columns + 1, d)`, this is.

    Raises:
        ValueError: If it is the table of no grid.
    """
    num_patches, hidden_size = position_table.shape[1] - 1, position_table.shape[2]
    for rows in range(1, num_patches + 1):
        grid_size = (rows, num_patches // rows)
        if num_patches % rows == 0:
            # Generous enough for half precision; the tables of two grids differ by much more.
            difference = sincos_position_table(hidden_size, grid_size) - position_table.float()
            if difference.abs().max() < 1e-2:
                return grid_size
    raise ValueError(
        f"`decoder_pos_embed` must be the fixed sine-cosine table of a patch grid, got another one for {num_patches} "
        "patches."
    )


def read_crate_mae_config(
    state_dict: Mapping[str, torch.Tensor],
    size: str | None = None,
    num_attention_heads: int | None = None,
    decoder_num_attention_heads: int | None = None,
    **settings: Any,
) -> CrateMaeConfig:
    """Return the configuration of an official checkpoint of CRATE-MAE; sizes are read off its tensors.

    Args:
        state_dict: Official state dict that has the layout's `dimensions`.
        size: Published size, `"tiny"`, `"small"`, `"base"` or `"large"`; gives the numbers of heads.
        num_attention_heads: Number of heads of the encoder. One head has no output projection and needs no telling.
        decoder_num_attention_heads: The same for the decoder; the encoder's when left out.
        **settings: Other arguments of [`CrateMaeConfig`] that a checkpoint does not hold, such as `ista_lambda`.

    Raises:
        ValueError: If the tensors contradict each other or `size`, or the number of heads is not told.
    """
    hidden_size, num_channels, *patch_size = state_dict["patch_embed.proj.weight"].shape
    position_table = state_dict["decoder_pos_embed"]
    if position_table.shape[2] != hidden_size or hidden_size % 4:
        raise ValueError(
            f"`decoder_pos_embed` and `patch_embed.proj.weight` must have one width, a multiple of 4, got "
            f"{position_table.shape[2]} and {hidden_size}."
        )
    sizes: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_hidden_layers": count_layers(state_dict, "blocks."),
        "decoder_num_hidden_layers": count_layers(state_dict, "decoder_blocks."),
    }
    published_heads = check_size(size, CrateMaeConfig, sizes)
    default = published_heads if num_attention_heads is None else num_attention_heads
    for name, given, projection in (
        ("num_attention_heads", num_attention_heads, "blocks.0.layers.0.0.fn.to_out.0.weight"),
        ("decoder_num_attention_heads", decoder_num_attention_heads, "decoder_blocks.0.layers.0.1.fn.to_out.0.weight"),
    ):
        sizes[name] = infer_heads(name, given, default, has_projection=projection in state_dict)
    grid_size = read_grid_size(position_table)
    return CrateMaeConfig(
        num_channels=num_channels,
        patch_size=simplify(patch_size),
        image_size=simplify([n * patch for n, patch in zip(grid_size, patch_size, strict=True)]),
        **sizes,
        **settings,
    )


def read_crate_config(
    state_dict: Mapping[str, torch.Tensor],
    size: str | None = None,
    num_attention_heads: int | None = None,
    num_channels: int = 3,
    **settings: Any,
) -> CrateConfig:
    """Return the configuration of an official checkpoint of supervised CRATE, for square images and patches.

    Args:
        state_dict: Official state dict that has the layout's `dimensions`.
        size: Published size; gives the number of heads.
        num_attention_heads: Number of heads. One head has no output projection and needs no telling.
        num_channels: Number of image channels; with it the length of a flattened patch tells the patch size.
        **settings: Other arguments of [`CrateConfig`] that a checkpoint does not hold, such as `ista_lambda`.

    Raises:
        ValueError: If the tensors contradict `size`, the number of heads is not told, or patches or images are no
            squares.
    """
    hidden_size, num_values = state_dict["to_patch_embedding.2.weight"].shape
    num_patches = state_dict["pos_embedding"].shape[1] - 1
    patch_side, grid_side = math.isqrt(num_values // max(num_channels, 1)), math.isqrt(num_patches)
    if patch_side**2 * num_channels != num_values:
        raise ValueError(
            f"`num_channels` must be such that the {num_values} values of a patch are a square in each channel, got "
            f"{num_channels}."
        )
    if grid_side**2 != num_patches:
        raise ValueError(f"`pos_embedding` must be that of a square grid of patches, got {num_patches} patches.")
    sizes: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_hidden_layers": count_layers(state_dict, "transformer.layers."),
    }
    default = check_size(size, CrateConfig, sizes)
    sizes["num_labels"] = len(state_dict["mlp_head.1.weight"])
    has_projection = "transformer.layers.0.0.fn.to_out.0.weight" in state_dict
    return CrateConfig(
        num_attention_heads=infer_heads("num_attention_heads", num_attention_heads, default, has_projection),
        num_channels=num_channels,
        patch_size=patch_side,
        image_size=grid_side * patch_side,
        **sizes,
        **settings,
    )


def count_layers(state_dict: Mapping[str, torch.Tensor], prefix: str) -> int:
    """Return the number of layers by the largest number that follows `prefix`."""
    layers = [int(match[1]) for key in state_dict if (match := re.match(rf"{re.escape(prefix)}(\d+)\W", key))]
    return max(layers, default=-1) + 1


def check_size(size: str | None, config_class: type[CrateEncoderConfig], found: Mapping[str, int]) -> int | None:
    """Return the heads of a published size after comparing it with what was found; `None` without a size."""
    if size is None:
        return None
    published = config_class.from_size(size)
    for name, value in found.items():
        if getattr(published, name) != value:
            raise ValueError(
                f"`size` {size!r} has `{name}` {getattr(published, name)}, the checkpoint has {value}: choose "
                "another, or leave it out and pass `num_attention_heads`."
            )
    return published.num_attention_heads


def infer_heads(
    name: str,
    given: int | None,
    default: int | None,
    has_projection: bool,
    config_class: type[CrateEncoderConfig] = CrateEncoderConfig,
) -> int:
    """Return the number of heads: as given, else 1 without output projection, else the default."""
    num_heads = given if given is not None else default if has_projection else 1
    if num_heads is None:
        raise ValueError(
            f"`{name}` cannot be read off a checkpoint: pass it, or `size` ({', '.join(config_class.sizes)})."
        )
    return num_heads


def simplify(size: Sequence[int]) -> int | list[int]:
    """Return a (height, width) pair as one number where it is a square."""
    return size[0] if size[0] == size[1] else list(size)
