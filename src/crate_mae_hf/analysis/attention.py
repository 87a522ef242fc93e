"""Attention maps of the cls token, computed from the codes: any attention implementation will do, sdpa included."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from ..adapters import check_pixel_values, forward_hooks, inference, patch_grid, query_key_projections, run_encoder


def attention_maps(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    layers: Sequence[int] = (-1,),
    batch_size: int = 8,
) -> torch.Tensor:
    r"""How much the cls token attends to each patch, head by head.

        a_k = softmax(w_k,cls W_kᵀ / sqrt(p)),   W = LN(Z) Uᵀ

    The softmax runs over all N tokens, as in the model; the cls token's attention to itself is then left out, so a map
    sums to less than 1. Nothing is masked.

    Args:
        model: A CRATE-MAE, a CRATE, or a ViTMAE of Transformers (there query and key have projections of their own).
            It is run in evaluation mode and left as it was.
        pixel_values: Images of shape `(num_images, num_channels, height, width)`, as the model takes them; positions
            are interpolated if the images have another size than the model's.
        layers: Encoder layers to read, counted from 0, or from the end if negative.
        batch_size: Number of images that are processed at a time.

    Returns:
        Maps of shape `(num_images, len(layers), num_heads, rows, columns)`, float32, on the CPU.

    Raises:
        ValueError: If layers or images do not fit the model.
    """
    check_pixel_values(model, pixel_values)
    projections = [query_key_projections(model, layer) for layer in layers]
    num_heads = model.config.num_attention_heads
    codes: dict[nn.Module, torch.Tensor] = {}

    def keep(module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        codes[module] = output

    hooks: dict[nn.Module, Callable[..., None]] = dict.fromkeys(
        (projection for pair in projections for projection in pair), keep
    )
    maps = []
    with inference(model), forward_hooks(hooks):
        chunks = pixel_values.split(batch_size)
        for chunk in tqdm(chunks, desc="Attention maps", disable=len(chunks) == 1):
            run_encoder(model, chunk)
            for query_projection, key_projection in projections:
                query, key = (
                    codes[projection].float().unflatten(2, (num_heads, -1)).transpose(1, 2)  # (B, K, N, p)
                    for projection in (query_projection, key_projection)
                )
                scores = query[:, :, :1] @ key.transpose(2, 3) * query.shape[-1] ** -0.5
                maps.append(scores.softmax(dim=-1)[:, :, 0, 1:].cpu())
            codes.clear()
    grouped = [torch.cat(maps[i :: len(projections)]) for i in range(len(projections))]
    return torch.stack(grouped, dim=1).unflatten(3, patch_grid(model, pixel_values))


def upsample(maps: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """Bring maps `(..., rows, columns)` to an image's (height, width), bilinearly between the centres of patches."""
    flat = maps.flatten(0, -3).unsqueeze(1)
    flat = nn.functional.interpolate(flat, size=image_size, mode="bilinear", align_corners=False)
    return flat.squeeze(1).unflatten(0, maps.shape[:-2])
