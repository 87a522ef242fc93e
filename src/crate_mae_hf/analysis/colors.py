"""Pictures of what a split-brain autoencoder predicts: colour out of lightness, and lightness out of colour."""

from functools import partial

import torch
from torch import nn

from ..adapters import inference
from ..modeling_crate_split_brain import WHITE, XYZ_FROM_RGB, CrateSplitBrainForPreTraining, rgb_to_lab

# Lightness at which colours are shown whose own is not to be seen.
SHOWN_LIGHTNESS = 65.0


def lab_to_rgb(lab: torch.Tensor) -> torch.Tensor:
    """Turn lightness and colour of CIE Lab into sRGB, clipped to [0, 1]: the inverse of `rgb_to_lab`.

    Args:
        lab: L, a and b, `(..., 3, height, width)`.
    """
    lightness, a, b = lab.unbind(dim=-3)
    f_y = (lightness + 16) / 116
    f = torch.stack([f_y + a / 500, f_y, f_y - b / 200], dim=-3)
    xyz = torch.where(f > 0.008856 ** (1 / 3), f**3, (f - 16 / 116) / 7.787)
    matrix = torch.linalg.inv(torch.tensor(XYZ_FROM_RGB, dtype=torch.float64)) * torch.tensor(WHITE).double()
    linear = torch.einsum("rx,...xhw->...rhw", matrix.to(lab), xyz)
    curved = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, curved, 12.92 * linear).clamp(0, 1)


def color_pictures(model: CrateSplitBrainForPreTraining, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what each tower sees, what it predicts of the rest, and what would have been right.

    Predictions are annealed means (`predict_lab`). Beside them stands the truth at the resolution of the targets, both
    bilinear in between; a predicted or true colour is shown at the photograph's own lightness.

    Args:
        model: In any mode, which it keeps.
        pixel_values: Red, green and blue in [0, 1], `(num_images, 3, height, width)`.

    Returns:
        Caption -> pictures of the same shape, on the CPU.
    """
    pixel_values = pixel_values.to(model.device)
    with inference(model):
        predicted, targets = model.predict_lab(pixel_values), model.lab_targets(pixel_values)
    enlarge = partial(nn.functional.interpolate, size=pixel_values.shape[2:], mode="bilinear", align_corners=False)
    predicted, targets = enlarge(predicted), enlarge(targets)
    lab = rgb_to_lab(pixel_values)
    lightness, color = lab[:, :1], lab[:, 1:]
    grey = torch.zeros_like(color)
    parts = {
        "photograph": (lightness, color),
        "lightness:\nthe first tower\nsees this ...": (lightness, grey),
        "... and predicts\nthis colour": (lightness, predicted[:, 1:]),
        "true colour,\nas coarse": (lightness, targets[:, 1:]),
        "colour:\nthe second tower\nsees this ...": (torch.full_like(lightness, SHOWN_LIGHTNESS), color),
        "... and predicts\nthis lightness": (predicted[:, :1], grey),
        "true lightness,\nas coarse": (targets[:, :1], grey),
    }
    return {caption: lab_to_rgb(torch.cat(pair, dim=1)).cpu() for caption, pair in parts.items()}
