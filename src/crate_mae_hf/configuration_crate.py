"""What all configurations share, and the configuration of supervised CRATE."""

import math
import os
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig
from typing_extensions import Self

# An `int` stands for a square; a pair is (height, width).
ImageSize = int | list[int] | tuple[int, int]


def to_pair(size: ImageSize) -> tuple[int, int]:
    """Return `size` as (height, width)."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def patch_grid_size(image_size: ImageSize, patch_size: ImageSize) -> tuple[int, int]:
    """Return the number of whole patches in an image as (rows, columns)."""
    (height, width), (patch_height, patch_width) = to_pair(image_size), to_pair(patch_size)
    return height // patch_height, width // patch_width


@strict
class CrateEncoderConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""What all configurations share: the encoder's layers, and the images that they take.

    There is no MLP, hence no `intermediate_size` and no `hidden_act`.

    Args:
        hidden_size (`int`, *optional*, defaults to 768):
            Width d of a token; a multiple of `num_attention_heads`.
        num_hidden_layers (`int`, *optional*, defaults to 12):
            Number of encoder layers.
        num_attention_heads (`int`, *optional*, defaults to 12):
            Number K of subspaces of MSSA in each encoder layer.
        image_size (`int` or pair, *optional*, defaults to 224):
            Image (height, width) in pixels; an `int` stands for a square.
        patch_size (`int` or pair, *optional*, defaults to 16):
            Patch (height, width) in pixels; must divide `image_size`.
        num_channels (`int`, *optional*, defaults to 3):
            Number of image channels.
        ista_step_size (`float`, *optional*, defaults to 0.1):
            Step size eta of the sparsification step.
        ista_lambda (`float`, *optional*, defaults to 0.1, and to 0.5 for CRATE-MAE):
            Sparsity weight lambda of the sparsification step. Checkpoints do not hold it.
        layer_norm_eps (`float`, *optional*, defaults to 1e-05):
            Epsilon of the layer norms inside the layers.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout of the attention probabilities.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout of the embeddings and of MSSA's output.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth of the last encoder layer's MSSA in training; it grows linearly from 0 in the first.
        pooling (`str`, *optional*, defaults to `"cls"`, and to `"mean"` for CRATE-MAE and split-brain):
            What stands for an image, in `pooler_output` and for the classifier: the `"mean"` of its patch tokens or the
            `"cls"` token.
        reshape_hidden_states (`bool`, *optional*, defaults to `True`):
            Whether the feature maps of a backbone are (batch_size, hidden_size, height, width) or stay
            (batch_size, num_patches + 1, hidden_size).
        out_features (`list[str]`, *optional*):
            Stages that a backbone returns, out of `"stem"`, `"stage1"`, ...; the last one when left out.
        out_indices (`list[int]`, *optional*):
            The same by number.
    """

    # Auto class -> where it finds its class in a saved folder.
    auto_classes: ClassVar[dict[str, str]] = {}
    # What the image processor of a new model has otherwise than by default.
    image_processor_settings: ClassVar[dict[str, Any]] = {}
    base_model_fsdp_plan = {"embeddings": "free_full_weight", "layers.*": "free_full_weight"}
    sizes = {
        "tiny": {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 12},
        "small": {"hidden_size": 576, "num_attention_heads": 12, "num_hidden_layers": 12},
        "base": {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12},
        "large": {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24},
    }

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    ista_step_size: float | int = 0.1
    ista_lambda: float | int = 0.1
    layer_norm_eps: float | int = 1e-5
    attention_probs_dropout_prob: float | int = 0.0
    hidden_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    pooling: str = "cls"
    reshape_hidden_states: bool = True
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # `strict` runs it again, but wraps what it raises in an error that is no ValueError.
        self.validate_architecture()
        self.stage_names = ["stem"] + [f"stage{i}" for i in range(1, self.num_hidden_layers + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> Self:
        """Return the configuration of a published size.

        Args:
            size: `"tiny"`, `"small"`, `"base"` or `"large"`.
            **overrides: Any other argument of the configuration, or one that replaces the size's own.

        Raises:
            ValueError: If there is no such size.
        """
        if size not in cls.sizes:
            raise ValueError(f"`size` must be one of {', '.join(cls.sizes)}, got {size!r}.")
        return cls(**{**cls.sizes[size], **overrides})

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save the configuration as Transformers does, with every class in its `auto_map`.

        Transformers itself adds only the class that is saved: a pre-training checkpoint would not load as a classifier
        where this package is not installed. Entries that point into another repository are replaced, so that the folder
        stands on its own.
        """
        auto_map = getattr(self, "auto_map", None) or {}
        self.auto_map = {**self.auto_classes, **{name: value for name, value in auto_map.items() if "--" not in value}}
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a configuration as Transformers does, and check it with the changes in `kwargs`.

        Transformers itself would notice a value that is out of its range only when the model is saved.
        """
        loaded = super().from_dict(config_dict, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).validate_architecture()  # with what `kwargs` left over
        return loaded

    @property
    def grid_size(self) -> tuple[int, int]:
        """Number of patches of an `image_size` image as (rows, columns)."""
        return patch_grid_size(self.image_size, self.patch_size)

    def validate_architecture(self) -> None:
        """Check what types alone cannot; called by `strict`.

        Raises:
            ValueError: Naming the argument, its value and what it needs.
        """
        super().validate_architecture()
        for name in type(self).__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"`{name}` must be finite, got {value}.")
        for name in ("hidden_size", "num_hidden_layers", "num_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        self.check_heads("num_attention_heads")
        for name in ("image_size", "patch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) and len(value) != 2:
                raise ValueError(f"`{name}` must be an integer or a (height, width) pair, got {value}.")
            if min(to_pair(value)) < 1:
                raise ValueError(f"`{name}` must be positive, got {value}.")
        for side, length, patch in zip(
            ("height", "width"), to_pair(self.image_size), to_pair(self.patch_size), strict=True
        ):
            if length % patch:
                raise ValueError(
                    f"`image_size` must be divisible by `patch_size`, got an image {side} of {length} "
                    f"and a patch {side} of {patch}."
                )
        for name in ("attention_probs_dropout_prob", "hidden_dropout_prob", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must lie in [0, 1), got {getattr(self, name)}.")
        for name in ("ista_step_size", "layer_norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        if not self.ista_lambda >= 0:
            raise ValueError(f"`ista_lambda` must not be negative, got {self.ista_lambda}.")
        if self.pooling not in ("mean", "cls"):
            raise ValueError(f'`pooling` must be "mean" or "cls", got {self.pooling!r}.')

    def check_heads(self, name: str) -> None:
        num_heads = getattr(self, name)
        if num_heads < 1:
            raise ValueError(f"`{name}` must be at least 1, got {num_heads}.")
        if self.hidden_size % num_heads:
            raise ValueError(f"`{name}` must divide `hidden_size` ({self.hidden_size}), got {num_heads}.")


@strict
class CrateConfig(CrateEncoderConfig):
    r"""Configuration of [`CrateModel`] and its heads; the defaults are CRATE-Base at 224 x 224.

    CRATE is described in "White-Box Transformers via Sparse Rate Reduction" (Yu, Buchanan, Pai, Chu, Wu, Tong,
    Haeffele, Ma; NeurIPS 2023). Its layers are those of CRATE-MAE; positions are learned, and there is no norm behind
    the last layer, only in the classifier.

    Args:
        **kwargs:
            See [`CrateEncoderConfig`].

    Example:

    ```python
    >>> from crate_mae_hf import CrateConfig, CrateForImageClassification

    >>> model = CrateForImageClassification(CrateConfig.from_size("tiny", num_labels=1000))
    >>> model.num_parameters()
    6090856
    ```
    """

    model_type = "crate"
    auto_classes = {
        "AutoConfig": "configuration_crate.CrateConfig",
        "AutoModel": "modeling_crate.CrateModel",
        "AutoModelForImageClassification": "modeling_crate.CrateForImageClassification",
        "AutoBackbone": "modeling_crate.CrateBackbone",
    }

    apply_layernorm = False  # to feature maps: there is none


__all__ = ["CrateConfig", "CrateEncoderConfig"]
