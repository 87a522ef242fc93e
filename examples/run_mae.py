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

from transformers import AutoConfig, AutoImageProcessor, set_seed
from transformers.utils import logging

from crate_mae_hf import CrateMaeConfig, CrateMaeForPreTraining, CrateMaeImageProcessor
from crate_mae_hf.cli import clear_errors, parse_arguments, parse_overrides
from crate_mae_hf.data.augmentation import AugmentationArguments, build_eval_transform, build_train_transform
from crate_mae_hf.data.images import DataArguments
from crate_mae_hf.data.masks import load_datasets
from crate_mae_hf.training.arguments import ScriptTrainingArguments, find_checkpoint
from crate_mae_hf.training.publishing import push_run
from crate_mae_hf.training.trainer import MaskedAutoencoderTrainer


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
class MaeTrainingArguments(ScriptTrainingArguments):
    """Training arguments that fit a model of which every parameter gets a gradient."""

    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: every parameter of CRATE-MAE gets a gradient."}
    )


def build_config(args: ModelArguments) -> CrateMaeConfig:
    """Return the model's configuration: a checkpoint's, a given one or a size's, with the changes asked for."""
    changes = parse_overrides(args.config_overrides, CrateMaeConfig)
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
    training_args.scale_learning_rate()
    trainer = MaskedAutoencoderTrainer(
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
    if training_args.push_to_hub:
        push_run(trainer, data_args)
    # Closes trackers and the process group; gloo may abort where a process exits with the group open.
    trainer.accelerator.end_training()


if __name__ == "__main__":
    with clear_errors():
        main()
