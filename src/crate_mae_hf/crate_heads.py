"""What models on these layers share: loading and saving, the encoder, the image classifier, and the backbone."""

import copy
from typing import Any, cast

import torch
from torch import nn
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_crate import CrateEncoderConfig, ImageSize, to_pair
from .crate_layers import CrateLayer, CrateMSSA
from .crate_patches import interpolate_position_table

# Weights that had another name: pattern in an older checkpoint -> the name now.
FORMER_NAMES = {r"mssa\.out_proj": "mssa.o_proj"}
# What says where on the Hub a configuration is.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def copy_config(config: CrateEncoderConfig, **changes: Any) -> CrateEncoderConfig:
    """Return a copy of a configuration with changes, checked."""
    changed = copy.deepcopy(config)
    changed.update(changes)
    changed.validate_architecture()
    return changed


def pool(hidden_states: torch.Tensor, pooling: str) -> torch.Tensor:
    """Return what stands for each image, `(batch_size, d)`: its cls token, or the mean of its patch tokens."""
    return hidden_states[:, 0] if pooling == "cls" else hidden_states[:, 1:].mean(dim=1)


class CrateEncoderPreTrainedModel(PreTrainedModel):
    """What Transformers has to know of any model with these encoder layers."""

    config: CrateEncoderConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": CrateLayer, "attentions": CrateMSSA}
    _input_embed_layer = "patch_embeddings"

    @classmethod
    def from_pretrained(
        cls, *args: Any, key_mapping: dict[str, str] | None = None, image_size: ImageSize | None = None, **kwargs: Any
    ) -> Any:
        """Load a model as Transformers does, also for another image size and where weights have former names.

        Args:
            *args: See Transformers.
            key_mapping: See Transformers.
            image_size: Image (height, width) in pixels, an `int` stands for a square; that of the checkpoint when left
                out. See `set_image_size`.
            **kwargs: See Transformers. A `config` of another image size is as good as `image_size`.
        """
        config = kwargs.get("config")
        if image_size is None and isinstance(config, CrateEncoderConfig):
            image_size = config.image_size
        if image_size is not None and args and args[0] is not None:
            hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
            saved = cast(Any, cls.config_class).from_pretrained(args[0], **hub)
            if isinstance(config, CrateEncoderConfig):
                kwargs["config"] = copy_config(config, image_size=saved.image_size)
        loaded = super().from_pretrained(*args, key_mapping={**FORMER_NAMES, **(key_mapping or {})}, **kwargs)
        model: Any = loaded[0] if isinstance(loaded, tuple) else loaded  # a pair with `output_loading_info=True`
        if conversions := getattr(model, "_weight_conversions", None):  # which saving would reverse
            model._weight_conversions = [each for each in conversions if each.source_patterns[0] not in FORMER_NAMES]
        if image_size is not None and to_pair(image_size) != to_pair(model.config.image_size):
            model.set_image_size(image_size)
        return loaded

    def set_image_size(self, image_size: ImageSize) -> None:
        """Make this a model for images of another size, by interpolating its positions.

        `interpolate_pos_encoding=True` does the same for a single call; this is for training on, and for saving.

        Args:
            image_size: Image (height, width) in pixels; an `int` stands for a square.

        Raises:
            ValueError: If the patch size does not divide it.
        """
        grid_size = copy_config(self.config, image_size=image_size).grid_size
        embeddings: Any = self.base_model.embeddings
        positions = embeddings.position_embeddings
        with torch.no_grad():
            table = interpolate_position_table(positions, embeddings.grid_size, grid_size)
        is_learned = isinstance(positions, nn.Parameter)
        embeddings.position_embeddings = nn.Parameter(table, positions.requires_grad) if is_learned else table
        embeddings.grid_size = grid_size
        embeddings.patch_embeddings.image_size = to_pair(image_size)
        self.config.image_size = image_size


class CrateEncoderMixin:
    """The forward of an encoder: embeddings and layers, and no norm behind the last one."""

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self: Any,
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
            first, and `pooler_output` `(batch_size, hidden_size)`, see `config.pooling`.

        Raises:
            ValueError: If channels or image size do not fit the model.
        """
        hidden_states = self.embeddings(pixel_values, interpolate_pos_encoding)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        pooled = pool(hidden_states, self.config.pooling)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)


class CrateClassifierMixin:
    """The forward of an image classifier: `classifier` on the mean of the patch tokens, or on the cls token."""

    @can_return_tuple
    def forward(
        self: Any,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        r"""Classify images; nothing is masked.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Images as [`CrateMaeImageProcessor`] prepares them.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Classes in `[0, config.num_labels - 1]`; with one label the loss is a regression loss, and with
                `problem_type="multi_label_classification"` labels are `(batch_size, num_labels)`.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate the positions, for images of another size than the model was made for.

        Returns:
            [`ImageClassifierOutput`]: `logits` of shape `(batch_size, num_labels)`, and `loss` where labels are given.

        Raises:
            ValueError: If channels or image size do not fit the model.
        """
        outputs: BaseModelOutputWithPooling = self.base_model(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )
        logits = self.classifier(outputs.pooler_output)
        loss = self.loss_function(labels, logits, self.config, **kwargs) if labels is not None else None
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class CrateBackboneMixin(BackboneMixin):
    """An encoder as a backbone for detection and segmentation: feature maps of chosen layers."""

    def __init__(self, config: CrateEncoderConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)

    @can_return_tuple
    @filter_output_hidden_states
    def forward(
        self: Any,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BackboneOutput:
        r"""Return the feature maps of the stages in `config.out_features`; nothing is masked.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Images of any size, otherwise as [`CrateMaeImageProcessor`] prepares them. What does not fill a patch,
                at the bottom and on the right, is left out.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `True`):
                Whether to interpolate the positions, for images of another size than the model was made for.

        Returns:
            [`BackboneOutput`]: `feature_maps`, one per stage, `(batch_size, hidden_size, rows, columns)`.

        Raises:
            ValueError: If the channels do not fit the model, or the images are smaller than a patch.
        """
        patches = self.embeddings.patch_embeddings
        grid_size = rows, columns = patches.grid_size(pixel_values)
        if interpolate_pos_encoding:
            patch_height, patch_width = patches.patch_size
            if min(grid_size) < 1:
                raise ValueError(
                    f"`pixel_values` must have the height and width of a patch, {patches.patch_size}, or more, got "
                    f"{tuple(pixel_values.shape[2:])}."
                )
            pixel_values = pixel_values[..., : rows * patch_height, : columns * patch_width]
        # The encoder's forward, which comes behind the mixin.
        outputs = cast(Any, super(BackboneMixin, self)).forward(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )
        feature_maps = []
        for stage, hidden_states in zip(self.stage_names, outputs.hidden_states, strict=True):
            if stage in self.out_features:
                if self.config.apply_layernorm:
                    hidden_states = self.layernorm(hidden_states)
                if self.config.reshape_hidden_states:
                    hidden_states = hidden_states[:, 1:].transpose(1, 2).unflatten(2, grid_size).contiguous()
                feature_maps.append(hidden_states)
        return BackboneOutput(
            feature_maps=tuple(feature_maps), hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
