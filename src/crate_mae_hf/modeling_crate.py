"""CRATE, the white-box image classifier: the parent of CRATE-MAE, on the same layers.

"White-Box Transformers via Sparse Rate Reduction", Yu, Buchanan, Pai, Chu, Wu, Tong, Haeffele, Ma, NeurIPS 2023.
Formulas follow the official code, github.com/Ma-Lab-Berkeley/CRATE, with tokens as rows.
"""

from typing import cast

import torch
from torch import nn
from transformers import initialization as init

from .configuration_crate import CrateConfig
from .crate_heads import (
    CrateBackboneMixin,
    CrateClassifierMixin,
    CrateEncoderMixin,
    CrateEncoderPreTrainedModel,
)
from .crate_layers import CrateISTA, CrateLayer, drop_path_schedule
from .crate_patches import CrateEmbeddings, CratePatchGrid


class CratePatchEmbeddings(CratePatchGrid):
    """Project each patch x, flattened, to a token: `(batch_size, num_channels, height, width)` to `(batch_size, L, d)`.

    z = LN(W LN(x) + b),   x in the order row, column, channel
    """

    def __init__(self, config: CrateConfig):
        super().__init__(config)
        num_values = self.patch_size[0] * self.patch_size[1] * config.num_channels
        self.layernorm_before = nn.LayerNorm(num_values, eps=config.layer_norm_eps)
        self.projection = nn.Linear(num_values, config.hidden_size)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        self.check(pixel_values, interpolate_pos_encoding)
        patches = self.patchify(pixel_values.to(self.projection.weight.dtype))
        return self.layernorm_after(self.projection(self.layernorm_before(patches)))


class CratePreTrainedModel(CrateEncoderPreTrainedModel):
    """Initialisation, loading and saving, shared by the CRATE models."""

    config: CrateConfig
    base_model_prefix = "crate"
    _no_split_modules = ["CrateEmbeddings", "CrateLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5  # as PyTorch has it, which the official code leaves alone
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, CrateISTA):
            init.kaiming_uniform_(module.dictionary)
        elif isinstance(module, CrateEmbeddings):
            init.normal_(module.cls_token)
            init.normal_(module.position_embeddings)
        else:
            super()._init_weights(module)


class CrateModel(CrateEncoderMixin, CratePreTrainedModel):
    """The encoder: tokens as the last layer leaves them, sparse and not negative; there is no norm behind it."""

    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]

    def __init__(self, config: CrateConfig):
        super().__init__(config)
        self.embeddings = CrateEmbeddings(config, CratePatchEmbeddings(config))
        self.layers = nn.ModuleList([CrateLayer(config, rate) for rate in drop_path_schedule(config)])
        self.post_init()


class CrateForImageClassification(CrateClassifierMixin, CratePreTrainedModel):
    """The encoder with layer norm and linear classifier on the cls token, or on the mean of the patch tokens."""

    def __init__(self, config: CrateConfig):
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self.crate = CrateModel(config)
        self.classifier = nn.Sequential(
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps),
            nn.Linear(config.hidden_size, self.num_labels) if self.num_labels else nn.Identity(),
        )
        self.post_init()


class CrateBackbone(CrateBackboneMixin, CrateModel):
    """The encoder as a backbone for detection and segmentation: feature maps of chosen layers."""


__all__ = [
    "CrateBackbone",
    "CrateForImageClassification",
    "CrateModel",
    "CratePreTrainedModel",
]
