"""Configuration of supervised CRATE."""

from huggingface_hub.dataclasses import strict

from .configuration_crate_mae import CrateEncoderConfig


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

    ista_lambda: float | int = 0.1
    pooling: str = "cls"


__all__ = ["CrateConfig"]
