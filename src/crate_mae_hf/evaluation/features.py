"""Features of images from any vision model of Transformers: one vector an image, of any layer."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import PIL.Image
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..configuration_crate import to_pair
from ..image_processing_crate_mae import pil_to_array
from ..inference import inference

# What features there are: the cls token, the mean of the patch tokens, and both side by side.
FEATURES = ("cls", "mean", "cls_mean")
# Where models of Transformers have the norm of their last hidden state.
FINAL_NORMS = ("layernorm", "norm", "post_layernorm")


@dataclass
class LayerTokens:
    """Tokens of one layer.

    Args:
        tokens: `(batch_size, N, d)`; feature maps of convolutional networks have one token a position.
        num_prefix_tokens: How many of them come before the patch tokens: the cls token, if any, and registers.
        normalised: Whether the model's final norm was applied.
    """

    tokens: torch.Tensor
    num_prefix_tokens: int
    normalised: bool


@contextmanager
def unmasked(model: PreTrainedModel) -> Iterator[None]:
    """Have a ViTMAE see whole images; other models do so anyway."""
    if model.config.model_type != "vit_mae":
        yield
        return
    config = cast(Any, model.base_model).embeddings.config
    mask_ratio, config.mask_ratio = config.mask_ratio, 0.0
    try:
        yield
    finally:
        config.mask_ratio = mask_ratio


@contextmanager
def final_norm_calls(model: PreTrainedModel) -> Iterator[list[tuple[nn.Module, torch.Tensor, torch.Tensor]]]:
    """List the calls of modules that may be the final norm, as (module, input, output)."""
    calls: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []

    def record(module: nn.Module, arguments: tuple[torch.Tensor], output: torch.Tensor) -> None:
        calls.append((module, arguments[0], output))

    modules = [module for name in FINAL_NORMS if (module := getattr(model, name, None)) is not None]
    handles = [module.register_forward_hook(record) for module in modules if not isinstance(module, nn.Identity)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def count_prefix_tokens(model: PreTrainedModel, num_tokens: int, image_size: Sequence[int]) -> int:
    """Return how many tokens are none of patches: those that are more than the patches of an image (height, width).

    Hierarchical models merge patches, have fewer tokens, and no cls token.

    Raises:
        ValueError: If the configuration does not say how large patches are.
    """
    stride = getattr(model.config, "patch_stride", None) or getattr(model.config, "patch_size", None)
    if stride is None:
        raise ValueError(
            f"`model` {type(model).__name__} has no `patch_size` in its configuration: its patch tokens cannot be told "
            "from others."
        )
    num_patches = int(np.prod([length // step for length, step in zip(image_size, to_pair(stride), strict=True)]))
    return max(num_tokens - num_patches, 0)


def layer_tokens(
    model: PreTrainedModel, pixel_values: torch.Tensor, layer: int = -1, norm: bool | None = None
) -> LayerTokens:
    """Run a model on whole images and return the tokens of one layer.

    Args:
        model: Any vision model of Transformers without a head. ViTMAE masks nothing and keeps the patches in order.
        pixel_values: `(batch_size, num_channels, height, width)`.
        layer: Index into the model's `hidden_states`: 0 for the embeddings, k for the output of layer k, -1 for the
            last.
        norm: Whether to apply the model's final norm; when left out, where the model has one that fits.

    Raises:
        ValueError: If there is no such layer, or `norm` is asked for and there is none.
    """
    inputs: dict[str, Any] = {}
    if model.config.model_type == "vit_mae":
        num_patches = cast(Any, model.base_model).embeddings.patch_embeddings.num_patches
        inputs["noise"] = torch.arange(num_patches, device=model.device).expand(len(pixel_values), -1)
    if layer != -1:  # all layers at once take memory
        inputs["output_hidden_states"] = True
    with unmasked(model), final_norm_calls(model) as calls:
        outputs = model(pixel_values.to(model.device, model.dtype), **inputs)
    hidden_states = outputs.last_hidden_state
    # A norm counts only if its output is the last hidden state: some models norm the pooled token and no other.
    final_norm, before = next(((module, x) for module, x, y in calls if y is hidden_states), (None, hidden_states))
    normalised = final_norm is not None
    if layer != -1:
        states = outputs.hidden_states
        if not -len(states) <= layer < len(states):
            raise ValueError(
                f"`layer` must lie in [{-len(states)}, {len(states) - 1}] for this {type(model).__name__}, got {layer}."
            )
        if layer % len(states) != len(states) - 1:
            hidden_states = before = states[layer]
            width = getattr(final_norm, "normalized_shape", hidden_states.shape[-1:])
            normalised = final_norm is not None and tuple(width) == tuple(hidden_states.shape[-1:])
            if final_norm is not None and normalised and norm is not False:
                hidden_states = final_norm(hidden_states)
    if norm and not normalised:
        raise ValueError(
            f"`norm`: this {type(model).__name__} has no final norm over the tokens of layer {layer}; leave `norm` out "
            "to take the tokens as they are."
        )
    if norm is False:
        hidden_states, normalised = before, False
    if hidden_states.ndim == 4:
        return LayerTokens(hidden_states.flatten(2).transpose(1, 2), 0, normalised)
    num_prefix_tokens = count_prefix_tokens(model, hidden_states.shape[1], pixel_values.shape[2:])
    return LayerTokens(hidden_states, num_prefix_tokens, normalised)


def extract_features(
    model: PreTrainedModel,
    batches: Iterable[torch.Tensor],
    layer: int = -1,
    norm: bool | None = None,
    description: str = "Extracting features",
) -> dict[str, np.ndarray]:
    """Encode images, nothing masked, each to one vector.

    Args:
        model: Any vision model of Transformers without a head; put into evaluation mode and left in the mode it had.
        batches: Pixel values, `(batch_size, num_channels, height, width)` each.
        layer: See `layer_tokens`.
        norm: See `layer_tokens`.
        description: Of the progress bar.

    Returns:
        Features of shape `(num_images, d)`, float32: the `"mean"` of the patch tokens and, where the model has one, the
        `"cls"` token. `select_features` gives both side by side.

    Raises:
        ValueError: If layer or norm do not fit the model, or a feature is not finite.
    """
    parts: dict[str, list[np.ndarray]] = {}
    with inference(model):
        for pixel_values in tqdm(batches, desc=description):
            output = layer_tokens(model, pixel_values, layer, norm)
            tokens, num_prefix = output.tokens.float(), output.num_prefix_tokens
            features = {"cls": tokens[:, 0]} if num_prefix else {}
            features["mean"] = tokens[:, num_prefix:].mean(dim=1)
            for name, values in features.items():
                if not values.isfinite().all():
                    raise ValueError(
                        f"`model` {type(model).__name__} gives features that are not finite in {model.dtype}."
                    )
                parts.setdefault(name, []).append(values.cpu().numpy())
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def available_features(extracted: Collection[str]) -> tuple[str, ...]:
    """Return the features that can be had of what `extract_features` returned: each of them, and both side by side."""
    return (*extracted, "cls_mean") if {"cls", "mean"} <= set(extracted) else tuple(extracted)


def select_features(extracted: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Return the features of one name; `"cls_mean"` is both side by side."""
    return np.hstack([extracted[part] for part in name.split("_")])


def preprocess(
    processor: BaseImageProcessor, num_channels: int, images: Sequence[PIL.Image.Image | np.ndarray]
) -> torch.Tensor:
    """Return the pixel values of images, `(num_images, num_channels, height, width)`.

    Most image processors want all images grey or all in colour: images of any mode become what the model takes.

    Raises:
        ValueError: If the image processor cannot take them.
    """
    if num_channels in (1, 3):
        images = [
            PIL.Image.fromarray(pil_to_array(image, num_channels)) if isinstance(image, PIL.Image.Image) else image
            for image in images
        ]
    try:
        return processor(cast(Any, list(images)), return_tensors="pt")["pixel_values"]
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{type(processor).__name__} cannot take images of {num_channels} channels: {error}"
        ) from error


def image_batches(
    images: Sequence[Any] | Dataset,
    processor: BaseImageProcessor,
    num_channels: int,
    batch_size: int = 64,
    num_workers: int = 0,
) -> DataLoader:
    """Preprocess images batch by batch, for `extract_features`.

    Args:
        images: Pillow images or arrays by index, decoded when asked for.
        processor: The model's.
        num_channels: That the model takes.
        batch_size: Images at a time.
        num_workers: Processes that decode and preprocess.
    """
    return DataLoader(
        cast(Any, images), batch_size, num_workers=num_workers, collate_fn=partial(preprocess, processor, num_channels)
    )
