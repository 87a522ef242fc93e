"""MLO-MAE: masks that a network learns from the validation loss of a downstream head."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..adapters import masked_pass, patch_grid, patch_tokens, run_encoder
from ..configuration_crate import patch_grid_size
from .hypergradient import hypergradient
from .objective import PREFIX, Objective

# The masking network, beside the autoencoder that was trained with it.
MASKING = "masking.safetensors"
# Where masks come from: from a network that is trained, from one that stays as it was drawn, or from noise alone.
MASKS = ("learned", "frozen", "random")


class MaskingNetwork(nn.Module):
    r"""T: scores of patches, of which the highest are masked.

        p = sigmoid(W_2 ReLU(W_1 t + b_1) + b_2),   t = all tokens of an image in a row

    Args:
        num_patches: Number N of patches.
        hidden_size: Width D of a token.
        mask_hidden_size: Width of the layer between.
    """

    def __init__(self, num_patches: int, hidden_size: int, mask_hidden_size: int = 512):
        super().__init__()
        sizes = {"num_patches": num_patches, "hidden_size": hidden_size, "mask_hidden_size": mask_hidden_size}
        for name, size in sizes.items():
            if not size > 0:
                raise ValueError(f"`{name}` must be positive, got {size}.")
        self.sizes = sizes
        self.hidden = nn.Linear(num_patches * hidden_size, mask_hidden_size)
        self.output = nn.Linear(mask_hidden_size, num_patches)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map tokens `(batch_size, N, D)`, see `patch_tokens`, to scores `(batch_size, N)` in (0, 1).

        Raises:
            ValueError: If these are other patches than the network is for.
        """
        shape = (self.sizes["num_patches"], self.sizes["hidden_size"])
        if tokens.shape[1:] != shape:
            raise ValueError(
                f"`tokens` must have shape (batch_size, {shape[0]}, {shape[1]}), got {tuple(tokens.shape)}."
            )
        return self.output(self.hidden(tokens.flatten(1)).relu()).sigmoid()

    def save(self, folder: str | Path) -> None:
        """Write the network to a folder, for `load`."""
        save_file(self.state_dict(), Path(folder) / MASKING, metadata={"sizes": json.dumps(self.sizes)})

    @classmethod
    def load(cls, folder: str | Path) -> "MaskingNetwork":
        """Read the network that a run has left in its output folder.

        Raises:
            ValueError: If there is none.
        """
        path = Path(folder) / MASKING
        if not path.is_file():
            raise ValueError(f"There is no {MASKING} in {folder}: it is none of a run of MLO-MAE.")
        with safe_open(path, "pt") as file:
            sizes = json.loads((file.metadata() or {}).get("sizes", "{}"))
        network = cls(**sizes)
        network.load_state_dict(load_file(path))
        return network


@dataclass
class MloMaeOutput(ModelOutput):
    """What [`MloMae`] computes of a batch at its first level.

    Args:
        loss: Mean of the scores times the errors, over the masked patches.
        reconstruction: Mean of the errors over the masked patches, the loss of a masked autoencoder.
        mask_entropy: See `mask_entropy`.
        scores: `(batch_size, L)`; None where masks are random.
        mask: 1 where a patch was masked, `(batch_size, L)`.
    """

    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    mask_entropy: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    mask: torch.Tensor | None = None


def mask_entropy(mask: torch.Tensor) -> torch.Tensor:
    r"""How much masks differ between images: the entropy of masking at each position, as a share of what it can be.

        f_i = mean of m_i over images,   mean_i h(f_i) / h(mean_i f_i),   h(f) = -f ln f - (1 - f) ln(1 - f)

    0 where all images have one mask, 1 where every position is masked as often as any other; of B random masks about
    1 - 1 / (2 B h(f)).

    Args:
        mask: 1 where a patch is masked, `(batch_size, L)`.
    """

    def binary_entropy(share: torch.Tensor) -> torch.Tensor:
        return torch.special.entr(share) + torch.special.entr(1 - share)

    frequency = mask.float().mean(dim=0)
    limit = binary_entropy(frequency.mean())
    return torch.where(limit > 0, binary_entropy(frequency).mean() / limit, 0.0)


class MloMae(Objective):
    r"""Mask what a network T says, and train T by what the encoder is then good for.

        t = patch embeddings + positions,   scores p = T(t),   m_i = 0 for the int(L (1 - r)) lowest scores, else 1
        I    L_pre = sum_i p_i m_i e_i / sum_i m_i              trains encoder and decoder; e_i is the error of patch i
        II   L_ft  = cross entropy of C(cls of whole images)    trains the head C: LayerNorm, dropout, linear
        III  L_val = the same on other images                   trains T, by the `hypergradient`

    "Downstream Task Guided Masking Learning in Masked Autoencoders Using Multi-Level Optimization", Guo, Zhang and Xie,
    TMLR 2025. Ranking passes no gradient: the product with p_i is the only way from L_pre to T. `forward` is level I;
    `MloMaeTrainer` trains all three in turn.

    Args:
        autoencoder: [`CrateMaeForPreTraining`], or `ViTMAEForPreTraining` of Transformers.
        num_labels: Number of classes.
        masks: "learned"; "frozen" for a T that is never trained; "random" for those of a masked autoencoder, with its
            loss.
        mask_hidden_size: Width of T's hidden layer.
        head_dropout: Dropout of the head in level II.
        score_noise: Highest value of the uniform noise that is added to the scores for the ranking alone. Not in the
            original, so that masks of an image vary.
        freeze_ranking: Whether the ranking stays as it is while the hypergradient shifts the weights behind it. Not in
            the original, where a patch that changes sides makes the quotient wrong by any factor.

    Raises:
        ValueError: If an argument is out of its range, or the model has no decoder.
    """

    elsewhere = (PREFIX, "masking.")

    def __init__(
        self,
        autoencoder: PreTrainedModel,
        num_labels: int,
        *,
        masks: str = "learned",
        mask_hidden_size: int = 512,
        head_dropout: float = 0.1,
        score_noise: float = 0.0,
        freeze_ranking: bool = False,
    ):
        super().__init__(autoencoder)
        if masks not in MASKS:
            raise ValueError(f"`masks` must be one of {', '.join(MASKS)}, got {masks!r}.")
        if num_labels < 2:
            raise ValueError(f"`num_labels` must be at least 2, got {num_labels}.")
        if not score_noise >= 0:
            raise ValueError(f"`score_noise` must not be negative, got {score_noise}.")
        if not 0 <= head_dropout < 1:
            raise ValueError(f"`head_dropout` must lie in [0, 1), got {head_dropout}.")
        self.masks = masks
        self.score_noise = score_noise
        self.freeze_ranking = freeze_ranking
        rows, columns = patch_grid_size(autoencoder.config.image_size, autoencoder.config.patch_size)
        width = autoencoder.config.hidden_size
        self.masking = MaskingNetwork(rows * columns, width, mask_hidden_size)
        self.head = nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.Dropout(head_dropout), nn.Linear(width, num_labels))

    def describe(self) -> dict[str, str]:
        settings: dict[str, Any] = {
            "masks": self.masks,
            "noise on the scores": self.score_noise,
            "frozen ranking in differences": self.freeze_ranking,
        }
        if self.masks == "learned":
            settings["labels"] = f"of {self.head[2].out_features} classes, by which the masks were learned"
        return {
            "objective": "[MLO-MAE](https://arxiv.org/abs/2402.18128) (Guo, Zhang and Xie, TMLR 2025)",
            **{name: str(value) for name, value in settings.items()},
        }

    # Level I

    def rank(self, scores: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """Return what patches are ranked by, without gradients: scores, with `score_noise` where asked for."""
        ranking = scores.detach()
        if self.score_noise:
            ranking = ranking + self.score_noise * (torch.rand_like(ranking) if noise is None else noise)
        return ranking

    def forward(
        self,
        pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        ranking: torch.Tensor | None = None,
    ) -> MloMaeOutput:
        """Compute the loss of level I.

        Args:
            pixel_values: Images of shape `(batch_size, num_channels, height, width)`, of the model's size.
            noise: In [0, 1), `(batch_size, L)`, for `score_noise` and random masks; drawn when left out.
            ranking: What to rank patches by, the smallest stay visible, `(batch_size, L)`; see `rank` when left out.
        """
        scores = None
        if self.masks == "random":
            if noise is None:
                rows, columns = patch_grid(self.autoencoder, pixel_values)
                noise = torch.rand(len(pixel_values), rows * columns, device=pixel_values.device)
            ranking = noise
        else:
            scores = self.masking(patch_tokens(self.autoencoder, pixel_values))
            ranking = self.rank(scores, noise) if ranking is None else ranking
        passed = masked_pass(self.autoencoder, pixel_values, ranking)
        errors, count = passed.errors * passed.mask, passed.mask.sum().clamp(min=1)
        reconstruction = errors.sum() / count
        loss = reconstruction if scores is None else (scores * errors).sum() / count
        return MloMaeOutput(
            loss=cast(Any, loss),
            reconstruction=reconstruction.detach(),
            mask_entropy=mask_entropy(passed.mask),
            scores=scores,
            mask=passed.mask,
        )

    # Levels II and III

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return what the head sees of whole images: the encoder's cls token, `(batch_size, d)`."""
        outputs: Any = run_encoder(self.autoencoder, pixel_values)
        return outputs.last_hidden_state[:, 0]

    def head_loss(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the cross entropy of the head, `(batch_size, d)` and `(batch_size,)` to one number."""
        return nn.functional.cross_entropy(self.head(features), labels)

    def mask_gradient(
        self,
        pretraining: Mapping[str, torch.Tensor],
        finetuning: Mapping[str, torch.Tensor],
        validation: Mapping[str, torch.Tensor],
        alpha: float = 0.01,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return the hypergradient for the parameters of the masking network, and the validation loss.

        The validation loss is without dropout.

        Args:
            pretraining: Arguments of `forward`.
            finetuning: `pixel_values` and `labels`.
            validation: The same of other images.
            alpha: As `hypergradient` has it.
        """
        losses = []

        def pretrain_loss() -> torch.Tensor:
            # Not `self(...)`, of which Trainer may have made one in lower precision: differences are small.
            return cast(torch.Tensor, MloMae.forward(self, **pretraining).loss)

        def finetune_loss() -> torch.Tensor:
            return self.head_loss(self.features(finetuning["pixel_values"]), finetuning["labels"])

        def validation_loss() -> torch.Tensor:
            training = self.head.training
            self.head.eval()
            losses.append(self.head_loss(self.features(validation["pixel_values"]), validation["labels"]))
            self.head.train(training)
            return losses[0]

        if self.freeze_ranking:
            with torch.no_grad():
                scores = self.masking(patch_tokens(self.autoencoder, pretraining["pixel_values"]))
                pretraining = {**pretraining, "ranking": self.rank(scores, pretraining.get("noise"))}
        gradients = hypergradient(
            pretrain_loss,
            finetune_loss,
            validation_loss,
            [weight for weight in self.autoencoder.parameters() if weight.requires_grad],
            list(self.head.parameters()),
            list(self.masking.parameters()),
            alpha,
        )
        return gradients, losses[0].detach()

    # What is left behind

    def save_rest(self, folder: str | Path) -> None:
        super().save_rest(folder)
        self.masking.save(folder)

    def load_rest(self, folder: str | Path) -> None:
        super().load_rest(folder)
        masking = MaskingNetwork.load(folder)
        if masking.sizes != self.masking.sizes:
            raise ValueError(f"{Path(folder) / MASKING} has the sizes {masking.sizes}, not {self.masking.sizes}.")
        self.masking.load_state_dict(masking.state_dict())
