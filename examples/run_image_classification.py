#!/usr/bin/env python
# /// script
# dependencies = ["crate-mae-hf[train]"]
# ///
"""Fine-tune a model for image classification, or train one from scratch.

    python examples/run_image_classification.py examples/recipes/fine_tune_fashion_mnist_sample.yaml \
        --model_name_or_path outputs/demo
    python examples/run_image_classification.py --model_name_or_path outputs/demo --train_dir TRAIN \
        --validation_dir TEST --layer_decay 0.75 --output_dir outputs/fine_tuned --do_train --do_eval
    python examples/run_image_classification.py --model_type vit --config_overrides image_size=32,patch_size=4 ...

Arguments come as flags, or as a JSON or YAML file followed by flags that win over it. `TRAIN` and `TEST` are folders
with one subfolder per class. Any model for `AutoModelForImageClassification` goes; of a pre-trained CRATE-MAE the
encoder is loaded, and fine-tuned without masks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import default_collate
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    set_seed,
)
from transformers.utils import logging

from crate_mae_hf.cli import clear_errors, parse_arguments
from crate_mae_hf.configuration_crate import to_pair
from crate_mae_hf.data.augmentation import (
    ClassificationAugmentationArguments,
    MixingCollator,
    build_eval_transform,
    build_train_transform,
)
from crate_mae_hf.data.labels import LabelledDataArguments, LabelledDataset, LabelledImages, load_labelled_datasets
from crate_mae_hf.evaluation.metrics import build_compute_metrics, rank_classes
from crate_mae_hf.loading import load_model
from crate_mae_hf.training.arguments import ModelArguments, ScriptTrainingArguments
from crate_mae_hf.training.classification_trainer import ClassificationTrainer, freeze_encoder
from crate_mae_hf.training.models import build_image_processor, config_changes, load_config
from crate_mae_hf.training.output_folder import open_run
from crate_mae_hf.training.run import run_trainer


@dataclass
class ClassifierArguments(ModelArguments):
    """Which model to train: a checkpoint, a configuration, or a new model of some type and size."""

    model_type: str = field(
        default="crate_mae", metadata={"help": "The type to start from otherwise: crate_mae, vit, ..."}
    )
    model_size: str | None = field(
        default=None, metadata={"help": "The size of such a CRATE model: tiny, small, base (the default) or large."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code that comes with a checkpoint."})
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Start weights anew that have another shape, such as those of another head."}
    )
    drop_path_rate: float | None = field(default=None, metadata={"help": "Stochastic depth of the last layer."})
    pooling: str | None = field(
        default=None,
        metadata={"help": "What to classify: mean of the patches or cls.", "choices": ["mean", "cls"]},
    )

    def hub_access(self) -> dict[str, Any]:
        return {**super().hub_access(), "trust_remote_code": self.trust_remote_code}


@dataclass
class FineTuningArguments(ScriptTrainingArguments):
    """Training arguments, and what fine-tuning a masked autoencoder needs."""

    layer_decay: float = field(
        default=1.0, metadata={"help": "Factor of the learning rate from each layer to the one below it."}
    )
    freeze_encoder: bool = field(default=False, metadata={"help": "Train the head alone."})


def build_config(args: ClassifierArguments) -> Any:
    """Return the model's configuration: a checkpoint's, a given one or a new one, with the changes asked for."""
    source = args.config_source
    if source is not None:
        config_class = type(load_config(args))
    elif args.model_type in CONFIG_MAPPING:
        config_class = CONFIG_MAPPING[args.model_type]
    else:
        raise ValueError(f"`model_type`: Transformers has no {args.model_type!r}.")
    changes = config_changes(args, config_class, ("drop_path_rate", "pooling"))
    has_sizes = hasattr(config_class, "from_size")
    if args.model_size is not None and (source is not None or not has_sizes):
        raise ValueError(f"`model_size` is for new CRATE models, not for {source or args.model_type}.")
    if source is not None:
        return load_config(args, **changes)
    return config_class.from_size(args.model_size or "base", **changes) if has_sizes else config_class(**changes)


def build_model(args: ClassifierArguments, config: PreTrainedConfig) -> PreTrainedModel:
    """Return the model, with the weights of the checkpoint if there is one."""
    if args.model_name_or_path is None:
        return AutoModelForImageClassification.from_config(config)
    try:
        return load_model(
            AutoModelForImageClassification,
            args.model_name_or_path,
            config=config,
            ignore_mismatched_sizes=args.ignore_mismatched_sizes,
            **args.hub_access(),
        )
    except ValueError as error:
        if "ignore_mismatched_sizes" not in str(error.__cause__):
            raise
        raise ValueError(
            f"`model_name_or_path`: weights of {args.model_name_or_path} have other shapes than the model with "
            f"{config.num_labels} classes and the changes asked for; `--ignore_mismatched_sizes` starts those anew."
        ) from error


def build_datasets(
    images: LabelledImages,
    augmentation_args: ClassificationAugmentationArguments,
    processor: Any,
    config: Any,
    seed: int,
) -> tuple[LabelledDataset, LabelledDataset, Callable]:
    """Return training and test images as the model takes them, and what makes batches of them."""
    train_transform = build_train_transform(
        processor,
        augmentation_args.min_crop_scale,
        augmentation_args.horizontal_flip,
        num_channels=config.num_channels,
        rand_augment_num_ops=augmentation_args.rand_augment_num_ops,
        rand_augment_magnitude=augmentation_args.rand_augment_magnitude,
        random_erasing=augmentation_args.random_erasing,
    )
    eval_transform = build_eval_transform(processor, config.num_channels)
    mixes = augmentation_args.mixup_alpha != 0 or augmentation_args.cutmix_alpha != 0
    collator: Callable = default_collate
    if mixes:
        collator = MixingCollator(config.num_labels, augmentation_args.mixup_alpha, augmentation_args.cutmix_alpha)
    min_size = smallest_image(config)
    return (
        LabelledDataset(images.train, train_transform, min_size, seed, mixes),
        LabelledDataset(images.test, eval_transform, min_size, seed),
        collator,
    )


def smallest_image(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the (height, width) of a patch; an image must not be smaller."""
    return to_pair(getattr(config, "patch_size", 1))


def train(
    model_args: ClassifierArguments,
    data_args: LabelledDataArguments,
    augmentation_args: ClassificationAugmentationArguments,
    training_args: FineTuningArguments,
    checkpoint: str | None,
) -> None:
    """Fine-tune, evaluate, and save the model with its image processor to `output_dir`."""
    set_seed(training_args.seed)

    # The images, of which the first process prepares what the others read; then the model for their classes.
    config = build_config(model_args)
    with training_args.main_process_first(desc="loading the images"):
        images = load_labelled_datasets(data_args, smallest_image(config), training_args.seed)
    config.id2label = dict(enumerate(images.class_names))
    config.label2id = {name: index for index, name in enumerate(images.class_names)}
    model = build_model(model_args, config)
    if training_args.freeze_encoder:
        freeze_encoder(model)
    processor = build_image_processor(model_args, config, augmentation_args)
    train_dataset, eval_dataset, collator = build_datasets(
        images, augmentation_args, processor, config, training_args.seed
    )

    # Training.
    training_args.remove_unused_columns = False  # the datasets have what the model takes, and a seed for mixing
    training_args.scale_learning_rate()
    trainer = ClassificationTrainer(
        model=model,
        args=training_args,
        data_collator=collator,
        train_dataset=train_dataset if training_args.do_train else None,
        eval_dataset=eval_dataset if training_args.do_eval else None,
        processing_class=processor,
        compute_metrics=build_compute_metrics(len(images.class_names)),
        preprocess_logits_for_metrics=rank_classes,
        layer_decay=training_args.layer_decay,
    )
    run_trainer(trainer, checkpoint, data_args, ("layer_decay", "label_smoothing_factor", "freeze_encoder"))


def main() -> None:
    """Read the command line and train."""
    model_args, data_args, augmentation_args, training_args = parse_arguments(
        (ClassifierArguments, LabelledDataArguments, ClassificationAugmentationArguments, FineTuningArguments)
    )
    logging.set_verbosity(training_args.get_process_log_level())
    with open_run(training_args) as checkpoint:
        train(model_args, data_args, augmentation_args, training_args, checkpoint)


if __name__ == "__main__":
    with clear_errors():
        main()
