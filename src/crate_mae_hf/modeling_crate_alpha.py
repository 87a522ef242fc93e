"""CRATE-alpha, the white-box image classifier that scales: an overcomplete dictionary, decoupled, beside a skip.

"Scaling White-Box Transformers for Vision", Yang, Li, Pai, Zhou, Ma, Yu, Xie, NeurIPS 2024 (arXiv 2405.20299). Formulas
follow the paper and what the authors' code computes, github.com/UCSC-VLAA/CRATE-alpha, with tokens as rows.
"""

from typing import cast

import torch
from torch import nn
from transformers import initialization as init

from .configuration_crate_alpha import CrateAlphaConfig
from .crate_heads import (
    CrateBackboneMixin,
    CrateClassifierMixin,
    CrateEncoderMixin,
    CrateEncoderPreTrainedModel,
)
from .crate_layers import CrateAlphaISTA, CrateAlphaLayer, CrateMSSA, drop_path_schedule
from .crate_patches import CrateEmbeddings, CratePatchProjection


class CrateAlphaPreTrainedModel(CrateEncoderPreTrainedModel):
    """Initialisation, loading and saving, shared by the CRATE-alpha models."""

    config: CrateAlphaConfig
    base_model_prefix = "crate_alpha"
    _no_split_modules = ["CrateEmbeddings", "CrateAlphaLayer"]
    _no_weight_decay = ["dictionary", "output_dictionary"]  # as trained: other matrices decay
    _can_record_outputs = {"hidden_states": CrateAlphaLayer, "attentions": CrateMSSA}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw weights as the published models started (the authors' JAX code; their PyTorch code is for inference)."""
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            bound = (6 / module.weight[0].numel()) ** 0.5
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(cast(torch.Tensor, module.bias))
        elif isinstance(module, CrateAlphaISTA):
            # Kaiming, whose fan-in is here the width of a token, not the number of atoms that PyTorch would take.
            bound = (6 / module.dictionary.shape[0]) ** 0.5
            for dictionary in module.parameters():
                init.uniform_(dictionary, -bound, bound)
        elif isinstance(module, CrateEmbeddings):
            init.normal_(module.cls_token, std=1e-6)
            init.normal_(module.position_embeddings, std=0.02)
        else:
            super()._init_weights(module)


class CrateAlphaModel(CrateEncoderMixin, CrateAlphaPreTrainedModel):
    """The encoder: tokens as the last layer leaves them, dense and signed; there is no norm behind it."""

    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]

    def __init__(self, config: CrateAlphaConfig):
        super().__init__(config)
        self.embeddings = CrateEmbeddings(config, CratePatchProjection(config))
        self.layers = nn.ModuleList([CrateAlphaLayer(config, rate) for rate in drop_path_schedule(config)])
        self.post_init()


class CrateAlphaForImageClassification(CrateClassifierMixin, CrateAlphaPreTrainedModel):
    """The encoder with layer norm and linear classifier on the cls token, or on the mean of the patch tokens."""

    def __init__(self, config: CrateAlphaConfig):
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self.crate_alpha = CrateAlphaModel(config)
        self.classifier = nn.Sequential(
            nn.LayerNorm(config.hidden_size, eps=config.final_layer_norm_eps),
            nn.Linear(config.hidden_size, self.num_labels) if self.num_labels else nn.Identity(),
        )
        self.post_init()


class CrateAlphaBackbone(CrateBackboneMixin, CrateAlphaModel):
    """The encoder as a backbone for detection and segmentation: feature maps of chosen layers."""


__all__ = [
    "CrateAlphaBackbone",
    "CrateAlphaForImageClassification",
    "CrateAlphaModel",
    "CrateAlphaPreTrainedModel",
]
