"""Configuration of CRATE-MAE."""

from typing import Any, cast

from huggingface_hub.dataclasses import strict

from .configuration_crate import CrateEncoderConfig, to_pair


@strict
class CrateMaeConfig(CrateEncoderConfig):
    r"""Configuration of [`CrateMaeModel`] and its heads; the defaults are CRATE-MAE-Base at 224 x 224.

    CRATE-MAE is described in "Masked Completion via Structured Diffusion with White-Box Transformers" (Pai, Buchanan,
    Wu, Yu, Ma; ICLR 2024). The decoder mirrors the encoder in every published size.

    Args:
        final_layer_norm_eps (`float`, *optional*, defaults to 1e-06):
            Epsilon of the layer norms behind the encoder and behind the decoder.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the cls and mask tokens at initialisation.
        mssa_init_scale (`float`, *optional*, defaults to 1.0):
            Factor of MSSA's output projections O at initialisation. 1 is the official code's, with which the
            compression step starts far larger than the tokens; 0.1 makes it small, as its derivation has it, and allows
            higher learning rates.
        decoder_hidden_size (`int`, *optional*):
            Width of the decoder. CRATE-MAE's decoder has the encoder's width, so only `hidden_size` is accepted, which
            has to be a multiple of 4 (sine and cosine of rows and columns).
        decoder_num_hidden_layers (`int`, *optional*):
            Number of decoder layers; `num_hidden_layers` when left out.
        decoder_num_attention_heads (`int`, *optional*):
            Number of subspaces of MSSA in each decoder layer; `num_attention_heads` when left out.
        mask_ratio (`float`, *optional*, defaults to 0.75):
            Share of the patches that [`CrateMaeForPreTraining`] masks, in [0, 1).
        norm_pix_loss (`bool`, *optional*, defaults to `False`):
            Whether the targets are normalised patch by patch.
        apply_layernorm (`bool`, *optional*, defaults to `True`):
            Whether [`CrateMaeBackbone`] applies the final layer norm to its feature maps.
        **kwargs:
            The encoder's, see [`CrateEncoderConfig`].

    Example:

    ```python
    >>> from crate_mae_hf import CrateMaeConfig, CrateMaeModel

    >>> model = CrateMaeModel(CrateMaeConfig.from_size("tiny"))
    >>> model.config.hidden_size
    384
    ```
    """

    model_type = "crate_mae"
    auto_classes = {
        "AutoConfig": "configuration_crate_mae.CrateMaeConfig",
        "AutoModel": "modeling_crate_mae.CrateMaeModel",
        "AutoModelForPreTraining": "modeling_crate_mae.CrateMaeForPreTraining",
        "AutoModelForMaskedImageModeling": "modeling_crate_mae.CrateMaeForMaskedImageModeling",
        "AutoModelForImageClassification": "modeling_crate_mae.CrateMaeForImageClassification",
        "AutoBackbone": "modeling_crate_mae.CrateMaeBackbone",
    }
    base_model_fsdp_plan = {**CrateEncoderConfig.base_model_fsdp_plan, "layernorm": "keep_full_weight"}

    ista_lambda: float | int = 0.5
    pooling: str = "mean"
    final_layer_norm_eps: float | int = 1e-6
    initializer_range: float | int = 0.02
    mssa_init_scale: float | int = 1.0
    decoder_hidden_size: int | None = None
    decoder_num_hidden_layers: int | None = None
    decoder_num_attention_heads: int | None = None
    mask_ratio: float | int = 0.75
    norm_pix_loss: bool = False
    apply_layernorm: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.decoder_hidden_size is None:
            self.decoder_hidden_size = self.hidden_size
        if self.decoder_num_hidden_layers is None:
            self.decoder_num_hidden_layers = self.num_hidden_layers
        if self.decoder_num_attention_heads is None:
            self.decoder_num_attention_heads = self.num_attention_heads
        super().__post_init__(**kwargs)

    @property
    def encoder_stride(self) -> int | list[int] | tuple[int, int]:
        """Pixels of an image along the side of a token: the patch size, which scripts for SimMIM ask for and set."""
        return self.patch_size

    @encoder_stride.setter
    def encoder_stride(self, value: int | list[int] | tuple[int, int]) -> None:
        if to_pair(value) != to_pair(self.patch_size):
            raise ValueError(f"`encoder_stride` must be the patch size, {self.patch_size}, got {value}.")

    def validate_architecture(self) -> None:
        """Check the rest; called by `strict`.

        Raises:
            ValueError: Naming the argument, its value and what it needs.
        """
        super().validate_architecture()
        if self.hidden_size % 4:
            raise ValueError(
                f"`hidden_size` must be a multiple of 4 for the sine-cosine positions, got {self.hidden_size}."
            )
        if self.decoder_hidden_size != self.hidden_size:
            raise ValueError(
                f"`decoder_hidden_size` must equal `hidden_size` ({self.hidden_size}), got {self.decoder_hidden_size}: "
                "CRATE-MAE's decoder works on the encoder's tokens directly."
            )
        self.check_heads("decoder_num_attention_heads")
        if cast(int, self.decoder_num_hidden_layers) < 1:
            raise ValueError(f"`decoder_num_hidden_layers` must be at least 1, got {self.decoder_num_hidden_layers}.")
        if self.norm_pix_loss and to_pair(self.patch_size) == (1, 1) and self.num_channels == 1:
            raise ValueError(
                "`norm_pix_loss` needs more than one value per patch: one pixel of one channel has no variance."
            )
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"`mask_ratio` must lie in [0, 1), got {self.mask_ratio}.")
        if not self.final_layer_norm_eps > 0:
            raise ValueError(f"`final_layer_norm_eps` must be positive, got {self.final_layer_norm_eps}.")
        for name in ("initializer_range", "mssa_init_scale"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")


__all__ = ["CrateMaeConfig"]
