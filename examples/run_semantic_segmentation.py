#!/usr/bin/env python
# /// script
# dependencies = ["crate-mae-hf[train,figures]"]
# ///
"""Fine-tune a model for semantic segmentation: UperNet on one of our encoders, or any model that segments already.

    python examples/data/garment_scenes.py
    python examples/run_semantic_segmentation.py examples/recipes/segmentation_garment_scenes.yaml
    python examples/run_semantic_segmentation.py --model_name_or_path outputs/mae --train_dir IMAGES \
        --train_mask_dir MASKS --image_size 224 224 --output_dir outputs/segmentation --do_train --do_eval

Arguments come as flags, or as a JSON or YAML file followed by flags that win over it. A mask has the class of each
pixel, 255 where there is none; in folders it has the name of its image. Beside the model the output folder gets
`segmentation.png`, which docs/dense.md explains.
"""

from dataclasses import dataclass, field
from typing import Any

from transformers import (
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    set_seed,
)
from transformers.utils import logging

from crate_mae_hf import CrateMaeConfig
from crate_mae_hf.cli import clear_errors, parse_arguments
from crate_mae_hf.configuration_crate import CrateEncoderConfig, to_pair
from crate_mae_hf.data.augmentation import AugmentationArguments, build_segmentation_transform, output_size
from crate_mae_hf.data.segmentation import SegmentationDataArguments, SegmentationDataset, load_segmented_datasets
from crate_mae_hf.evaluation.segmentation import build_segmentation_metrics, count_pixels
from crate_mae_hf.loading import load_model
from crate_mae_hf.registry import MODELS
from crate_mae_hf.training.arguments import ModelArguments, ScriptTrainingArguments
from crate_mae_hf.training.models import build_image_processor, config_changes, load_config
from crate_mae_hf.training.output_folder import open_run
from crate_mae_hf.training.run import run_trainer
from crate_mae_hf.training.segmentation_pictures import SegmentationPictures
from crate_mae_hf.training.trainer import SeededTrainer


@dataclass
class SegmentationModelArguments(ModelArguments):
    """Which model to train: an encoder that gets a head, or one that segments already."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A pre-trained model of ours, whose encoder is taken, or any that segments already."},
    )
    image_size: list[int] | None = field(
        default=None,
        metadata={
            "help": "Height and width that images and masks are resized to; the image processor's when left out."
        },
    )
    head_hidden_size: int = field(default=512, metadata={"help": "Width of a new UperNet head."})
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Start weights anew that have another shape, such as those of other classes."}
    )

    def __post_init__(self) -> None:
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise ValueError(f"`image_size` must be a height and a width, got {self.image_size}.")
        if self.head_hidden_size < 1:
            raise ValueError(f"`head_hidden_size` must be positive, got {self.head_hidden_size}.")


class SegmentationTrainer(SeededTrainer):
    """Trainer of models whose loss is the mean over the pixels of a batch: it divides it by the accumulation steps."""

    loss_is_scaled_for_ga = False


def build_config(args: SegmentationModelArguments) -> Any:
    """Return the configuration of the encoder, or that of a model that segments already."""
    if args.config_source is None:
        return CrateMaeConfig.from_size("base", **config_changes(args, CrateMaeConfig))
    return load_config(args, **config_changes(args, type(load_config(args))))


def build_processor(args: SegmentationModelArguments, config: Any, augmentation_args: AugmentationArguments) -> Any:
    """Return an image processor that resizes whole images, as masks are, to the size asked for."""
    processor = build_image_processor(args, config, augmentation_args)
    height, width = args.image_size or output_size(processor)
    changes = {"size": {"height": height, "width": width}, "do_center_crop": False}
    return type(processor).from_dict({**processor.to_dict(), **changes})


def build_model(
    args: SegmentationModelArguments, config: Any, image_size: tuple[int, int], class_names: list[str]
) -> PreTrainedModel:
    """Return the model: UperNet on an encoder of ours, with the encoder's weights, or a model that segments already.

    Raises:
        ValueError: If it is neither.
    """
    names: dict[str, Any] = {
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: index for index, name in enumerate(class_names)},
    }
    if isinstance(config, CrateEncoderConfig):
        return build_upernet(args, config, image_size, names)
    if type(config) not in AutoModelForSemanticSegmentation._model_mapping or args.model_name_or_path is None:
        raise ValueError(
            f"`model_name_or_path`: {args.config_source} of type {config.model_type} is no model of ours whose encoder "
            "could be taken, and none with weights that segments already."
        )
    for name, value in names.items():
        setattr(config, name, value)
    return load_model(
        AutoModelForSemanticSegmentation,
        args.model_name_or_path,
        config=config,
        ignore_mismatched_sizes=args.ignore_mismatched_sizes,
        **args.hub_access(),
    )


def build_upernet(
    args: SegmentationModelArguments, config: PreTrainedConfig, image_size: tuple[int, int], names: dict[str, Any]
) -> UperNetForSemanticSegmentation:
    """Return UperNet on the feature maps of four layers of an encoder, evenly spread over its depth."""
    depth = config.num_hidden_layers
    stages = [-(-depth * quarter // 4) for quarter in range(1, 5)]  # rounded up: at least layer 1
    backbone_class: Any = MODELS[config.model_type].model_classes["AutoBackbone"]
    config.set_output_features_output_indices(out_features=None, out_indices=sorted(set(stages)))
    if args.model_name_or_path is None:
        backbone = backbone_class(config)
    else:
        backbone = load_model(backbone_class, args.model_name_or_path, config=config, **args.hub_access())
    backbone.set_image_size(image_size)
    head = UperNetConfig(
        backbone_config=backbone.config,
        hidden_size=args.head_hidden_size,
        use_auxiliary_head=False,  # it is for backbones too deep for the gradient of one loss
        **names,
    )
    model = UperNetForSemanticSegmentation(head)
    model.backbone = backbone
    return model


def check_batches(args: ScriptTrainingArguments, num_images: int) -> None:
    """Check that every batch has two images or more: UperNet's head normalises over the batch.

    Raises:
        ValueError: If one has a single image.
    """
    batch_size = args.train_batch_size * args.world_size
    if args.do_train and (args.train_batch_size == 1 or num_images % batch_size == 1):
        raise ValueError(
            f"`per_device_train_batch_size` {args.per_device_train_batch_size} leaves a batch of one image of "
            f"{num_images}, over which the batch norms of the head cannot normalise: choose another."
        )


def train(
    model_args: SegmentationModelArguments,
    data_args: SegmentationDataArguments,
    augmentation_args: AugmentationArguments,
    training_args: ScriptTrainingArguments,
    checkpoint: str | None,
) -> None:
    """Fine-tune, evaluate, and save the model with its image processor to `output_dir`."""
    set_seed(training_args.seed)
    if training_args.label_smoothing_factor:
        raise ValueError("`label_smoothing_factor` must be 0: the model computes its loss itself, without smoothing.")
    config = build_config(model_args)
    processor = build_processor(model_args, config, augmentation_args)
    min_size = to_pair(getattr(config, "patch_size", 1))

    # The images, of which the first process prepares what the others read; then the model for their classes.
    with training_args.main_process_first(desc="loading the images"):
        images = load_segmented_datasets(data_args, min_size, training_args.seed)
    model: Any = build_model(model_args, config, output_size(processor), images.class_names)
    if isinstance(model, UperNetForSemanticSegmentation):
        check_batches(training_args, len(images.train))
    num_channels = getattr(getattr(model.config, "backbone_config", None) or model.config, "num_channels", 3)
    augmentation = (augmentation_args.min_crop_scale, augmentation_args.horizontal_flip)
    transforms = [build_segmentation_transform(processor, num_channels, *each) for each in (augmentation, ())]
    train_dataset, eval_dataset = (
        SegmentationDataset(records, transform, min_size, training_args.seed, len(images.class_names))
        for records, transform in zip((images.train, images.test), transforms, strict=True)
    )

    # Training.
    training_args.scale_learning_rate()
    trainer = SegmentationTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset if training_args.do_train else None,
        eval_dataset=eval_dataset if training_args.do_eval else None,
        processing_class=processor,
        compute_metrics=build_segmentation_metrics(images.class_names),
        preprocess_logits_for_metrics=count_pixels,
        callbacks=[SegmentationPictures(eval_dataset, processor, images.class_names)],
    )
    run_trainer(trainer, checkpoint, data_args)


def main() -> None:
    """Read the command line and train."""
    model_args, data_args, augmentation_args, training_args = parse_arguments(
        (SegmentationModelArguments, SegmentationDataArguments, AugmentationArguments, ScriptTrainingArguments)
    )
    logging.set_verbosity(training_args.get_process_log_level())
    with open_run(training_args) as checkpoint:
        train(model_args, data_args, augmentation_args, training_args, checkpoint)


if __name__ == "__main__":
    with clear_errors():
        main()
