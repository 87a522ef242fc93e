"""Pictures of what the analysis measures; each function returns a `matplotlib.figure.Figure` to be saved or shown.

Figures are made without pyplot: no global state, no window, nothing to close.
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .reconstruction import Reconstruction

STATISTICS_LABELS = {
    "none": "",
    "visible": "\n(patch statistics:\nvisible patches)",
    "oracle": "\n(patch statistics: oracle,\nleaks the answer)",
}


def to_display(images: torch.Tensor, image_mean: Sequence[float], image_std: Sequence[float]) -> torch.Tensor:
    """Undo the processor's normalisation: `(..., num_channels, height, width)` to [0, 1], clipped."""
    mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (image_mean, image_std))
    return (images.detach().float().cpu() * std + mean).clamp(0, 1)


def _show(axes: Axes, image: torch.Tensor) -> None:
    """Draw an image of shape `(num_channels, height, width)` in [0, 1]: colour if it has 3 channels, else the first."""
    if image.shape[0] == 3:
        axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    else:
        axes.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _image_axes(num_rows: int, num_columns: int, caption: str, cell: float = 1.15) -> tuple[Figure, np.ndarray]:
    """Return a figure of square cells without ticks, with a caption below."""
    figure = Figure(figsize=(cell * num_columns + 0.3, cell * num_rows + 1.0), layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    figure.supxlabel(caption, fontsize=7)
    return figure, axes


def reconstruction_grid(
    reconstructions: Reconstruction | Sequence[Reconstruction],
    image_mean: Sequence[float],
    image_std: Sequence[float],
) -> Figure:
    """Draw a row an image: the original, then masked image, output, and output with the visible patches pasted.

    Args:
        reconstructions: One, or several of the same images (other masks, other mask ratios, other statistics), which
            follow each other from left to right.
        image_mean: The image processor's mean, one a channel.
        image_std: The image processor's standard deviation, one a channel.
    """
    if isinstance(reconstructions, Reconstruction):
        reconstructions = [reconstructions]
    images = to_display(reconstructions[0].original, image_mean, image_std)
    errors = ", ".join(f"{r.error.mean():.3f} ± {r.error.std(correction=0):.3f}" for r in reconstructions)
    figure, axes = _image_axes(
        len(images),
        1 + 3 * len(reconstructions),
        "Measured: predicted pixels. Mean squared error over the masked pixels, in the scale of the normalised images, "
        f"mean ± spread over images: {errors}.",
    )
    axes[0, 0].set_title("original", fontsize=8)
    for row, image in enumerate(images):
        _show(axes[row, 0], image)
    for group, reconstruction in enumerate(reconstructions):
        output, pasted = (to_display(x, image_mean, image_std) for x in (reconstruction.output, reconstruction.pasted))
        masked = torch.where(reconstruction.pixel_mask, 0.5, images)
        label = STATISTICS_LABELS[reconstruction.statistics]
        columns = {
            f"{reconstruction.mask_ratio:.0%} masked": masked,
            f"output{label}": output,
            "output,\nvisible pasted": pasted,
        }
        for column, (title, pictures) in enumerate(columns.items(), start=1 + 3 * group):
            axes[0, column].set_title(title, fontsize=8)
            for row, picture in enumerate(pictures):
                _show(axes[row, column], picture)
    return figure
