"""Configuration of the split-brain autoencoder on CRATE's layers."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_crate import CrateEncoderConfig, to_pair


@strict
class CrateSplitBrainConfig(CrateEncoderConfig):
    r"""Configuration of [`CrateSplitBrainModel`] and its heads; the defaults are of Base size at 224 x 224.

    Split-brain autoencoders are described in "Split-Brain Autoencoders: Unsupervised Learning by Cross-Channel
    Prediction" (Zhang, Isola, Efros; CVPR 2017). Here each of the two towers is an encoder of CRATE-MAE's layers.

    Args:
        hidden_size (`int`, *optional*, defaults to 768):
            Width d of a token of both towers side by side; each has half of it, which has to be a multiple of 4 (sine
            and cosine of rows and columns).
        num_attention_heads (`int`, *optional*, defaults to 12):
            Number K of subspaces of MSSA in each layer of both towers together; an even number.
        num_channels (`int`, *optional*, defaults to 3):
            Number of image channels, always 3: red, green and blue.
        prediction (`str`, *optional*, defaults to `"classification"`):
            How each tower predicts what the other sees: by `"classification"` into bins of colour and of lightness, or
            by `"regression"` of their values.
        target_grid_size (`int`, *optional*, defaults to 1):
            Number g of targets along each side of a patch, which it must divide: each patch predicts the mean colour,
            or lightness, of g x g parts of itself.
        final_layer_norm_eps (`float`, *optional*, defaults to 1e-06):
            Epsilon of the layer norms behind the towers.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the cls tokens at initialisation.
        mssa_init_scale (`float`, *optional*, defaults to 1.0):
            Factor of MSSA's output projections O at initialisation, see [`CrateMaeConfig`].
        apply_layernorm (`bool`, *optional*, defaults to `True`):
            Whether [`CrateSplitBrainBackbone`] applies the final layer norms to its feature maps.
        **kwargs:
            The encoders', see [`CrateEncoderConfig`].

    Example:

    ```python
    >>> from crate_mae_hf import CrateSplitBrainConfig, CrateSplitBrainModel

    >>> model = CrateSplitBrainModel(CrateSplitBrainConfig.from_size("tiny"))
    >>> model.config.hidden_size
    384
    ```
    """

    model_type = "crate_split_brain"
    auto_classes = {
        "AutoConfig": "configuration_crate_split_brain.CrateSplitBrainConfig",
        "AutoModel": "modeling_crate_split_brain.CrateSplitBrainModel",
        "AutoModelForPreTraining": "modeling_crate_split_brain.CrateSplitBrainForPreTraining",
        "AutoModelForImageClassification": "modeling_crate_split_brain.CrateSplitBrainForImageClassification",
        "AutoBackbone": "modeling_crate_split_brain.CrateSplitBrainBackbone",
    }
    base_model_fsdp_plan = {**CrateEncoderConfig.base_model_fsdp_plan, "layernorm": "keep_full_weight"}
    # The model turns red, green and blue in [0, 1] into lightness and colour itself.
    image_processor_settings: ClassVar[dict[str, Any]] = {
        "do_normalize": False,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
        "needs_color": True,
    }

    ista_lambda: float | int = 0.5
    pooling: str = "mean"
    prediction: str = "classification"
    target_grid_size: int = 1
    final_layer_norm_eps: float | int = 1e-6
    initializer_range: float | int = 0.02
    mssa_init_scale: float | int = 1.0
    apply_layernorm: bool = True

    def validate_architecture(self) -> None:
        """Check the rest; called by `strict`.

        Raises:
            ValueError: Naming the argument, its value and what it needs.
        """
        super().validate_architecture()
        if self.num_channels != 3:
            raise ValueError(f"`num_channels` must be 3, red, green and blue, got {self.num_channels}.")
        if self.hidden_size % 8:
            raise ValueError(
                "`hidden_size` must be a multiple of 8, for the sine-cosine positions of two towers, got "
                f"{self.hidden_size}."
            )
        if self.num_attention_heads % 2:
            raise ValueError(f"`num_attention_heads` must be even, for two towers, got {self.num_attention_heads}.")
        if self.prediction not in ("classification", "regression"):
            raise ValueError(f'`prediction` must be "classification" or "regression", got {self.prediction!r}.')
        patch_size = to_pair(self.patch_size)
        if self.target_grid_size < 1 or any(side % self.target_grid_size for side in patch_size):
            raise ValueError(
                f"`target_grid_size` must divide the patch size {patch_size}, got {self.target_grid_size}."
            )
        if not self.final_layer_norm_eps > 0:
            raise ValueError(f"`final_layer_norm_eps` must be positive, got {self.final_layer_norm_eps}.")
        for name in ("initializer_range", "mssa_init_scale"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")


__all__ = ["CrateSplitBrainConfig"]
