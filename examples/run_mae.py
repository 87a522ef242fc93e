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

from transformers import set_seed
from transformers.utils import logging

from crate_mae_hf import CrateMaeForPreTraining
from crate_mae_hf.cli import clear_errors, parse_arguments
from crate_mae_hf.data.augmentation import MaskedAugmentationArguments, build_eval_transform, build_train_transform
from crate_mae_hf.data.images import DataArguments
from crate_mae_hf.data.masks import load_datasets
from crate_mae_hf.training.arguments import MaeModelArguments, MaeTrainingArguments
from crate_mae_hf.training.models import build_autoencoder, build_image_processor
from crate_mae_hf.training.output_folder import open_run
from crate_mae_hf.training.run import run_trainer
from crate_mae_hf.training.trainer import MaskedAutoencoderTrainer


def train(
    model_args: MaeModelArguments,
    data_args: DataArguments,
    augmentation_args: MaskedAugmentationArguments,
    training_args: MaeTrainingArguments,
    checkpoint: str | None,
) -> None:
    """Pre-train, evaluate, and save the model with its image processor to `output_dir`."""
    set_seed(training_args.seed)
    model = build_autoencoder(model_args, CrateMaeForPreTraining)
    processor = build_image_processor(model_args, model.config, augmentation_args)

    # The images. Every process loads them after the first has prepared them.
    train_transform = build_train_transform(
        processor,
        augmentation_args.min_crop_scale,
        augmentation_args.horizontal_flip,
        normalize=not augmentation_args.normalize_on_device,
    )
    with training_args.main_process_first(desc="loading the images"):
        train_dataset, eval_dataset = load_datasets(
            data_args, model.config, train_transform, build_eval_transform(processor), training_args.seed
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
    run_trainer(trainer, checkpoint, data_args)


def main() -> None:
    """Read the command line and train."""
    model_args, data_args, augmentation_args, training_args = parse_arguments(
        (MaeModelArguments, DataArguments, MaskedAugmentationArguments, MaeTrainingArguments)
    )
    logging.set_verbosity(training_args.get_process_log_level())
    training_args.check_length(data_args.streaming)
    with open_run(training_args) as checkpoint:
        train(model_args, data_args, augmentation_args, training_args, checkpoint)


if __name__ == "__main__":
    with clear_errors():
        main()
