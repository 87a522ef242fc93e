"""Features of images, extracted once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..image_processing_crate_mae import CrateMaeImageProcessor
from ..modeling_crate_mae import CrateMaeModel


def preprocess(processor: CrateMaeImageProcessor, images: Sequence[Any], batch_size: int = 500) -> torch.Tensor:
    """Return the pixel values of images, `(num_images, num_channels, height, width)`."""
    chunks = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    parts = [processor(list(chunk), return_tensors="pt").pixel_values for chunk in tqdm(chunks, desc="Preprocessing")]
    return torch.cat(parts)


@torch.no_grad()
def extract_features(
    model: CrateMaeModel, pixel_values: torch.Tensor, batch_size: int = 250, description: str = "Extracting features"
) -> dict[str, np.ndarray]:
    """Encode images without a mask.

    Args:
        model: The encoder; put into evaluation mode and left in the mode it had.
        pixel_values: Images of shape `(num_images, num_channels, height, width)`.
        batch_size: Images at a time.
        description: Of the progress bar.

    Returns:
        Features of shape `(num_images, hidden_size)`, float32, after the final layer norm: the `"cls"` token, the
        `"mean"` of the patch tokens; and `"cls_mean"`, both side by side.
    """
    was_training = model.training
    model.eval()
    parts = []
    for batch in tqdm(pixel_values.split(batch_size), desc=description):
        tokens = model(batch.to(model.device)).last_hidden_state.float()
        parts.append(torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1).cpu())
    model.train(was_training)
    both = torch.cat(parts).numpy()
    cls, mean = np.split(both, 2, axis=1)
    return {"cls": cls, "mean": mean, "cls_mean": both}
