"""Features of images from any vision model of Transformers: one vector per image, of any layer."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import ChannelDimension

from ..adapters import TOWERS, inference, layer_tokens, token_parts
from ..image_processing_crate_mae import adapt_channels, check_color, pil_to_array, warn_of_padding

# What features there are: the cls token, the mean of the patch tokens, both side by side, and the means of the patch
# tokens over each quarter of the image, which keep where things are. Of a split-brain autoencoder also the half of the
# mean that either tower has.
FEATURES = ("cls", "mean", "cls_mean", "grid", *TOWERS)


def quarter_means(patches: torch.Tensor, image_size: Sequence[int]) -> torch.Tensor | None:
    """Return the means of patch tokens over the four quarters of the image, side by side, `(batch_size, 4 d)`.

    Where the number of rows or columns is odd, the middle one counts for both sides.

    Args:
        patches: Patch tokens row by row, `(batch_size, num_patches, d)`.
        image_size: (height, width) of the images, whose aspect ratio the grid of patches has.

    Returns:
        None where the tokens are no such grid, or have a single row or column.
    """
    num_patches = patches.shape[1]
    rows = max(round((num_patches * image_size[0] / image_size[1]) ** 0.5), 1)
    columns = num_patches // rows
    if rows * columns != num_patches or min(rows, columns) < 2:
        return None
    return torch.nn.functional.adaptive_avg_pool2d(patches.transpose(1, 2).unflatten(2, (rows, columns)), 2).flatten(1)


def extract_features(
    model: PreTrainedModel,
    batches: Iterable[torch.Tensor],
    layer: int = -1,
    norm: bool | None = None,
    description: str = "Extracting features",
    with_grid: bool = True,
) -> dict[str, np.ndarray]:
    """Encode images, nothing masked, each to one vector.

    Args:
        model: Any vision model of Transformers without a head; put into evaluation mode and left in the mode it had.
        batches: Pixel values, `(batch_size, num_channels, height, width)` each.
        layer: See `layer_tokens`.
        norm: See `layer_tokens`.
        description: Of the progress bar.
        with_grid: Whether to keep the means over the quarters, two thirds of the memory.

    Returns:
        Features of shape `(num_images, d)`, float32: the `"mean"` of the patch tokens, where the model has one the
        `"cls"` token, and where the patches are a grid their means over its quarters, `"grid"`, `(num_images, 4 d)`.
        Of a split-brain autoencoder the halves of the mean too, `"lightness"` and `"color"`, `(num_images, d / 2)`.
        `select_features` gives cls token and mean side by side.

    Raises:
        ValueError: If layer or norm do not fit the model, or a feature is not finite.
    """
    parts: dict[str, list[np.ndarray]] = {}
    with inference(model):
        for pixel_values in tqdm(batches, desc=description):
            output = layer_tokens(model, pixel_values, layer, norm)
            tokens, num_prefix = output.tokens.float(), output.num_prefix_tokens
            features = {"cls": tokens[:, 0]} if num_prefix else {}
            patches = tokens[:, num_prefix:]
            features["mean"] = patches.mean(dim=1)
            features |= zip(token_parts(model), features["mean"].chunk(2, dim=1), strict=False)  # most have none
            quarters = quarter_means(patches, pixel_values.shape[2:]) if with_grid else None
            if quarters is not None:
                features["grid"] = quarters
            for name, values in features.items():
                if not values.isfinite().all():
                    raise ValueError(
                        f"`model` {type(model).__name__} gives features that are not finite in {model.dtype}."
                    )
                parts.setdefault(name, []).append(values.cpu().numpy())
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def available_features(extracted: Collection[str]) -> tuple[str, ...]:
    """Return the features that can be had of what `extract_features` returned."""
    return tuple(name for name in FEATURES if set(name.split("_")) <= set(extracted))


def select_features(extracted: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Return the features of one name; `"cls_mean"` is cls token and mean side by side."""
    return np.hstack([extracted[part] for part in name.split("_")])


def _with_channels(image: Any, num_channels: int, needs_color: bool) -> Any:
    """Return an image in grey or in colour; arrays as they are."""
    if isinstance(image, PIL.Image.Image):
        if needs_color:
            check_color(image)
        return PIL.Image.fromarray(pil_to_array(image, num_channels))
    if isinstance(image, torch.Tensor):
        return adapt_channels(image, num_channels, ChannelDimension.FIRST, needs_color)
    return image


def preprocess(
    processor: BaseImageProcessor, num_channels: int, images: Sequence[PIL.Image.Image | np.ndarray | torch.Tensor]
) -> torch.Tensor:
    """Return the pixel values of images, `(num_images, num_channels, height, width)`.

    Most image processors want all images grey or all in colour: images of any mode become what the model takes.

    Raises:
        ValueError: If the image processor cannot take them.
    """
    warn_of_padding(processor)
    if num_channels in (1, 3):
        images = [_with_channels(image, num_channels, getattr(processor, "needs_color", False)) for image in images]
    try:
        return processor(cast(Any, list(images)), return_tensors="pt")["pixel_values"]
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{type(processor).__name__} cannot take images of {num_channels} channels: {error}"
        ) from error


def default_workers() -> int:
    """Return how many processes prepare images unless asked for otherwise: one per core up to 8, none beside one core.

    They wait most of the time where the model runs on the same cores, and keep a GPU busy where it does not.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8) if cores > 1 else 0


def image_batches(
    images: Sequence[Any] | Dataset,
    processor: BaseImageProcessor,
    num_channels: int,
    batch_size: int = 64,
    num_workers: int = 0,
) -> DataLoader:
    """Preprocess images batch by batch, for `extract_features`.

    Args:
        images: Pillow images, arrays or tensors `(channels, height, width)` by index, decoded when asked for.
        processor: The model's.
        num_channels: That the model takes.
        batch_size: Images at a time.
        num_workers: Processes that decode and preprocess.
    """
    return DataLoader(
        cast(Any, images), batch_size, num_workers=num_workers, collate_fn=partial(preprocess, processor, num_channels)
    )
