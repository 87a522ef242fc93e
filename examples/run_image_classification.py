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
with one subfolder a class. Any model for `AutoModelForImageClassification` goes; of a pre-trained CRATE-MAE the encoder
is loaded, and fine-tuned without masks.
"""

from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import default_collate
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    set_seed,
)
from transformers.utils import logging

from crate_mae_hf import CrateMaeImageProcessor
from crate_mae_hf.cli import clear_errors, parse_arguments, parse_overrides
from crate_mae_hf.configuration_crate import to_pair
from crate_mae_hf.data.augmentation import (
    ClassificationAugmentationArguments,
    MixingCollator,
    build_eval_transform,
    build_train_transform,
)
from crate_mae_hf.data.labels import LabelledDataArguments, LabelledDataset, load_labelled_datasets
from crate_mae_hf.evaluation.metrics import build_compute_metrics, rank_classes
from crate_mae_hf.training.arguments import ScriptTrainingArguments, find_checkpoint
from crate_mae_hf.training.classification_trainer import ClassificationTrainer, freeze_encoder
from crate_mae_hf.training.publishing import push_run


@dataclass
class ModelArguments:
    """Which model to train: a checkpoint, a configuration, or a new model of some type and size."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A checkpoint to start from."})
    config_name: str | None = field(default=None, metadata={"help": "A configuration to start from, without weights."})
    model_type: str = field(
        default="crate_mae", metadata={"help": "The type to start from otherwise: crate_mae, vit, ..."}
    )
    model_size: str | None = field(
        default=None, metadata={"help": "The size of such a CRATE model: tiny, small, base (the default) or large."}
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": 'Changes to the configuration, as "image_size=32,patch_size=4".'}
    )
    image_processor_name: str | None = field(default=None, metadata={"help": "An image processor to use."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the checkpoint."})
    token: str | None = field(default=None, metadata={"help": "Access token for the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code that comes with a checkpoint."})
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Start weights anew that have another shape, such as those of another head."}
    )
    drop_path_rate: float | None = field(default=None, metadata={"help": "Stochastic depth of the last layer."})
    pooling: str | None = field(
        default=None,
        metadata={"help": "What to classify: mean of the patches or cls.", "choices": ["mean", "cls"]},
    )


@dataclass
class FineTuningArguments(ScriptTrainingArguments):
    """Training arguments, and what fine-tuning a masked autoencoder needs."""

    layer_decay: float = field(
        default=1.0, metadata={"help": "Factor of the learning rate from each layer to the one below it."}
    )
    freeze_encoder: bool = field(default=False, metadata={"help": "Train the head alone."})


def build_config(args: ModelArguments) -> Any:
    """Return the model's configuration: a checkpoint's, a given one or a new one, with the changes asked for."""
    source = args.config_name or args.model_name_or_path
    hub = {"revision": args.model_revision, "token": args.token, "trust_remote_code": args.trust_remote_code}
    if source is not None:
        config_class = type(AutoConfig.from_pretrained(source, **hub))
    elif args.model_type in CONFIG_MAPPING:
        config_class = CONFIG_MAPPING[args.model_type]
    else:
        raise ValueError(f"`model_type`: Transformers has no {args.model_type!r}.")
    changes = parse_overrides(args.config_overrides, config_class)
    for name in ("drop_path_rate", "pooling"):
        if getattr(args, name) is not None:
            if name not in config_class.__dataclass_fields__:
                raise ValueError(f"`{name}`: a model of type {config_class.model_type} has no such setting.")
            changes[name] = getattr(args, name)
    has_sizes = hasattr(config_class, "from_size")
    if args.model_size is not None and (source is not None or not has_sizes):
        raise ValueError(f"`model_size` is for new CRATE models, not for {source or args.model_type}.")
    if source is not None:
        return AutoConfig.from_pretrained(source, **hub, **changes)
    return config_class.from_size(args.model_size or "base", **changes) if has_sizes else config_class(**changes)


def build_model(args: ModelArguments, config: PreTrainedConfig) -> PreTrainedModel:
    """Return the model, with the weights of the checkpoint if there is one."""
    if args.model_name_or_path is None:
        return AutoModelForImageClassification.from_config(config)
    try:
        return AutoModelForImageClassification.from_pretrained(
            args.model_name_or_path,
            config=config,
            revision=args.model_revision,
            token=args.token,
            trust_remote_code=args.trust_remote_code,
            ignore_mismatched_sizes=args.ignore_mismatched_sizes,
        )
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"`model_name_or_path`: weights of {args.model_name_or_path} have other shapes than the model with "
            f"{config.num_labels} classes and the changes asked for; `--ignore_mismatched_sizes` starts those anew."
        ) from error


def main() -> None:
    """Fine-tune, evaluate, and save the model with its image processor to `output_dir`."""
    model_args, data_args, augmentation_args, training_args = parse_arguments(
        (ModelArguments, LabelledDataArguments, ClassificationAugmentationArguments, FineTuningArguments)
    )
    logging.set_verbosity(training_args.get_process_log_level())
    checkpoint = find_checkpoint(training_args, training_args.overwrite_output_dir)
    set_seed(training_args.seed)

    # The images, of which the first process prepares what the others read; then the model for their classes.
    config = build_config(model_args)
    min_size = to_pair(getattr(config, "patch_size", 1))
    with training_args.main_process_first(desc="loading the images"):
        train_images, test_images, label_names = load_labelled_datasets(data_args, min_size, training_args.seed)
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: index for index, name in enumerate(label_names)}
    model = build_model(model_args, config)
    if training_args.freeze_encoder:
        freeze_encoder(model)
    processor_source = model_args.image_processor_name or model_args.model_name_or_path
    if processor_source:
        processor = AutoImageProcessor.from_pretrained(
            processor_source, token=model_args.token, trust_remote_code=model_args.trust_remote_code
        )
    elif not hasattr(config, "image_size"):
        raise ValueError(f"`image_processor_name` is needed: a new {config.model_type} has no image size of its own.")
    else:
        processor = CrateMaeImageProcessor.from_config(
            config, augmentation_args.image_mean, augmentation_args.image_std
        )

    # From images to batches.
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
    train_dataset = LabelledDataset(train_images, train_transform, min_size, training_args.seed, mixes)
    eval_dataset = LabelledDataset(test_images, eval_transform, min_size, training_args.seed)
    collator = default_collate
    if mixes:
        collator = MixingCollator(len(label_names), augmentation_args.mixup_alpha, augmentation_args.cutmix_alpha)

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
        compute_metrics=build_compute_metrics(len(label_names)),
        preprocess_logits_for_metrics=rank_classes,
        layer_decay=training_args.layer_decay,
    )
    if training_args.do_train:
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
    if training_args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if training_args.push_to_hub:
        push_run(trainer, data_args, ("layer_decay", "label_smoothing_factor", "freeze_encoder"))
    # Closes trackers and the process group; gloo may abort where a process exits with the group open.
    trainer.accelerator.end_training()


if __name__ == "__main__":
    with clear_errors():
        main()
