"""Images as grids of patches, and where each patch is."""

import torch
from torch import nn

from .configuration_crate import CrateEncoderConfig, patch_grid_size, to_pair


class CratePatchGrid(nn.Module):
    """The patches of an image: whether it can be cut into them, how, and how it is put together again.

    Args:
        config: Gives image size, patch size and number of channels.
    """

    def __init__(self, config: CrateEncoderConfig):
        super().__init__()
        self.image_size = to_pair(config.image_size)
        self.patch_size = to_pair(config.patch_size)
        self.num_channels = config.num_channels

    def check(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool) -> None:
        """Check that images fit the model.

        Raises:
            ValueError: If they do not: naming the shape, and what it has to be.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"`pixel_values` must have shape (batch_size, {self.num_channels}, height, width) for a model with "
                f"`num_channels={self.num_channels}`, got {tuple(pixel_values.shape)}."
            )
        size, patch_size = tuple(pixel_values.shape[2:]), self.patch_size
        if interpolate_pos_encoding:
            if any(length % patch for length, patch in zip(size, patch_size, strict=True)):
                raise ValueError(
                    f"`pixel_values` must have a height and width divisible by the patch size {patch_size}, got {size}."
                )
        elif size != self.image_size:
            raise ValueError(
                f"`pixel_values` have height and width {size}, the model was made for {self.image_size}: resize the "
                "images or pass `interpolate_pos_encoding=True`."
            )

    def grid_size(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        """Return the number of patches of each image as (rows, columns)."""
        height, width = pixel_values.shape[-2:]
        return patch_grid_size((height, width), self.patch_size)

    def patchify(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Cut images `(B, C, height, width)` into patches `(B, L, patch_height * patch_width * C)`, row by row."""
        patch_height, patch_width = self.patch_size
        patches = pixel_values.unflatten(3, (-1, patch_width)).unflatten(2, (-1, patch_height))
        return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (B, C, i, p, j, q) -> (B, i j, p q C)

    def unpatchify(self, patches: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
        """Put patches `(B, L, patch_height * patch_width * C)` together to images of (height, width).

        Raises:
            ValueError: If the patches do not fill such an image.
        """
        (height, width), (patch_height, patch_width) = image_size, self.patch_size
        rows, columns = patch_grid_size(image_size, self.patch_size)
        num_values = patch_height * patch_width * self.num_channels
        if height % patch_height or width % patch_width or patches.shape[1:] != (rows * columns, num_values):
            raise ValueError(
                f"`patches` must have shape (batch_size, {rows * columns}, {num_values}) for a {(height, width)} image "
                f"and patches of {(patch_height, patch_width)} pixels, got {tuple(patches.shape)}."
            )
        grid = patches.unflatten(2, (patch_height, patch_width, -1)).unflatten(1, (rows, columns))
        return grid.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # (B, i, j, p, q, C) -> (B, C, i p, j q)


class CratePatchProjection(CratePatchGrid):
    """Project each patch to a token: `(batch_size, num_channels, height, width)` to `(batch_size, L, d)`."""

    def __init__(self, config: CrateEncoderConfig):
        super().__init__(config)
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=self.patch_size, stride=self.patch_size
        )

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        self.check(pixel_values, interpolate_pos_encoding)
        return self.projection(pixel_values.to(self.projection.weight.dtype)).flatten(2).transpose(1, 2)


def sincos_position_table(hidden_size: int, grid_size: tuple[int, int]) -> torch.Tensor:
    r"""Fixed two-dimensional sine-cosine positions of a grid of patches, with a zero row for the cls token.

        row of patch (i, j) = [sin(j w), cos(j w), sin(i w), cos(i w)],   w_k = 10000^(-4 k / d),   k = 0 ... d/4 - 1

    The column comes first, as in the code of MAE (github.com/facebookresearch/mae), from which CRATE-MAE has its table.

    Args:
        hidden_size: Width d of a token, a multiple of 4.
        grid_size: Number of patches as (rows, columns).

    Returns:
        Table of shape `(1, rows * columns + 1, hidden_size)`, float32.
    """
    num_frequencies = hidden_size // 4
    frequencies = 10000.0 ** -(torch.arange(num_frequencies, dtype=torch.float64) / num_frequencies)
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid_size), indexing="ij")
    angles = [torch.outer(positions.flatten(), frequencies) for positions in (columns, rows)]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([torch.zeros_like(table[:1]), table]).float().unsqueeze(0)


def interpolate_position_table(
    table: torch.Tensor, grid_size: tuple[int, int], new_grid_size: tuple[int, int]
) -> torch.Tensor:
    """Return a table of positions for another grid of patches, by bicubic interpolation in float32.

    Args:
        table: Table of shape `(1, rows * columns + 1, hidden_size)`; the row of the cls token stays as it is.
        grid_size: Number of patches of the table as (rows, columns).
        new_grid_size: The same of the table to return.
    """
    if new_grid_size == grid_size:
        return table
    patches = table[:, 1:].float().unflatten(1, grid_size).permute(0, 3, 1, 2)  # (1, d, rows, columns)
    patches = nn.functional.interpolate(patches, size=new_grid_size, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


class CrateEmbeddings(nn.Module):
    """Patch embeddings with the cls token in front, and learned positions added once.

    Args:
        config: Gives image size, patch size, width and dropout.
        patch_embeddings: Maps images `(batch_size, num_channels, height, width)` to one token per patch.
    """

    def __init__(self, config: CrateEncoderConfig, patch_embeddings: CratePatchGrid):
        super().__init__()
        rows, columns = self.grid_size = config.grid_size
        self.patch_embeddings = patch_embeddings
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.empty(1, rows * columns + 1, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        embeddings = self.patch_embeddings(pixel_values, interpolate_pos_encoding)
        embeddings = torch.cat([self.cls_token.expand(embeddings.shape[0], -1, -1), embeddings], dim=1)
        grid_size = self.patch_embeddings.grid_size(pixel_values)
        return self.dropout(
            embeddings + interpolate_position_table(self.position_embeddings, self.grid_size, grid_size)
        )
