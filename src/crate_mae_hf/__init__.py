"""White-box vision models for Transformers: CRATE-MAE, CRATE, CRATE-alpha, and a split-brain autoencoder.

Importing the package registers its classes with the Auto classes of Transformers.
"""

import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoVideoProcessor
from transformers.utils import is_torchvision_available

from . import pretrained
from .configuration_crate import CrateConfig
from .configuration_crate_alpha import CrateAlphaConfig
from .configuration_crate_mae import CrateMaeConfig
from .configuration_crate_split_brain import CrateSplitBrainConfig
from .image_processing_crate_mae import CrateMaeImageProcessor, CrateMaeImageProcessorPil
from .modeling_crate import CrateBackbone, CrateForImageClassification, CrateModel, CratePreTrainedModel
from .modeling_crate_alpha import (
    CrateAlphaBackbone,
    CrateAlphaForImageClassification,
    CrateAlphaModel,
    CrateAlphaPreTrainedModel,
)
from .modeling_crate_mae import (
    CrateMaeBackbone,
    CrateMaeForImageClassification,
    CrateMaeForMaskedImageModeling,
    CrateMaeForPreTraining,
    CrateMaeForPreTrainingOutput,
    CrateMaeModel,
    CrateMaePreTrainedModel,
)
from .modeling_crate_split_brain import (
    CrateSplitBrainBackbone,
    CrateSplitBrainForImageClassification,
    CrateSplitBrainForPreTraining,
    CrateSplitBrainForPreTrainingOutput,
    CrateSplitBrainModel,
    CrateSplitBrainPreTrainedModel,
)
from .registry import MODELS

for row in MODELS.values():
    config_class = row.config_class
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
    for auto_class, model_class in row.model_classes.items():
        getattr(transformers, auto_class).register(config_class, model_class, exist_ok=True)
        model_class.register_for_auto_class(auto_class)
CrateMaeImageProcessor.register_for_auto_class()
CrateMaeImageProcessorPil.register_for_auto_class()

__version__ = "0.1.0"

__all__ = [
    "CrateAlphaBackbone",
    "CrateAlphaConfig",
    "CrateAlphaForImageClassification",
    "CrateAlphaModel",
    "CrateAlphaPreTrainedModel",
    "CrateBackbone",
    "CrateConfig",
    "CrateForImageClassification",
    "CrateModel",
    "CratePreTrainedModel",
    "CrateMaeBackbone",
    "CrateMaeConfig",
    "CrateMaeForImageClassification",
    "CrateMaeForMaskedImageModeling",
    "CrateMaeForPreTraining",
    "CrateMaeForPreTrainingOutput",
    "CrateMaeImageProcessor",
    "CrateMaeImageProcessorPil",
    "CrateMaeModel",
    "CrateMaePreTrainedModel",
    "CrateSplitBrainBackbone",
    "CrateSplitBrainConfig",
    "CrateSplitBrainForImageClassification",
    "CrateSplitBrainForPreTraining",
    "CrateSplitBrainForPreTrainingOutput",
    "CrateSplitBrainModel",
    "CrateSplitBrainPreTrainedModel",
    "pretrained",
]
