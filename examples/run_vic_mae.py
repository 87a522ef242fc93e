#!/usr/bin/env python
# /// script
# dependencies = ["crate-mae-hf[train]"]
# ///
"""Pre-train a CRATE-MAE or a ViTMAE by ViC-MAE: on pairs of views of images, of frames of clips, or of both.

    python examples/run_vic_mae.py examples/recipes/vic_mae_fashion_mnist_sample.yaml
    python examples/run_vic_mae.py examples/recipes/vic_mae_imagenet.yaml --train_dir images --clips_dir clips
    torchrun --nproc_per_node 8 examples/run_vic_mae.py RECIPE.yaml --dataset_name ORG/NAME --sync_batch_norm true

Arguments come as flags, or as a JSON or YAML file followed by flags that win over it. What a run leaves is an ordinary
checkpoint of the autoencoder, which every other script takes.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import set_seed
from transformers.utils import logging

from crate_mae_hf.cli import clear_errors, parse_arguments
from crate_mae_hf.data.pairs import PairArguments, PairAugmentationArguments, load_pairs
from crate_mae_hf.objectives.vic_mae import VicMae
from crate_mae_hf.training.arguments import AutoencoderArguments, MaeTrainingArguments
from crate_mae_hf.training.contrastive_watch import ContrastiveWatch
from crate_mae_hf.training.models import AUTOENCODERS, build_autoencoder, build_image_processor
from crate_mae_hf.training.objective_trainer import ObjectiveTrainer
from crate_mae_hf.training.output_folder import open_run
from crate_mae_hf.training.run import run_trainer


@dataclass
class VicMaeArguments:
    """What the autoencoder is trained by."""

    contrastive_weight: float = field(default=0.03, metadata={"help": "Weight of the contrastive loss."})
    reconstruction_weight: float = field(default=0.97, metadata={"help": "Weight of the reconstruction loss."})
    contrastive_rise: float = field(
        default=0.0, metadata={"help": "Share of the training over which the contrastive weight rises from 0."}
    )
    temperature: float = field(default=0.1, metadata={"help": "Temperature of the contrastive loss."})
    projector_size: int = field(default=4096, metadata={"help": "Width of the projector."})
    projection_size: int = field(default=128, metadata={"help": "Width of what the projector gives."})
    sync_batch_norm: bool = field(
        default=False, metadata={"help": "Batch norms of the projector over all processes; on GPUs only."}
    )


@dataclass
class VicMaeTrainingArguments(MaeTrainingArguments):
    """Training arguments for batches that are all of one size, as the contrastive loss depends on it."""

    dataloader_drop_last: bool = field(default=True, metadata={"help": "Leave out a last batch that is smaller."})


def check_batches(pairs: Any, batch_size: int, argument: str) -> None:
    """Refuse batches that are larger than the data, of which there would be none.

    Raises:
        ValueError: If they are.
    """
    if hasattr(pairs, "__len__") and len(pairs) < batch_size:
        raise ValueError(f"`{argument}` makes batches of {batch_size} on all devices, of only {len(pairs)} pairs.")


def train(
    model_args: AutoencoderArguments,
    objective_args: VicMaeArguments,
    data_args: PairArguments,
    augmentation_args: PairAugmentationArguments,
    training_args: VicMaeTrainingArguments,
    checkpoint: str | None,
) -> None:
    """Pre-train, evaluate, and save the autoencoder with its image processor to `output_dir`."""
    set_seed(training_args.seed)
    autoencoder = build_autoencoder(model_args, AUTOENCODERS[model_args.model_type])
    objective = VicMae(autoencoder, **asdict(objective_args))
    processor = build_image_processor(model_args, autoencoder.config, augmentation_args)

    # The pairs. Every process loads them after the first has prepared them.
    with training_args.main_process_first(desc="loading the images"):
        train_dataset, eval_dataset = load_pairs(
            data_args, augmentation_args, processor, autoencoder.config, training_args.seed
        )
    if training_args.dataloader_drop_last:
        devices = training_args.world_size
        if training_args.do_train:
            check_batches(train_dataset, training_args.train_batch_size * devices, "per_device_train_batch_size")
        if training_args.do_eval:
            check_batches(eval_dataset, training_args.eval_batch_size * devices, "per_device_eval_batch_size")

    # Training. The learning rate grows with the batch.
    training_args.scale_learning_rate()
    trainer = ObjectiveTrainer(
        objective,
        training_args,
        train_dataset=train_dataset if training_args.do_train else None,
        eval_dataset=eval_dataset if training_args.do_eval else None,
        processing_class=processor,
        callbacks=[ContrastiveWatch()],
    )
    run_trainer(trainer, checkpoint, data_args)


def main() -> None:
    """Read the command line and train."""
    model_args, objective_args, data_args, augmentation_args, training_args = parse_arguments(
        (AutoencoderArguments, VicMaeArguments, PairArguments, PairAugmentationArguments, VicMaeTrainingArguments)
    )
    logging.set_verbosity(training_args.get_process_log_level())
    training_args.check_length(data_args.streaming)
    with open_run(training_args) as checkpoint:
        train(model_args, objective_args, data_args, augmentation_args, training_args, checkpoint)


if __name__ == "__main__":
    with clear_errors():
        main()
