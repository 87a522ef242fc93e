"""CRATE-MAE, the white-box masked autoencoder, and CRATE, its supervised parent, for Hugging Face Transformers.

Importing the package registers its classes with the Auto classes of Transformers.
"""

from typing import Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoVideoProcessor,
    PreTrainedModel,
)
from transformers.utils import is_torchvision_available

from .configuration_crate import CrateConfig, CrateEncoderConfig
from .configuration_crate_mae import CrateMaeConfig
from .image_processing_crate_mae import CrateMaeImageProcessor, CrateMaeImageProcessorPil
from .modeling_crate import CrateBackbone, CrateForImageClassification, CrateModel, CratePreTrainedModel
from .modeling_crate_mae import (
    CrateMaeBackbone,
    CrateMaeForImageClassification,
    CrateMaeForPreTraining,
    CrateMaeForPreTrainingOutput,
    CrateMaeModel,
    CrateMaePreTrainedModel,
)

_MODELS: dict[type[CrateEncoderConfig], dict[Any, type[PreTrainedModel]]] = {
    CrateMaeConfig: {
        AutoModel: CrateMaeModel,
        AutoModelForPreTraining: CrateMaeForPreTraining,
        AutoModelForImageClassification: CrateMaeForImageClassification,
        AutoBackbone: CrateMaeBackbone,
    },
    CrateConfig: {
        AutoModel: CrateModel,
        AutoModelForImageClassification: CrateForImageClassification,
        AutoBackbone: CrateBackbone,
    },
}
for config_class, model_classes in _MODELS.items():
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoImageProcessor.register(
        config_class,
        image_processor_classes={
            "pil": CrateMaeImageProcessorPil,
            **({"torchvision": CrateMaeImageProcessor} if is_torchvision_available() else {}),
        },
        exist_ok=True,
    )
    if is_torchvision_available():
        # There is none. Otherwise pipelines guess one from the image processor's name, and ask whether to run its code.
        AutoVideoProcessor.register(config_class, None, exist_ok=True)
    # Whatever is saved takes the source files along: the folder then loads where this package is not installed.
    config_class.register_for_auto_class()
    for auto_class, model_class in model_classes.items():
        auto_class.register(config_class, model_class, exist_ok=True)
        model_class.register_for_auto_class(auto_class.__name__)
CrateMaeImageProcessor.register_for_auto_class()
CrateMaeImageProcessorPil.register_for_auto_class()

__version__ = "0.1.0"

__all__ = [
    "CrateBackbone",
    "CrateConfig",
    "CrateForImageClassification",
    "CrateModel",
    "CratePreTrainedModel",
    "CrateMaeBackbone",
    "CrateMaeConfig",
    "CrateMaeForImageClassification",
    "CrateMaeForPreTraining",
    "CrateMaeForPreTrainingOutput",
    "CrateMaeImageProcessor",
    "CrateMaeImageProcessorPil",
    "CrateMaeModel",
    "CrateMaePreTrainedModel",
]
