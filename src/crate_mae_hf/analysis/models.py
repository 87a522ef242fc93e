"""What the analysis has to know of the models it reads: CRATE-MAE, CRATE, and ViTMAE of Transformers for comparison.

A layer of CRATE-MAE or CRATE has one projection U (`mssa.subspace_proj`) for query and key; a ViTMAE layer has
`attention.q_proj` and `attention.k_proj`. CRATE-MAE takes `bool_masked_pos`, CRATE no mask; ViTMAE takes noise and
`config.mask_ratio`.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from ..configuration_crate import to_pair


@contextmanager
def forward_hooks(hooks: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Call `hook(module, arguments, output)` after each forward of the modules, until the context is left."""
    with ExitStack() as stack:
        for module, hook in hooks.items():
            stack.callback(module.register_forward_hook(hook).remove)
        yield


def check_pixel_values(model: PreTrainedModel, pixel_values: torch.Tensor) -> None:
    """Raise ValueError unless the images have the model's channels and are made of whole patches."""
    patch_height, patch_width = to_pair(model.config.patch_size)
    channels = model.config.num_channels
    if (
        pixel_values.ndim != 4
        or pixel_values.shape[1] != channels
        or pixel_values.shape[2] % patch_height
        or pixel_values.shape[3] % patch_width
    ):
        raise ValueError(
            f"`pixel_values` must have shape (batch_size, {channels}, height, width), height and width divisible by "
            f"the patch size {(patch_height, patch_width)}, got {tuple(pixel_values.shape)}."
        )


def patch_grid(model: PreTrainedModel, pixel_values: torch.Tensor) -> tuple[int, int]:
    """Return the number of patches of the images as (rows, columns)."""
    patch_height, patch_width = to_pair(model.config.patch_size)
    return pixel_values.shape[2] // patch_height, pixel_values.shape[3] // patch_width


def run_encoder(
    model: PreTrainedModel, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None
) -> None:
    """Run the encoder for what hooks see of it; nothing is masked unless it is said, also by ViTMAE.

    Images of another size than the model's get interpolated positions.
    """
    _run(model, model.base_model, pixel_values, bool_masked_pos)


def query_key_projections(model: PreTrainedModel, layer: int) -> tuple[nn.Linear, nn.Linear]:
    """Return the projections that make query and key in an encoder layer; they are one in CRATE-MAE.

    Raises:
        ValueError: If there is no such layer, or the model is neither a CRATE-MAE nor a ViTMAE.
    """
    layers = cast(Any, model.base_model).layers
    if not -len(layers) <= layer < len(layers):
        raise ValueError(f"`layer` must lie in [{-len(layers)}, {len(layers) - 1}], got {layer}.")
    if hasattr(layers[layer], "mssa"):
        return layers[layer].mssa.subspace_proj, layers[layer].mssa.subspace_proj
    if model.config.model_type == "vit_mae":
        return layers[layer].attention.q_proj, layers[layer].attention.k_proj
    raise ValueError(f"`model` must be a CRATE-MAE, a CRATE or a ViTMAE, got {type(model).__name__}.")


def predict_patches(model: PreTrainedModel, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor) -> torch.Tensor:
    """Return the predictions of all patches, `(batch_size, L, pixels)`, when those in `bool_masked_pos` are masked.

    Raises:
        ValueError: If the model has no decoder, or is a ViTMAE and the mask is not one that ViTMAE can take.
    """
    if not hasattr(model, "unpatchify"):
        raise ValueError(
            f"`model` must be a model for pre-training, which has a decoder, got {type(model).__name__}: load it with "
            "`AutoModelForPreTraining`."
        )
    return _run(model, model, pixel_values, bool_masked_pos).logits


def _run(
    model: PreTrainedModel, part: nn.Module, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None
) -> Any:
    interpolate_pos_encoding = tuple(pixel_values.shape[2:]) != to_pair(model.config.image_size)
    pixel_values = pixel_values.to(model.device)
    if bool_masked_pos is not None:
        bool_masked_pos = bool_masked_pos.to(model.device)
    if model.config.model_type == "crate":
        if bool_masked_pos is not None and bool_masked_pos.any():
            raise ValueError("`bool_masked_pos` must mask nothing for a CRATE, which has no mask token.")
        return part(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
    if model.config.model_type != "vit_mae":
        return part(pixel_values, bool_masked_pos=bool_masked_pos, interpolate_pos_encoding=interpolate_pos_encoding)
    rows, columns = patch_grid(model, pixel_values)
    shape = (pixel_values.shape[0], rows * columns)
    noise = torch.linspace(0, 0.5, shape[1], device=model.device).expand(shape)  # rising: the patches keep their order
    num_visible = torch.full(shape[:1], shape[1])
    if bool_masked_pos is not None:
        noise = noise + bool_masked_pos
        num_visible = (~bool_masked_pos).sum(dim=1)
    if num_visible.min() < 1 or num_visible.min() != num_visible.max():
        raise ValueError(
            "`bool_masked_pos` must leave the same number of patches visible in every image, at least one, for a "
            f"ViTMAE; got {num_visible.tolist()} visible patches."
        )
    # ViTMAE keeps int(L * (1 - mask_ratio)) patches; half a patch more makes that exact in floating point.
    config = cast(Any, model.base_model).embeddings.config
    mask_ratio = config.mask_ratio
    try:
        config.mask_ratio = 1 - (int(num_visible[0]) + 0.5) / shape[1]
        return part(pixel_values, noise=noise, interpolate_pos_encoding=interpolate_pos_encoding)
    finally:
        config.mask_ratio = mask_ratio
