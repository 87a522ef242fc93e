"""Configurations and image processors, as the arguments of a script name them."""

from collections.abc import Sequence
from typing import Any, TypeVar

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from ..adapters import fill_vit_mae, freeze_positions
from ..cli import parse_overrides
from ..configuration_crate_mae import CrateMaeConfig
from ..data.augmentation import AugmentationArguments
from ..image_processing_crate_mae import CrateMaeImageProcessor
from ..loading import load, load_model
from ..modeling_crate_mae import CrateMaeForPreTraining
from .arguments import ModelArguments, SizedModelArguments

Autoencoder = TypeVar("Autoencoder", bound=PreTrainedModel)

# Autoencoders that objectives train, by their `model_type`.
AUTOENCODERS: dict[str, Any] = {"crate_mae": CrateMaeForPreTraining, "vit_mae": ViTMAEForPreTraining}


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


def load_config(args: ModelArguments, **changes: Any) -> Any:
    """Return the configuration of the checkpoint or the configuration that is named, with changes, checked.

    Raises:
        ValueError: If it cannot be loaded, or a change does not fit it.
    """
    argument = "model_name_or_path" if args.config_name is None else "config_name"
    config = load(AutoConfig, str(args.config_source), argument, **args.hub_access(), **changes)
    if hasattr(config, "validate"):
        config.validate()  # Transformers sets changes without looking at them together
    if args.model_name_or_path is None:
        config.name_or_path = ""  # the model's weights do not come from there
    return config


def new_config(size: str, config_class: Any, changes: dict[str, Any]) -> Any:
    """Return the configuration of a published size of CRATE-MAE, or of a ViTMAE whose encoder has that shape."""
    if config_class is not ViTMAEConfig:
        return config_class.from_size(size, **changes)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    shape = {name: CrateMaeConfig.sizes[size][name] for name in names}
    return ViTMAEConfig(**{**shape, "intermediate_size": 4 * shape["hidden_size"], **changes})


def build_autoencoder(
    args: SizedModelArguments,
    model_class: type[Autoencoder],
    settings: Sequence[str] = ("mask_ratio", "norm_pix_loss"),
) -> Autoencoder:
    """Return the autoencoder of a checkpoint, of a configuration or of a size, with the changes asked for.

    Args:
        args: Arguments that say which.
        model_class: [`CrateMaeForPreTraining`], [`CrateSplitBrainForPreTraining`], or `ViTMAEForPreTraining` of
            Transformers.
        settings: See `config_changes`.

    Raises:
        ValueError: If it cannot be loaded, is another model, or a change does not fit it.
    """
    config_class: Any = model_class.config_class
    changes = config_changes(args, config_class, settings)
    if args.config_source is None:
        config = new_config(args.model_size, config_class, changes)
    else:
        config = load_config(args, **changes)
    if not isinstance(config, config_class):
        raise ValueError(
            f"{args.config_source} is a model of type {config.model_type}; to be trained is one of type "
            f"{config_class.model_type}."
        )
    if args.model_name_or_path is None:
        model = model_class(config)
        fill_vit_mae(model)
    else:
        model = load_model(model_class, args.model_name_or_path, config=config, **args.hub_access())
    freeze_positions(model)
    return model


def build_image_processor(args: ModelArguments, config: Any, augmentation_args: AugmentationArguments) -> Any:
    """Return the image processor that is named, else the checkpoint's, else a new one for a model's images.

    Args:
        args: Arguments that name the image processor or the checkpoint.
        config: Configuration of the model, for a new image processor.
        augmentation_args: Arguments with mean and standard deviation of a new image processor.

    Raises:
        ValueError: If a new one is needed, and the configuration has no image size.
    """
    if args.image_processor_name is not None:  # the revision is the checkpoint's
        hub = {**args.hub_access(), "revision": "main"}
        return load(AutoImageProcessor, args.image_processor_name, "image_processor_name", **hub)
    if args.model_name_or_path is not None:
        return load(AutoImageProcessor, args.model_name_or_path, **args.hub_access())
    if not hasattr(config, "image_size"):
        raise ValueError(f"`image_processor_name` is needed: a new {config.model_type} has no image size of its own.")
    return CrateMaeImageProcessor.from_config(config, augmentation_args.image_mean, augmentation_args.image_std)
