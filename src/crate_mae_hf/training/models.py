"""Configurations and image processors, as the arguments of a script name them."""

from collections.abc import Sequence
from typing import Any

from transformers import AutoImageProcessor, PreTrainedConfig

from ..cli import parse_overrides
from ..data.augmentation import AugmentationArguments
from ..image_processing_crate_mae import CrateMaeImageProcessor
from .arguments import ModelArguments


def config_changes(
    args: ModelArguments, config_class: type[PreTrainedConfig], settings: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the changes to a configuration that the arguments ask for.

    Args:
        args: Arguments with `config_overrides` and with the names in `settings`.
        config_class: Class of the configuration to change.
        settings: Names of arguments that set what the configuration calls by the same name, where they are given.

    Raises:
        ValueError: If the configuration does not have what is set.
    """
    changes = parse_overrides(args.config_overrides, config_class)
    for name in settings:
        if getattr(args, name) is not None:
            if name not in config_class.__dataclass_fields__:
                raise ValueError(f"`{name}`: a model of type {config_class.model_type} has no such setting.")
            changes[name] = getattr(args, name)
    return changes


def build_image_processor(args: ModelArguments, config: Any, augmentation_args: AugmentationArguments) -> Any:
    """Return the image processor that is named, else the checkpoint's, else a new one for a model's images.

    Args:
        args: Arguments that name the image processor or the checkpoint.
        config: Configuration of the model, for a new image processor.
        augmentation_args: Arguments with mean and standard deviation of a new image processor.

    Raises:
        ValueError: If a new one is needed, and the configuration has no image size.
    """
    source = args.image_processor_name or args.model_name_or_path
    if source is not None:
        return AutoImageProcessor.from_pretrained(source, **args.hub_access())
    if not hasattr(config, "image_size"):
        raise ValueError(f"`image_processor_name` is needed: a new {config.model_type} has no image size of its own.")
    return CrateMaeImageProcessor.from_config(config, augmentation_args.image_mean, augmentation_args.image_std)
