"""Principal components of the patches' codes over a set of images: segmentation without supervision.

The procedure is that of Amir et al., "Deep ViT Features as Dense Visual Descriptors", 2022, on the subspace codes, as
in Yu et al., "Emergence of Segmentation with Minimalistic White-Box Transformers", 2023.
"""

from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from ..adapters import check_pixel_values, forward_hooks, inference, patch_grid, query_key_projections, run_encoder


@dataclass
class PcaMaps:
    """Maps over the patch grids of a set of images; tensors lie on the CPU.

    Args:
        first_component: First joint component, scaled to [0, 1] over the set, `(num_images, rows, columns)`.
        foreground: `first_component` > 0.5 with holes filled, boolean, same shape.
        rgb: Three joint components of the foreground patches, each scaled to [0, 1] over them; 0 in the background;
            `(num_images, 3, rows, columns)`.
        explained: Share of the variance that the first component explains.
    """

    first_component: torch.Tensor
    foreground: torch.Tensor
    rgb: torch.Tensor
    explained: float


def patch_codes(
    model: PreTrainedModel, pixel_values: torch.Tensor, layer: int = -1, batch_size: int = 8
) -> torch.Tensor:
    """Return the patches' subspace codes LN(Z) Uᵀ, all heads side by side; a ViTMAE's are its keys.

    Args:
        model: A CRATE-MAE, a CRATE or a ViTMAE. It is run in evaluation mode and left as it was; nothing is masked.
        pixel_values: Images of shape `(num_images, num_channels, height, width)`, as the model takes them.
        layer: Encoder layer, counted from 0, or from the end if negative.
        batch_size: Number of images that are processed at a time.

    Returns:
        Codes of shape `(num_images, rows, columns, d)`, float32, on the CPU.

    Raises:
        ValueError: If layer or images do not fit the model.
    """
    check_pixel_values(model, pixel_values)
    codes: list[torch.Tensor] = []

    def keep(module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        codes.append(output[:, 1:].float().cpu())

    with inference(model), forward_hooks({query_key_projections(model, layer)[1]: keep}):
        chunks = pixel_values.split(batch_size)
        for chunk in tqdm(chunks, desc="Codes", disable=len(chunks) == 1):
            run_encoder(model, chunk)
    return torch.cat(codes).unflatten(1, patch_grid(model, pixel_values))


def pca_maps(codes: torch.Tensor) -> PcaMaps:
    """Separate foreground from background by the first component, and colour the foreground by three of its own.

    The sign of a component is arbitrary. That of the first is chosen so that the patches on the border of the images
    have a smaller mean than all patches: what touches the border is mostly background. Those of the colours are chosen
    so that their largest loading is positive, which makes them repeatable.

    Args:
        codes: Codes of a set of images, `(num_images, rows, columns, d)`, see `patch_codes`.

    Raises:
        ValueError: If the codes have another shape.
    """
    from scipy.ndimage import binary_fill_holes

    if codes.ndim != 4 or not codes.numel():
        raise ValueError(f"`codes` must have shape (num_images, rows, columns, d), got {tuple(codes.shape)}.")
    components, explained = principal_components(codes.flatten(0, 2), 1)
    first = components.view(codes.shape[:3])
    border = torch.ones(codes.shape[1:3], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    if first[:, border].mean() > first.mean():
        first = -first
    first = scale_to_unit(first.flatten()).view_as(first)
    foreground = torch.stack([torch.from_numpy(binary_fill_holes(mask)) for mask in (first > 0.5).numpy()])
    rgb = torch.zeros(*codes.shape[:3], 3)
    if foreground.any():
        colours, _ = principal_components(codes[foreground], 3)
        rgb[foreground] = scale_to_unit(colours).float()
    return PcaMaps(first.float(), foreground, rgb.permute(0, 3, 1, 2), explained)


def principal_components(points: torch.Tensor, num_components: int) -> tuple[torch.Tensor, float]:
    """Project points on their first principal axes, in float64.

    Args:
        points: `(num_points, d)`.
        num_components: How many; those that the points do not have are zero.

    Returns:
        Components of shape `(num_points, num_components)`, and the share of variance that they explain.
    """
    mean = points.mean(dim=0, dtype=torch.float64)
    covariance = torch.zeros(points.shape[1], points.shape[1], dtype=torch.float64)
    for chunk in points.split(4096):
        centred = chunk.double() - mean
        covariance += centred.T @ centred
    variances, axes = torch.linalg.eigh(covariance)  # ascending
    axes = axes[:, -num_components:].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    components = torch.cat([(chunk.double() - mean) @ axes for chunk in points.split(4096)])
    total = variances.sum().item()
    explained = variances[-num_components:].sum().item() / total if total > 0 else 0.0
    return nn.functional.pad(components, (0, num_components - components.shape[1])), explained


def scale_to_unit(values: torch.Tensor) -> torch.Tensor:
    """Scale each column to [0, 1]; a constant one becomes 0."""
    low, high = values.amin(dim=0), values.amax(dim=0)
    return (values - low) / (high - low).where(high > low, 1)
