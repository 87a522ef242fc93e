#!/usr/bin/env python
# /// script
# dependencies = ["crate-mae-hf[train]"]
# ///
"""Pre-train CRATE-MAE on your own images, or continue from a checkpoint.

    python examples/run_mae.py examples/recipes/fashion_mnist_sample.yaml
    python examples/run_mae.py examples/recipes/imagenet_base.yaml --train_dir images/train --output_dir outputs/mae
    torchrun --nproc_per_node 8 examples/run_mae.py RECIPE.yaml --dataset_name ORG/NAME --bf16

Arguments come as flags, or as a JSON or YAML file followed by flags that win over it.
"""

from dataclasses import dataclass, field
from pathlib import Path

import yaml
from transformers import AutoConfig, AutoImageProcessor, TrainingArguments, set_seed
from transformers.utils import logging

from crate_mae_hf import CrateMaeConfig, CrateMaeForPreTraining, CrateMaeImageProcessor
from crate_mae_hf.hub import create_model_card, push_folder
from crate_mae_hf.training.arguments import clear_errors, find_checkpoint, parse_arguments
from crate_mae_hf.training.augmentation import build_eval_transform, build_train_transform
from crate_mae_hf.training.data import DataArguments, load_datasets
from crate_mae_hf.training.trainer import SeededTrainer

# What the model card says of a run.
RECIPE = (
    "optim",
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "lr_scheduler_type",
    "warmup_steps",
    "seed",
)


@dataclass
class ModelArguments:
    """Which model to train: a checkpoint, a configuration, or one of the published sizes."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A checkpoint to continue from."})
    config_name: str | None = field(default=None, metadata={"help": "A configuration to start from, without weights."})
    model_size: str = field(
        default="base", metadata={"help": "The size to start from otherwise.", "choices": list(CrateMaeConfig.sizes)}
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": 'Changes to the configuration, as "image_size=32,patch_size=4".'}
    )
    image_processor_name: str | None = field(default=None, metadata={"help": "An image processor to use."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the checkpoint."})
    token: str | None = field(default=None, metadata={"help": "Access token for the Hub."})
    mask_ratio: float | None = field(default=None, metadata={"help": "Share of the patches to mask."})
    norm_pix_loss: bool | None = field(default=None, metadata={"help": "Normalise the targets patch by patch."})


@dataclass
class AugmentationArguments:
    """How images become training examples."""

    min_crop_scale: float = field(default=0.2, metadata={"help": "Smallest share of an image's area in a random crop."})
    horizontal_flip: bool = field(default=True, metadata={"help": "Flip every second image."})
    image_mean: list[float] | None = field(default=None, metadata={"help": "Mean of each channel in [0, 1]."})
    image_std: list[float] | None = field(default=None, metadata={"help": "Standard deviation of each channel."})


@dataclass
class MaeTrainingArguments(TrainingArguments):
    """Transformers' training arguments, with the learning rate by the batch / 256 rule."""

    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: every parameter of CRATE-MAE gets a gradient."}
    )
    base_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of a batch of 256; wins over `learning_rate`."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Allow an output folder with contents; files of the same name are replaced."}
    )


def build_config(args: ModelArguments) -> CrateMaeConfig:
    """Return the model's configuration: a checkpoint's, a given one or a size's, with the changes asked for."""
    # "a=1,b=[2,3]" is the inside of a YAML mapping but for the equals signs.
    changes = yaml.safe_load("{" + (args.config_overrides or "").replace("=", ": ") + "}")
    if unknown := sorted(changes.keys() - CrateMaeConfig.__dataclass_fields__.keys()):
        raise ValueError(f"`config_overrides` sets {', '.join(unknown)}, which the configuration does not have.")
    for name in ("mask_ratio", "norm_pix_loss"):
        if getattr(args, name) is not None:
            changes[name] = getattr(args, name)
    source = args.config_name or args.model_name_or_path
    if source is None:
        return CrateMaeConfig.from_size(args.model_size, **changes)
    config = AutoConfig.from_pretrained(source, revision=args.model_revision, token=args.token, **changes)
    if not isinstance(config, CrateMaeConfig):
        raise ValueError(f"{source} is a model of type {config.model_type}; this script trains CRATE-MAE.")
    return config


def main() -> None:
    """Pre-train, evaluate, and save the model with its image processor to `output_dir`."""
    model_args, data_args, augmentation_args, training_args = parse_arguments(
        (ModelArguments, DataArguments, AugmentationArguments, MaeTrainingArguments)
    )
    logging.set_verbosity(training_args.get_process_log_level())
    if data_args.streaming and training_args.max_steps <= 0:
        raise ValueError("`max_steps` is needed with `streaming`: the number of images is not known.")
    checkpoint = find_checkpoint(training_args, training_args.overwrite_output_dir)
    set_seed(training_args.seed)

    # The model and its image processor.
    config = build_config(model_args)
    if model_args.model_name_or_path:
        model = CrateMaeForPreTraining.from_pretrained(
            model_args.model_name_or_path, config=config, revision=model_args.model_revision, token=model_args.token
        )
    else:
        model = CrateMaeForPreTraining(config)
    processor_source = model_args.image_processor_name or model_args.model_name_or_path
    if processor_source:
        processor = AutoImageProcessor.from_pretrained(processor_source, token=model_args.token)
    else:
        processor = CrateMaeImageProcessor.from_config(
            config, augmentation_args.image_mean, augmentation_args.image_std
        )

    # The images. Every process loads them after the first has prepared them.
    train_transform = build_train_transform(
        processor, augmentation_args.min_crop_scale, augmentation_args.horizontal_flip
    )
    with training_args.main_process_first(desc="loading the images"):
        train_dataset, eval_dataset = load_datasets(
            data_args, config, train_transform, build_eval_transform(processor), training_args.seed
        )

    # Training. The learning rate grows with the batch.
    if training_args.base_learning_rate is not None:
        batch_size = training_args.train_batch_size * training_args.gradient_accumulation_steps
        batch_size *= training_args.world_size
        training_args.learning_rate = training_args.base_learning_rate * batch_size / 256
    trainer = SeededTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset if training_args.do_train else None,
        eval_dataset=eval_dataset if training_args.do_eval else None,
        processing_class=processor,
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
    if training_args.push_to_hub and trainer.is_world_process_zero():
        source = Path(data_args.dataset_name or data_args.train_dir)
        create_model_card(
            training_args.output_dir,
            model_id=trainer.hub_model_id,
            dataset=None if source.exists() else data_args.dataset_name,
            data=f"Images of the folder {source.name}." if source.exists() else None,
            recipe={name: getattr(training_args, name) for name in RECIPE},
        ).save(Path(training_args.output_dir) / "README.md")
        push_folder(
            training_args.output_dir,
            str(trainer.hub_model_id),
            token=training_args.hub_token,
            private=training_args.hub_private_repo,
        )
    # Closes trackers and the process group; gloo may abort where a process exits with the group open.
    trainer.accelerator.end_training()


if __name__ == "__main__":
    with clear_errors():
        main()
