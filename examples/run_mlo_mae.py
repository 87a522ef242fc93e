#!/usr/bin/env python
# /// script
# dependencies = ["crate-mae-hf[train,figures]"]
# ///
"""Pre-train a CRATE-MAE or a ViTMAE by MLO-MAE: masks that a network learns from the labels of the images.

    python examples/run_mlo_mae.py
    python examples/run_mlo_mae.py examples/recipes/mlo_mae_cifar10.yaml --output_dir outputs/mlo_mae
    python examples/run_mlo_mae.py RECIPE.yaml --train_dir TRAIN --validation_dir TEST --model_type vit_mae

Arguments come as flags, or as a JSON or YAML file followed by flags that win over it; where neither a file nor images
are named, the file is that of the bundled Fashion-MNIST sample. `TRAIN` and `TEST` are folders with one subfolder per
class. What a run leaves is an ordinary checkpoint of the autoencoder, which every other script takes, and
`masking.safetensors` beside it. One process, one device.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import set_seed
from transformers.utils import logging

from crate_mae_hf.cli import clear_errors, parse_arguments
from crate_mae_hf.configuration_crate import to_pair
from crate_mae_hf.data.augmentation import AugmentationArguments, build_eval_transform, build_train_transform
from crate_mae_hf.data.labels import LabelledDataArguments, LabelledDataset, hold_out, load_labelled_datasets
from crate_mae_hf.data.masks import MaskingDataset
from crate_mae_hf.objectives.mlo_mae import MASKS, MloMae
from crate_mae_hf.training.arguments import AutoencoderArguments, MaeTrainingArguments
from crate_mae_hf.training.mask_pictures import MaskPictures
from crate_mae_hf.training.mlo_mae_trainer import MloMaeTrainer
from crate_mae_hf.training.models import AUTOENCODERS, build_autoencoder, build_image_processor
from crate_mae_hf.training.output_folder import open_run
from crate_mae_hf.training.run import run_trainer

RECIPE = Path(__file__).parent / "recipes" / "mlo_mae_fashion_mnist_sample.yaml"
logger = logging.get_logger("run_mlo_mae")


@dataclass
class MloMaeArguments:
    """How masks are learned."""

    masks: str = field(
        default="learned",
        metadata={"help": "Learned; by a network that stays as it was drawn; or random.", "choices": list(MASKS)},
    )
    mask_hidden_size: int = field(default=512, metadata={"help": "Width of the masking network's hidden layer."})
    head_dropout: float = field(default=0.1, metadata={"help": "Dropout of the head."})
    score_noise: float = field(default=0.0, metadata={"help": "Highest noise on the scores, for the ranking alone."})
    freeze_ranking: bool = field(default=False, metadata={"help": "Keep the masks while differences are taken."})
    validation_share: float = field(
        default=0.2, metadata={"help": "Share of the training images, of each class, that level III has for itself."}
    )


@dataclass
class MloMaeTrainingArguments(MaeTrainingArguments):
    """Training arguments of level I, and what the other levels have of their own."""

    head_learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of level II."})
    mask_learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of level III."})


def train(
    model_args: AutoencoderArguments,
    objective_args: MloMaeArguments,
    data_args: LabelledDataArguments,
    augmentation_args: AugmentationArguments,
    training_args: MloMaeTrainingArguments,
    checkpoint: str | None,
) -> None:
    """Pre-train, evaluate, and save the autoencoder with its image processor to `output_dir`."""
    set_seed(training_args.seed)
    seed, settings = training_args.seed, dict(vars(objective_args))
    share = settings.pop("validation_share")
    autoencoder = build_autoencoder(model_args, AUTOENCODERS[model_args.model_type])
    processor = build_image_processor(model_args, autoencoder.config, augmentation_args)

    # The images: level I has all of the training images, II and III a part each; the test images are for evaluation.
    min_size = to_pair(autoencoder.config.patch_size)
    images = load_labelled_datasets(data_args, min_size, seed)
    train_transform = build_train_transform(
        processor, augmentation_args.min_crop_scale, augmentation_args.horizontal_flip
    )
    eval_transform = build_eval_transform(processor)
    parts = hold_out(images.train, share, seed, "validation_share")
    finetune_dataset, validation_dataset = (
        LabelledDataset(part, transform, min_size, seed)
        for part, transform in zip(parts, (train_transform, eval_transform), strict=True)
    )
    objective = MloMae(autoencoder, len(images.class_names), **settings)
    count = sum(weight.numel() for weight in objective.masking.parameters())
    logger.warning(f"The masking network has {count:,} parameters, the autoencoder {autoencoder.num_parameters():,}.")

    # Training. The learning rate of level I grows with the batch where a base rate is given.
    training_args.scale_learning_rate()
    trainer = MloMaeTrainer(
        objective,
        training_args,
        train_dataset=MaskingDataset(images.train, train_transform, autoencoder.config, seed),
        eval_dataset=MaskingDataset(images.test, eval_transform, autoencoder.config, seed),
        finetune_dataset=finetune_dataset,
        validation_dataset=validation_dataset,
        head_learning_rate=training_args.head_learning_rate,
        mask_learning_rate=training_args.mask_learning_rate,
        processing_class=processor,
        callbacks=[MaskPictures()],
    )
    run_trainer(trainer, checkpoint, data_args, ("head_learning_rate", "mask_learning_rate"))


def main() -> None:
    """Read the command line and train."""
    argv = sys.argv[1:]
    named = {argument.split("=")[0] for argument in argv} & {"--dataset_name", "--train_dir"}
    if not named and not (argv and argv[0].endswith((".json", ".yaml", ".yml"))):
        argv.insert(0, str(RECIPE))
    model_args, objective_args, data_args, augmentation_args, training_args = parse_arguments(
        (AutoencoderArguments, MloMaeArguments, LabelledDataArguments, AugmentationArguments, MloMaeTrainingArguments),
        argv,
    )
    logging.set_verbosity(training_args.get_process_log_level())
    with open_run(training_args) as checkpoint:
        train(model_args, objective_args, data_args, augmentation_args, training_args, checkpoint)


if __name__ == "__main__":
    with clear_errors():
        main()
