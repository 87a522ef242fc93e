"""CRATE-MAE, the white-box masked autoencoder.

"Masked Completion via Structured Diffusion with White-Box Transformers", Pai, Buchanan, Wu, Yu, Ma, ICLR 2024.
Formulas follow the official code, github.com/Ma-Lab-Berkeley/CRATE, with tokens as rows: d is the width of a token, K
the number of heads, N = L + 1 the cls token and L patches.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedImageModelingOutput
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_crate import to_pair
from .configuration_crate_mae import CrateMaeConfig
from .crate_heads import CrateBackboneMixin, CrateClassifierMixin, CrateEncoderPreTrainedModel, pool
from .crate_layers import CrateISTA, CrateLayer, CrateMSSA, drop_path_schedule, select_tokens
from .crate_ops import apply_norm, normed_product
from .crate_patches import CratePatchGrid, CratePatchProjection, interpolate_position_table, sincos_position_table


@dataclass
class CrateMaeForPreTrainingOutput(ModelOutput):
    """Output of [`CrateMaeForPreTraining`].

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned unless `return_loss=False`):
            Mean squared error over the pixels of the masked patches.
        logits (`torch.FloatTensor` of shape `(batch_size, num_patches, patch_height * patch_width * num_channels)`,
            *optional*, returned unless `return_logits=False`):
            Predicted pixels of every patch; see [`CrateMaeForPreTraining.unpatchify`].
        mask (`torch.FloatTensor` of shape `(batch_size, num_patches)`):
            1 where a patch was masked, 0 where it was visible.
        ids_restore (`torch.LongTensor` of shape `(batch_size, num_patches)`):
            Rank of each patch in the order "visible first", as ViTMAE has it.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned with `output_hidden_states=True`):
            The encoder's embeddings and the output of each encoder layer, `(batch_size, num_patches + 1, hidden_size)`.
        attentions (`tuple(torch.FloatTensor)`, *optional*, returned with `output_attentions=True` and eager attention):
            The encoder's attention maps, `(batch_size, num_heads, num_patches + 1, num_patches + 1)`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    ids_restore: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def to_bool_mask(bool_masked_pos: torch.Tensor | None) -> torch.BoolTensor | None:
    """Return a mask as booleans; one of integers, zeros and ones, is as good.

    Raises:
        ValueError: If it is of other numbers.
    """
    if bool_masked_pos is None or bool_masked_pos.dtype == torch.bool:
        return cast("torch.BoolTensor | None", bool_masked_pos)  # a string: PyTorch 2.8 cannot compile a union
    if bool_masked_pos.is_floating_point() or not ((bool_masked_pos == 0) | (bool_masked_pos == 1)).all():
        raise ValueError(
            "`bool_masked_pos` must be a boolean tensor, or one of integers that are 0 or 1, True where a patch is "
            f"masked; got {bool_masked_pos.dtype} from {bool_masked_pos.min()} to {bool_masked_pos.max()}."
        )
    return cast(torch.BoolTensor, bool_masked_pos.bool())


class CrateMaeEmbeddings(nn.Module):
    """Patch embeddings with mask tokens in place, the cls token in front, and positions added once.

    The positions are fixed; they are a persistent buffer, so that they travel with the checkpoint and never train.
    """

    def __init__(self, config: CrateMaeConfig):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.grid_size = config.grid_size
        self.patch_embeddings = CratePatchProjection(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embeddings: torch.Tensor
        self.register_buffer("position_embeddings", sincos_position_table(config.hidden_size, self.grid_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> torch.Tensor:
        embeddings = self.patch_embeddings(pixel_values, interpolate_pos_encoding)
        batch_size, num_patches, _ = embeddings.shape
        if bool_masked_pos is None:
            # Nothing is masked, yet the mask token stays in the graph: DistributedDataParallel wants every gradient.
            bool_masked_pos = embeddings.new_zeros(batch_size, num_patches, dtype=torch.bool)
        elif bool_masked_pos.shape != (batch_size, num_patches):
            raise ValueError(
                f"`bool_masked_pos` must be of shape {(batch_size, num_patches)}, True where a patch is masked; got "
                f"{tuple(bool_masked_pos.shape)}."
            )
        embeddings = torch.where(bool_masked_pos.unsqueeze(-1), self.mask_token, embeddings)
        embeddings = torch.cat([self.cls_token.expand(batch_size, -1, -1), embeddings], dim=1)
        grid_size = self.patch_embeddings.grid_size(pixel_values)
        positions = interpolate_position_table(self.position_embeddings, self.grid_size, grid_size)
        return self.dropout((embeddings + positions).to(embeddings.dtype))


class CrateMaeDecoderLayer(GradientCheckpointingLayer):
    """Decoder layer g, the approximate inverse of an encoder layer: back from the sparse code, then decompress.

    y_half = LN(y) Dᵀ,   y' = y_half - MSSA(LN(y_half))

    With query positions `(batch_size, M)` only the tokens there are mapped, which still see all.
    """

    def __init__(self, config: CrateMaeConfig):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dictionary = nn.Parameter(torch.empty(config.hidden_size, config.hidden_size))
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mssa = CrateMSSA(config, cast(int, config.decoder_num_attention_heads))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        query_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        hidden_states = normed_product(*apply_norm(self.layernorm_before, hidden_states), self.dictionary.T)
        normed = self.layernorm_after(hidden_states)
        if query_positions is not None:
            hidden_states = select_tokens(hidden_states, query_positions)
        compressed, _ = self.mssa(normed, query_positions=query_positions, **kwargs)
        return hidden_states - self.dropout(compressed)


class CrateMaeDecoder(nn.Module):
    """Decoder layers, `(batch_size, N, d)` to the same shape, and what the model predicts pixels with.

    With query positions `(batch_size, M)` the last layer maps the tokens there alone, to `(batch_size, M, d)`: nothing
    that comes after it mixes tokens.
    """

    def __init__(self, config: CrateMaeConfig):
        super().__init__()
        patch_height, patch_width = to_pair(config.patch_size)
        num_layers = cast(int, config.decoder_num_hidden_layers)
        self.layers = nn.ModuleList([CrateMaeDecoderLayer(config) for _ in range(num_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.final_layer_norm_eps)
        self.prediction_head = nn.Linear(config.hidden_size, patch_height * patch_width * config.num_channels)

    def forward(
        self,
        hidden_states: torch.Tensor,
        query_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        *layers, last_layer = self.layers
        for layer in layers:
            hidden_states = layer(hidden_states, **kwargs)
        return last_layer(hidden_states, query_positions, **kwargs)


class CrateMaePreTrainedModel(CrateEncoderPreTrainedModel):
    """Initialisation, loading and saving, shared by the CRATE-MAE models."""

    config: CrateMaeConfig
    base_model_prefix = "crate_mae"
    _no_split_modules = ["CrateMaeEmbeddings", "CrateLayer", "CrateMaeDecoderLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            gain = self.config.mssa_init_scale if hasattr(module, "is_mssa_output") else 1.0
            init.xavier_uniform_(module.weight, gain)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            # Xavier over the flattened weight (d, pixels of a patch), as for a linear layer. The bound is written out
            # because a view of a loaded weight would lose the mark that it is loaded.
            bound = (6 / (module.weight.shape[0] + module.weight[0].numel())) ** 0.5
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(cast(torch.Tensor, module.bias))
        elif isinstance(module, (CrateISTA, CrateMaeDecoderLayer)):
            init.kaiming_uniform_(module.dictionary)
        elif isinstance(module, CrateMaeEmbeddings):
            init.normal_(module.cls_token, std=self.config.initializer_range)
            init.normal_(module.mask_token, std=self.config.initializer_range)
            table = sincos_position_table(module.hidden_size, module.grid_size)
            init.copy_(module.position_embeddings, table)
        else:
            super()._init_weights(module)


class CrateMaeModel(CrateMaePreTrainedModel):
    """The encoder: image features with a final layer norm. Nothing is masked unless `bool_masked_pos` says so."""

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^classifier\."]

    def __init__(self, config: CrateMaeConfig):
        super().__init__(config)
        self.embeddings = CrateMaeEmbeddings(config)
        self.layers = nn.ModuleList([CrateLayer(config, rate) for rate in drop_path_schedule(config)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.final_layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""Encode images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Images as [`CrateMaeImageProcessor`] prepares them.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_patches)`, *optional*):
                True where a patch is masked, row by row over the patch grid; ones and zeros do as well. Masked patches
                keep their place as mask tokens, so the number of tokens never changes.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate the positions, for images of another size than the model was made for.

        Returns:
            [`BaseModelOutputWithPooling`]: `last_hidden_state` `(batch_size, num_patches + 1, hidden_size)`, cls token
            first, and `pooler_output` `(batch_size, hidden_size)`, see `config.pooling`.

        Raises:
            ValueError: If channels, image size or mask do not fit the model.

        Example:

        ```python
        >>> import torch
        >>> from crate_mae_hf import CrateMaeConfig, CrateMaeModel

        >>> model = CrateMaeModel(CrateMaeConfig.from_size("tiny", num_hidden_layers=2)).eval()
        >>> outputs = model(pixel_values=torch.zeros(1, 3, 224, 224))
        >>> list(outputs.last_hidden_state.shape)
        [1, 197, 384]
        ```
        """
        hidden_states = self.embeddings(pixel_values, to_bool_mask(bool_masked_pos), interpolate_pos_encoding)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        pooled = pool(hidden_states, self.config.pooling)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)


class CrateMaeForPreTraining(CrateMaePreTrainedModel):
    """The masked autoencoder: encoder, decoder and reconstruction loss."""

    # The loss is a mean over the batch: Trainer has to divide it by the accumulation steps itself.
    accepts_loss_kwargs = False
    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]

    def __init__(self, config: CrateMaeConfig):
        super().__init__(config)
        self.crate_mae = CrateMaeModel(config)
        self.decoder = CrateMaeDecoder(config)
        self.post_init()

    @property
    def patch_grid(self) -> CratePatchGrid:
        """How images are cut into patches."""
        return self.crate_mae.embeddings.patch_embeddings

    def patchify(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Cut images into patches.

        Args:
            pixel_values: Images of shape `(batch_size, num_channels, height, width)`.

        Returns:
            Patches of shape `(batch_size, num_patches, patch_height * patch_width * num_channels)`, row by row over the
            grid; within a patch the order is row, column, channel.

        Raises:
            ValueError: If the channels or the image size do not fit the model.
        """
        self.patch_grid.check(pixel_values, interpolate_pos_encoding=True)
        return self.patch_grid.patchify(pixel_values)

    def unpatchify(self, patches: torch.Tensor, image_size: tuple[int, int] | None = None) -> torch.Tensor:
        """Put patches together again: the inverse of `patchify`.

        Args:
            patches: Patches of shape `(batch_size, num_patches, patch_height * patch_width * num_channels)`.
            image_size: Image (height, width); the configuration's when left out.

        Returns:
            Images of shape `(batch_size, num_channels, height, width)`.

        Raises:
            ValueError: If the patches do not fill such an image.
        """
        return self.patch_grid.unpatchify(patches, image_size or self.patch_grid.image_size)

    def sample_mask(self, noise: torch.Tensor) -> torch.BoolTensor:
        """Mask the patches with the largest noise.

        Args:
            noise: One number per patch, `(batch_size, num_patches)`; the `int(L * (1 - mask_ratio))` smallest stay
                visible.

        Returns:
            Boolean mask of the same shape, True where a patch is masked.
        """
        num_visible = int(noise.shape[1] * (1 - self.config.mask_ratio))
        return cast(torch.BoolTensor, noise.argsort(dim=1).argsort(dim=1) >= num_visible)

    def patch_targets(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return what the decoder has to predict: the patches in float32.

        With `norm_pix_loss` each patch is brought to mean 0 and variance 1 over its own pixels (unbiased variance,
        + 1e-6).

        Args:
            pixel_values: Images of shape `(batch_size, num_channels, height, width)` that fit the model.

        Returns:
            Targets of the shape of `patchify`.
        """
        target = self.patch_grid.patchify(pixel_values.float())
        if self.config.norm_pix_loss:
            variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        return target

    def predict(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the pixels that the decoder's tokens `(..., d)` stand for, `(..., P)`."""
        return self.decoder.prediction_head(self.decoder.layernorm(tokens))

    def patch_errors(
        self, pixel_values: torch.Tensor, logits: torch.Tensor, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        r"""Mean squared error of each patch, in float32.

            e_l = |x_l - y_l|² / P

        x are the `patch_targets`, P is the number of values in a patch.

        Args:
            pixel_values: Images of shape `(batch_size, num_channels, height, width)` that fit the model.
            logits: Predicted patches y of shape `(batch_size, num_patches, P)`, or `(batch_size, M, P)`.
            positions: Which M patches of each image are predicted, `(batch_size, M)`; all when left out.

        Returns:
            Errors of shape `(batch_size, num_patches)`, or `(batch_size, M)`.
        """
        targets = self.patch_targets(pixel_values)
        if positions is not None:
            targets = select_tokens(targets, positions)
        return (logits.float() - targets).pow(2).mean(dim=-1)

    def forward_loss(
        self,
        pixel_values: torch.Tensor,
        logits: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        r"""Mean of the `patch_errors` over the masked patches, in float32.

            loss = sum_l mask_l e_l / sum_l mask_l

        Zero where nothing is masked.

        Args:
            pixel_values: Images of shape `(batch_size, num_channels, height, width)` that fit the model.
            logits: Predicted patches of shape `(batch_size, num_patches, P)`, or `(batch_size, M, P)`.
            mask: 1 where a patch is masked, `(batch_size, num_patches)`.
            positions: Which M patches of each image are predicted, `(batch_size, M)`, all masked ones among them; all
                when left out.
        """
        errors = self.patch_errors(pixel_values, logits, positions)
        weights = mask if positions is None else mask.gather(1, positions)
        return (errors * weights).sum() / weights.sum().clamp(min=1)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.BoolTensor | None = None,
        noise: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        return_loss: bool = True,
        return_logits: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CrateMaeForPreTrainingOutput:
        r"""Mask patches, encode, and predict the pixels of every patch.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Images as [`CrateMaeImageProcessor`] prepares them.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_patches)`, *optional*):
                True where a patch is masked; images may differ in how many are. Wins over `noise`. All False
                reconstructs the whole image from itself.
            noise (`torch.FloatTensor` of shape `(batch_size, num_patches)`, *optional*):
                Decides the mask by `config.mask_ratio`, see `sample_mask`; drawn uniformly when left out.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate the positions, for images of another size than the model was made for.
            return_loss (`bool`, *optional*, defaults to `True`):
                Whether to compute the loss.
            return_logits (`bool`, *optional*, defaults to `True`):
                Whether to predict every patch. Without it the loss takes the masked patches alone, to the same value.

        Returns:
            [`CrateMaeForPreTrainingOutput`]

        Raises:
            ValueError: If channels, image size, mask or noise do not fit the model, or neither loss nor logits are
                asked for.

        Example:

        ```python
        >>> import torch
        >>> from crate_mae_hf import CrateMaeConfig, CrateMaeForPreTraining

        >>> model = CrateMaeForPreTraining(CrateMaeConfig.from_size("tiny", num_hidden_layers=2)).eval()
        >>> outputs = model(pixel_values=torch.zeros(1, 3, 224, 224))
        >>> int(outputs.mask.sum()), list(model.unpatchify(outputs.logits).shape)
        (147, [1, 3, 224, 224])
        ```
        """
        if not (return_loss or return_logits):
            raise ValueError("`return_loss` and `return_logits` are both False: there is nothing to compute.")
        if bool_masked_pos is None:
            rows, columns = self.patch_grid.grid_size(pixel_values)
            shape = (pixel_values.shape[0], rows * columns)
            if noise is None:
                noise = torch.rand(shape, device=pixel_values.device)
            elif noise.shape != shape:
                raise ValueError(
                    f"`noise` must have shape {shape}, one number per patch of {tuple(pixel_values.shape[2:])} images, "
                    f"got {tuple(noise.shape)}."
                )
            bool_masked_pos = self.sample_mask(noise)
        else:
            bool_masked_pos, noise = cast(torch.BoolTensor, to_bool_mask(bool_masked_pos)), None
        outputs: BaseModelOutputWithPooling = self.crate_mae(
            pixel_values, bool_masked_pos, interpolate_pos_encoding, **kwargs
        )
        mask = bool_masked_pos.float()
        logits, loss = None, None
        if return_logits:
            tokens = self.decoder(outputs.last_hidden_state, **kwargs)
            logits = self.predict(tokens[:, 1:])
            loss = self.forward_loss(pixel_values, logits, mask) if return_loss else None
        else:
            # The masked patches in front; images with fewer of them than others are filled up, at weight 0.
            num_masked = max(int(bool_masked_pos.sum(dim=1).max()), 1)
            positions = mask.argsort(dim=1, descending=True, stable=True)[:, :num_masked]
            tokens = self.decoder(outputs.last_hidden_state, positions + 1, **kwargs)  # behind the cls token
            loss = self.forward_loss(pixel_values, self.predict(tokens), mask, positions)
        # Without noise, visible and masked patches keep their order; ONNX has no stable sort that would do the same.
        ranking = mask * mask.shape[1] + torch.arange(mask.shape[1], device=mask.device) if noise is None else noise
        return CrateMaeForPreTrainingOutput(
            loss=loss,
            logits=logits,
            mask=mask,
            ids_restore=ranking.argsort(dim=1).argsort(dim=1),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class CrateMaeForMaskedImageModeling(CrateMaeForPreTraining):
    """The masked autoencoder as `AutoModelForMaskedImageModeling` has it: masks come from outside, images go back."""

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedImageModelingOutput:
        r"""Encode images, of which patches may be masked, and predict all pixels.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Images as [`CrateMaeImageProcessor`] prepares them.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_patches)`, *optional*):
                True or 1 where a patch is masked; nothing is when left out.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate the positions, for images of another size than the model was made for.

        Returns:
            [`MaskedImageModelingOutput`]: `reconstruction`, images of the shape of `pixel_values`, whose patches are
            normalised where `config.norm_pix_loss` says so; and `loss` where there is a mask, as
            [`CrateMaeForPreTraining`] has it.

        Raises:
            ValueError: If channels, image size or mask do not fit the model.
        """
        mask = bool_masked_pos
        if mask is None:
            rows, columns = self.patch_grid.grid_size(pixel_values)
            shape = (pixel_values.shape[0], rows * columns)  # `len` would export one batch size
            mask = cast(torch.BoolTensor, pixel_values.new_zeros(shape, dtype=torch.bool))
        outputs = super().forward(pixel_values, mask, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        reconstruction = self.unpatchify(outputs.logits, (pixel_values.shape[2], pixel_values.shape[3]))
        return MaskedImageModelingOutput(
            loss=None if bool_masked_pos is None else outputs.loss,
            reconstruction=reconstruction,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class CrateMaeForImageClassification(CrateClassifierMixin, CrateMaePreTrainedModel):
    """The encoder with a linear classifier on the mean of the patch tokens, or on the cls token (`config.pooling`)."""

    _keys_to_ignore_on_load_unexpected = [r"^decoder\."]

    def __init__(self, config: CrateMaeConfig):
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self.crate_mae = CrateMaeModel(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels) if self.num_labels else nn.Identity()
        self.post_init()


class CrateMaeBackbone(CrateBackboneMixin, CrateMaeModel):
    """The encoder as a backbone for detection and segmentation: feature maps of chosen layers."""


__all__ = [
    "CrateMaeBackbone",
    "CrateMaeForImageClassification",
    "CrateMaeForMaskedImageModeling",
    "CrateMaeForPreTraining",
    "CrateMaeForPreTrainingOutput",
    "CrateMaeModel",
    "CrateMaePreTrainedModel",
]
