"""CRATE-MAE, the white-box masked autoencoder, for Hugging Face Transformers.

Importing the package registers its classes with the Auto classes of Transformers.
"""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)
from transformers.utils import is_torchvision_available

from .configuration_crate_mae import CrateMaeConfig
from .image_processing_crate_mae import CrateMaeImageProcessor, CrateMaeImageProcessorPil
from .modeling_crate_mae import (
    CrateMaeBackbone,
    CrateMaeForImageClassification,
    CrateMaeForPreTraining,
    CrateMaeForPreTrainingOutput,
    CrateMaeModel,
    CrateMaePreTrainedModel,
)

AutoConfig.register(CrateMaeConfig.model_type, CrateMaeConfig, exist_ok=True)
AutoModel.register(CrateMaeConfig, CrateMaeModel, exist_ok=True)
AutoModelForPreTraining.register(CrateMaeConfig, CrateMaeForPreTraining, exist_ok=True)
AutoModelForImageClassification.register(CrateMaeConfig, CrateMaeForImageClassification, exist_ok=True)
AutoBackbone.register(CrateMaeConfig, CrateMaeBackbone, exist_ok=True)
AutoImageProcessor.register(
    CrateMaeConfig,
    image_processor_classes={
        "pil": CrateMaeImageProcessorPil,
        **({"torchvision": CrateMaeImageProcessor} if is_torchvision_available() else {}),
    },
    exist_ok=True,
)

# Whatever is saved takes the source files along: the folder then loads where this package is not installed.
CrateMaeConfig.register_for_auto_class()
CrateMaeModel.register_for_auto_class("AutoModel")
CrateMaeForPreTraining.register_for_auto_class("AutoModelForPreTraining")
CrateMaeForImageClassification.register_for_auto_class("AutoModelForImageClassification")
CrateMaeBackbone.register_for_auto_class("AutoBackbone")
CrateMaeImageProcessor.register_for_auto_class()
CrateMaeImageProcessorPil.register_for_auto_class()

__version__ = "0.1.0"

__all__ = [
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
