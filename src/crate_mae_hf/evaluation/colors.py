"""How well a split-brain autoencoder predicts colour and lightness, beside the best answer that sees nothing."""

from collections.abc import Iterable

import torch

from ..adapters import inference
from ..modeling_crate_split_brain import (
    AB_CENTRES,
    NUM_L_BINS,
    CrateSplitBrainForPreTraining,
    color_bins,
    lightness_bins,
)


def best_constant(targets: torch.Tensor, prediction: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the predictions of colour and lightness that are best on average where nothing is seen.

    These are the logarithms of the bins' frequencies, whose error is the entropy of the bins, or for a regression the
    means.

    Args:
        targets: Lab of shape `(num_images, 3, rows, columns)`.
        prediction: `"classification"` or `"regression"`.

    Returns:
        Logits or values of shape `(1, 1, 261)` and `(1, 1, 50)`, or `(1, 1, 2)` and `(1, 1, 1)`.
    """
    lightness, ab = targets.movedim(1, -1).flatten(0, 2).split((1, 2), dim=-1)
    if prediction == "regression":
        return ab.mean(dim=0)[None, None], lightness.mean(dim=0)[None, None]
    ab_counts = torch.bincount(color_bins(ab), minlength=len(AB_CENTRES))
    l_counts = torch.bincount(lightness_bins(lightness.squeeze(-1)), minlength=NUM_L_BINS)
    return ab_counts.log()[None, None], l_counts.log()[None, None]


def color_errors(model: CrateSplitBrainForPreTraining, batches: Iterable[torch.Tensor]) -> dict[str, float]:
    """Return the mean errors of a split-brain autoencoder, and those of the best constants on the same images.

    Args:
        model: In any mode, which it keeps.
        batches: Red, green and blue in [0, 1], `(batch_size, 3, height, width)` each.

    Returns:
        `loss_ab` and `loss_l`, as the model has them, and `constant_loss_ab` and `constant_loss_l`: for a
        classification the entropies of the bins on these images. A tower whose loss is not below has learnt nothing.
    """
    all_targets, all_errors = [], []
    with inference(model):
        for pixel_values in batches:
            pixel_values = pixel_values.to(model.device)
            outputs = model(pixel_values, return_loss=False)
            targets = model.lab_targets(pixel_values)
            all_errors.append(torch.stack(model.errors(targets, outputs.logits_ab, outputs.logits_l)))
            all_targets.append(targets)
        targets = torch.cat(all_targets)
        constants = best_constant(targets, model.config.prediction)
        num_targets = targets[0, 0].numel()
        # Every target meets the same prediction.
        constant = model.errors(targets, *(value.expand(len(targets), num_targets, -1) for value in constants))
    means = [*torch.cat(all_errors, dim=1).mean(dim=(1, 2)).tolist(), *(error.mean().item() for error in constant)]
    return dict(zip(("loss_ab", "loss_l", "constant_loss_ab", "constant_loss_l"), means, strict=True))
