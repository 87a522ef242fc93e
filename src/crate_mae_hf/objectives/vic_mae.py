"""ViC-MAE: a masked autoencoder that also tells the other view of an image or a clip from all others."""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..adapters import masked_pass, patch_grid
from .contrastive import nt_xent, world_size
from .objective import Objective


@dataclass
class VicMaeOutput(ModelOutput):
    """What [`VicMae`] computes of a batch of pairs.

    Args:
        loss: Weighted sum of the terms.
        reconstruction: Mean squared error over the masked patches of both views.
        contrastive: NT-Xent between the views.
        chance: What the contrastive loss is where nothing tells the pairs apart, ln(2B - 1).
    """

    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    contrastive: torch.Tensor | None = None
    chance: torch.Tensor | None = None


def build_projector(hidden_size: int, projector_size: int, projection_size: int) -> nn.Sequential:
    """Return the network between features and contrastive loss: three linear maps, two of them with batch norm."""
    return nn.Sequential(
        nn.Linear(hidden_size, projector_size),
        nn.BatchNorm1d(projector_size),
        nn.ReLU(inplace=True),
        nn.Linear(projector_size, projector_size),
        nn.BatchNorm1d(projector_size),
        nn.ReLU(inplace=True),
        nn.Linear(projector_size, projection_size),
    )


class VicMae(Objective):
    r"""Reconstruct two views of a thing, and bring the features of what is visible in them together.

        u_v = projector(mean over visible patches of encoder(x_v)),   v = 1, 2
        loss = w_c NT-Xent(u_1, u_2; tau) + w_r (MAE(x_1) + MAE(x_2)) / 2

    "ViC-MAE: Self-Supervised Representation Learning from Images and Video with Contrastive Masked Autoencoders",
    Hernandez, Villegas and Ordonez, ECCV 2024. Each view has a mask of its own, by the autoencoder's mask ratio. The
    projector sees one view at a time, so that its batch statistics are those of a view.

    Args:
        autoencoder: [`CrateMaeForPreTraining`], or `ViTMAEForPreTraining` of Transformers.
        contrastive_weight: w_c.
        reconstruction_weight: w_r.
        contrastive_rise: Share of the training over which w_c rises from 0 to its value; 0 for a constant.
        temperature: tau.
        projector_size: Width of the projector.
        projection_size: Width of what it gives.
        sync_batch_norm: Whether the projector's batch norms see the items of all processes; on GPUs only.

    Raises:
        ValueError: If an argument is out of its range, or the model has no decoder.
    """

    def __init__(
        self,
        autoencoder: PreTrainedModel,
        *,
        contrastive_weight: float = 0.03,
        reconstruction_weight: float = 0.97,
        contrastive_rise: float = 0.0,
        temperature: float = 0.1,
        projector_size: int = 4096,
        projection_size: int = 128,
        sync_batch_norm: bool = False,
    ):
        super().__init__(autoencoder)
        weights = {"contrastive_weight": contrastive_weight, "reconstruction_weight": reconstruction_weight}
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"`{name}` must not be negative, got {weight}.")
        sizes = {"temperature": temperature, "projector_size": projector_size, "projection_size": projection_size}
        for name, value in sizes.items():
            if not value > 0:
                raise ValueError(f"`{name}` must be positive, got {value}.")
        if not 0 <= contrastive_rise <= 1:
            raise ValueError(f"`contrastive_rise` must lie in [0, 1], got {contrastive_rise}.")
        self.contrastive_weight = contrastive_weight
        self.reconstruction_weight = reconstruction_weight
        self.contrastive_rise = contrastive_rise
        self.temperature = temperature
        projector: nn.Module = build_projector(autoencoder.config.hidden_size, projector_size, projection_size)
        if sync_batch_norm:
            projector = nn.SyncBatchNorm.convert_sync_batchnorm(projector)
        self.projector = projector

    def describe(self) -> dict[str, str]:
        settings = {
            "contrastive weight": self.contrastive_weight,
            "reconstruction weight": self.reconstruction_weight,
            "rise of the contrastive weight": self.contrastive_rise,
            "temperature": self.temperature,
        }
        return {
            "objective": "[ViC-MAE](https://arxiv.org/abs/2303.12001) (Hernandez, Villegas and Ordonez, ECCV 2024)",
            **{name: str(value) for name, value in settings.items()},
        }

    def current_contrastive_weight(self) -> torch.Tensor | float:
        """Return w_c at this point of the training."""
        if not self.contrastive_rise:
            return self.contrastive_weight
        return self.contrastive_weight * (self.progress / self.contrastive_rise).clamp(max=1)

    def forward(self, pixel_values: torch.Tensor, noise: torch.Tensor | None = None) -> VicMaeOutput:
        """Compute the loss of a batch of pairs.

        Args:
            pixel_values: Two views of each thing, `(batch_size, 2, num_channels, height, width)`.
            noise: Decides the masks, see `masked_pass`, `(batch_size, 2, num_patches)`; drawn when left out.

        Raises:
            ValueError: If these are no pairs, or a single one in training, which has nothing to be told from.
        """
        if pixel_values.ndim != 5 or pixel_values.shape[1] != 2:
            raise ValueError(
                "`pixel_values` must have shape (batch_size, 2, num_channels, height, width), two views of each thing, "
                f"got {tuple(pixel_values.shape)}."
            )
        if self.training and len(pixel_values) < 2:
            raise ValueError(
                "`pixel_values`: a batch of one pair has nothing to be told from; batches need at least two on every "
                "device (`dataloader_drop_last` leaves out a last one that is smaller)."
            )
        images = pixel_values.transpose(0, 1).flatten(0, 1)  # the first view of all, then the second
        if noise is None:
            rows, columns = patch_grid(self.autoencoder, images)
            noise = torch.rand(*pixel_values.shape[:2], rows * columns, device=pixel_values.device)
        passed = masked_pass(self.autoencoder, images, noise.transpose(0, 1).flatten(0, 1))
        # As many patches are masked in each view: this is the mean of both.
        reconstruction = (passed.errors * passed.mask).sum() / passed.mask.sum().clamp(min=1)
        first, second = (self.projector(view) for view in passed.pooled.chunk(2))
        contrastive = nt_xent(first, second, self.temperature)
        loss = self.current_contrastive_weight() * contrastive + self.reconstruction_weight * reconstruction
        chance = math.log(max(2 * len(pixel_values) * world_size() - 1, 1))
        return VicMaeOutput(
            loss=cast(Any, loss),
            reconstruction=reconstruction.detach(),
            contrastive=contrastive.detach(),
            chance=contrastive.detach().new_tensor(chance),
        )
