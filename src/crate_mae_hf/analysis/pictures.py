"""Pictures of what models make of images with labels: segmentation, nearest neighbours."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import PIL.Image
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .figures import image_axes, show


def class_colors(num_classes: int) -> np.ndarray:
    """Return a colour for each class, `(num_classes, 3)` in [0, 1]: black for class 0, others as unlike as can be."""
    if num_classes <= 11:
        others = np.array(matplotlib.colormaps["tab10"].colors[: num_classes - 1])  # type: ignore[attr-defined]
    else:
        others = matplotlib.colormaps["gist_rainbow"](np.linspace(0, 1, num_classes - 1))[:, :3]
    return np.concatenate([np.zeros((1, 3)), others])


def segmentation_grid(
    images: torch.Tensor,
    labels: torch.Tensor,
    predictions: torch.Tensor,
    class_names: Sequence[str],
) -> Figure:
    """Draw one column per image: the image, its mask, and what a model makes of it, with a legend of the classes.

    Args:
        images: In [0, 1], `(num_images, num_channels, height, width)`, see `to_display`.
        labels: True class of each pixel, `(num_images, height, width)`; a value that is no class is drawn in white.
        predictions: Predicted class of each pixel, likewise.
        class_names: Name of each class; those that are drawn stand in the legend.
    """
    figure, axes = image_axes(3, len(images), "Predicted: the class of the largest logit of each pixel.")
    figure.set_figwidth(figure.get_figwidth() + 1.5)  # for the legend
    colors = class_colors(len(class_names))
    palette = np.concatenate([colors, np.ones((256 - len(colors), 3))])
    for column, (image, label, prediction) in enumerate(zip(images, labels, predictions, strict=True)):
        show(axes[0, column], image)
        axes[1, column].imshow(palette[label.numpy()], interpolation="nearest")
        axes[2, column].imshow(palette[prediction.numpy()], interpolation="nearest")
    for ax, name in zip(axes[:, 0], ("image", "truth", "prediction"), strict=True):
        ax.set_ylabel(name, fontsize=8)
    drawn = torch.cat([labels, predictions]).unique().tolist()
    handles = [Patch(facecolor=colors[c], label=class_names[c]) for c in drawn if c < len(class_names)]
    figure.legend(handles=handles, loc="outside right center", fontsize=8, frameon=False)
    return figure


def neighbours_grid(rows: Sequence[Sequence[tuple[PIL.Image.Image, str, bool | None]]]) -> Figure:
    """Draw one row per query: the query, then its nearest neighbours.

    Args:
        rows: Of each picture the image, what stands above it, and whether its class is the query's, which frames it in
            green or red; None draws no frame.
    """
    figure, axes = image_axes(
        len(rows), len(rows[0]), "Measured: cosine distance of the features. Green: of the query's class; red: not."
    )
    for row_axes, row in zip(axes, rows, strict=True):
        for ax, (image, caption, is_right) in zip(row_axes, row, strict=True):
            ax.imshow(image, cmap="gray", vmin=0, vmax=255)
            ax.set_title(caption, fontsize=6, pad=3)
            if is_right is not None:
                ax.spines[:].set(visible=True, linewidth=2, color="tab:green" if is_right else "tab:red")
    return figure
