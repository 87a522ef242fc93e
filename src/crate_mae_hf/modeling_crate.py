"""CRATE, the white-box image classifier: the parent of CRATE-MAE, on the same layers.

"White-Box Transformers via Sparse Rate Reduction", Yu, Buchanan, Pai, Chu, Wu, Tong, Haeffele, Ma, NeurIPS 2023.
Formulas follow the official code, github.com/Ma-Lab-Berkeley/CRATE, with tokens as rows.
"""

from typing import cast

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_crate import CrateConfig, ImageSize, to_pair
from .crate_heads import CrateBackboneMixin, CrateClassifierMixin, CrateEncoderPreTrainedModel
from .crate_layers import CrateISTA, CrateLayer, drop_path_schedule
from .crate_patches import CratePatchGrid, interpolate_position_table


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


class CrateEmbeddings(nn.Module):
    """Patch embeddings with the cls token in front, and learned positions added once."""

    def __init__(self, config: CrateConfig):
        super().__init__()
        rows, columns = self.grid_size = config.grid_size
        self.patch_embeddings = CratePatchEmbeddings(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.empty(1, rows * columns + 1, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        embeddings = self.patch_embeddings(pixel_values, interpolate_pos_encoding)
        cls_token = self.cls_token.expand(embeddings.shape[0], -1, -1)  # `len` would export one batch size
        embeddings = torch.cat([cls_token, embeddings], dim=1)
        grid_size = self.patch_embeddings.grid_size(pixel_values)
        return self.dropout(
            embeddings + interpolate_position_table(self.position_embeddings, self.grid_size, grid_size)
        )


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

    def set_image_size(self, image_size: ImageSize) -> None:
        """Make this a model for images of another size, by interpolating its learned positions.

        `interpolate_pos_encoding=True` does the same for a single call; this is for training on, and for saving.

        Args:
            image_size: Image (height, width) in pixels; an `int` stands for a square.

        Raises:
            ValueError: If the patch size does not divide it.
        """
        config = type(self.config)(**{**self.config.to_dict(), "image_size": image_size})
        embeddings = cast(CrateModel, self.base_model).embeddings
        positions = embeddings.position_embeddings
        with torch.no_grad():
            table = interpolate_position_table(positions, embeddings.grid_size, config.grid_size)
        embeddings.position_embeddings = nn.Parameter(table, requires_grad=positions.requires_grad)
        embeddings.grid_size = config.grid_size
        embeddings.patch_embeddings.image_size = to_pair(image_size)
        self.config.image_size = image_size


class CrateModel(CratePreTrainedModel):
    """The encoder: tokens as the last layer leaves them, sparse and not negative; there is no norm behind it."""

    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]

    def __init__(self, config: CrateConfig):
        super().__init__(config)
        self.embeddings = CrateEmbeddings(config)
        self.layers = nn.ModuleList([CrateLayer(config, rate) for rate in drop_path_schedule(config)])
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""Encode images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Images as [`CrateMaeImageProcessor`] prepares them.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate the positions, for images of another size than the model was made for.

        Returns:
            [`BaseModelOutputWithPooling`]: `last_hidden_state` `(batch_size, num_patches + 1, hidden_size)`, cls token
            first, and `pooler_output` `(batch_size, hidden_size)`, the cls token.

        Raises:
            ValueError: If channels or image size do not fit the model.
        """
        hidden_states = self.embeddings(pixel_values, interpolate_pos_encoding)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


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
