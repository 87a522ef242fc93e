"""Configuration of CRATE-alpha."""

from huggingface_hub.dataclasses import strict

from .configuration_crate import CrateEncoderConfig


@strict
class CrateAlphaConfig(CrateEncoderConfig):
    r"""Configuration of [`CrateAlphaModel`] and its heads; the defaults are CRATE-alpha-B/16 at 224 x 224.

    CRATE-alpha is described in "Scaling White-Box Transformers for Vision" (Yang, Li, Pai, Zhou, Ma, Yu, Xie; NeurIPS
    2024). Its sizes have names of their own: here `"tiny"` is 192 wide, and there is a `"huge"`.

    Args:
        overcomplete_ratio (`int`, *optional*, defaults to 4):
            Number of atoms of the dictionaries, in widths of a token.
        decoupled_dictionary (`bool`, *optional*, defaults to `True`):
            Whether the code goes back to a token by a dictionary of its own; otherwise by the one that it is made with.
        ista_residual (`bool`, *optional*, defaults to `True`):
            Whether there is a skip connection around the sparsification step. Without it, with or without
            `decoupled_dictionary`, the model is one of the steps from CRATE to CRATE-alpha that the paper compares.
        layer_norm_eps (`float`, *optional*, defaults to 1e-06):
            Epsilon of the layer norms inside the layers.
        final_layer_norm_eps (`float`, *optional*, defaults to 1e-06):
            Epsilon of the classifier's layer norm, as the published weights were trained; the authors' PyTorch code has
            1e-5 here.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth of both branches of the last layer in training; it grows linearly from 0 in the first.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout of the embeddings and of both branches.
        **kwargs:
            See [`CrateEncoderConfig`].

    Example:

    ```python
    >>> from crate_mae_hf import CrateAlphaConfig, CrateAlphaForImageClassification

    >>> model = CrateAlphaForImageClassification(CrateAlphaConfig.from_size("tiny", num_labels=1000))
    >>> model.num_parameters()
    4811944
    ```
    """

    model_type = "crate_alpha"
    auto_classes = {
        "AutoConfig": "configuration_crate_alpha.CrateAlphaConfig",
        "AutoModel": "modeling_crate_alpha.CrateAlphaModel",
        "AutoModelForImageClassification": "modeling_crate_alpha.CrateAlphaForImageClassification",
        "AutoBackbone": "modeling_crate_alpha.CrateAlphaBackbone",
    }
    sizes = {
        "tiny": {"hidden_size": 192, "num_attention_heads": 3, "num_hidden_layers": 12},
        "small": {"hidden_size": 576, "num_attention_heads": 12, "num_hidden_layers": 12},
        "base": {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12},
        "large": {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24},
        "huge": {"hidden_size": 1280, "num_attention_heads": 16, "num_hidden_layers": 32},
    }

    overcomplete_ratio: int = 4
    decoupled_dictionary: bool = True
    ista_residual: bool = True
    layer_norm_eps: float | int = 1e-6
    final_layer_norm_eps: float | int = 1e-6

    apply_layernorm = False  # to feature maps: there is none

    def validate_architecture(self) -> None:
        """Check the rest; called by `strict`.

        Raises:
            ValueError: Naming the argument, its value and what it needs.
        """
        super().validate_architecture()
        if self.overcomplete_ratio < 1:
            raise ValueError(f"`overcomplete_ratio` must be at least 1, got {self.overcomplete_ratio}.")
        if not self.final_layer_norm_eps > 0:
            raise ValueError(f"`final_layer_norm_eps` must be positive, got {self.final_layer_norm_eps}.")


__all__ = ["CrateAlphaConfig"]
