#!/usr/bin/env python
# /// script
# dependencies = ["crate-mae-hf[train,figures]"]
# ///
"""Pre-train a split-brain CRATE, two encoders of which each predicts what the other sees, on your own images.

    python examples/data/photo_patches.py
    python examples/run_split_brain.py examples/recipes/split_brain_photos.yaml
    python examples/run_split_brain.py examples/recipes/split_brain_imagenet.yaml --train_dir images/train

Arguments come as flags, or as a JSON or YAML file followed by flags that win over it. The images have to be in colour;
`--skip_bad_images` leaves grey ones out. Beside the model the output folder gets `color_prediction.png`, which
docs/split_brain.md explains: what each tower predicts of the evaluation images.
"""

from dataclasses import dataclass, field
from functools import partial

from transformers import set_seed
from transformers.utils import logging

from crate_mae_hf import CrateSplitBrainForPreTraining
from crate_mae_hf.cli import clear_errors, parse_arguments
from crate_mae_hf.configuration_crate import to_pair
from crate_mae_hf.data.augmentation import AugmentationArguments, build_eval_transform, build_train_transform
from crate_mae_hf.data.colors import ColorDataset
from crate_mae_hf.data.images import DataArguments
from crate_mae_hf.data.masks import load_seeded
from crate_mae_hf.training.arguments import MaeTrainingArguments, SizedModelArguments
from crate_mae_hf.training.color_predictions import ColorPredictions
from crate_mae_hf.training.models import build_autoencoder, build_image_processor
from crate_mae_hf.training.output_folder import open_run
from crate_mae_hf.training.run import run_trainer
from crate_mae_hf.training.trainer import SeededTrainer

SETTINGS = ("prediction", "target_grid_size")


@dataclass
class SplitBrainModelArguments(SizedModelArguments):
    """Which split-brain autoencoder to train."""

    prediction: str | None = field(
        default=None,
        metadata={"help": "How colour and lightness are predicted.", "choices": ["classification", "regression"]},
    )
    target_grid_size: int | None = field(
        default=None, metadata={"help": "Number of targets along each side of a patch."}
    )


def train(
    model_args: SplitBrainModelArguments,
    data_args: DataArguments,
    augmentation_args: AugmentationArguments,
    training_args: MaeTrainingArguments,
    checkpoint: str | None,
) -> None:
    """Pre-train, evaluate, and save the model with its image processor to `output_dir`."""
    set_seed(training_args.seed)
    model = build_autoencoder(model_args, CrateSplitBrainForPreTraining, SETTINGS)
    processor = build_image_processor(model_args, model.config, augmentation_args)

    # The images. Every process loads them after the first has prepared them.
    train_transform = build_train_transform(
        processor, augmentation_args.min_crop_scale, augmentation_args.horizontal_flip
    )
    min_size, seed = to_pair(model.config.patch_size), training_args.seed
    with training_args.main_process_first(desc="loading the images"):
        train_dataset, eval_dataset = load_seeded(
            data_args,
            min_size,
            partial(ColorDataset, transform=train_transform, min_size=min_size, seed=seed),
            partial(ColorDataset, transform=build_eval_transform(processor), min_size=min_size, seed=seed),
            seed,
            needs_color=True,
        )

    # Training. The learning rate grows with the batch.
    training_args.scale_learning_rate()
    trainer = SeededTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset if training_args.do_train else None,
        eval_dataset=eval_dataset if training_args.do_eval else None,
        processing_class=processor,
        callbacks=[ColorPredictions(eval_dataset)],
    )
    run_trainer(trainer, checkpoint, data_args)


def main() -> None:
    """Read the command line and train."""
    model_args, data_args, augmentation_args, training_args = parse_arguments(
        (SplitBrainModelArguments, DataArguments, AugmentationArguments, MaeTrainingArguments)
    )
    logging.set_verbosity(training_args.get_process_log_level())
    training_args.check_length(data_args.streaming)
    with open_run(training_args) as checkpoint:
        train(model_args, data_args, augmentation_args, training_args, checkpoint)


if __name__ == "__main__":
    with clear_errors():
        main()
