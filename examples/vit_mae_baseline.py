#!/usr/bin/env python
# /// script
# dependencies = ["crate-mae-hf[train]"]
# ///
"""Pre-train a ViTMAE to compare with a CRATE-MAE: same width, depth, heads, images, crops, masks and steps.

    python examples/vit_mae_baseline.py outputs/demo --output_dir outputs/vit_mae [--seed 42]

The ViTMAE has the MLPs that CRATE-MAE does without, four times as wide as a token, and encodes visible patches only.
After an interruption the same command goes on from the last checkpoint.
"""

import argparse
from pathlib import Path
from typing import Any, cast

import yaml
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    HfArgumentParser,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    set_seed,
)

from crate_mae_hf import CrateMaeConfig
from crate_mae_hf.adapters import fill_vit_mae
from crate_mae_hf.cli import clear_errors
from crate_mae_hf.data.augmentation import AugmentationArguments, build_eval_transform, build_train_transform
from crate_mae_hf.data.images import DataArguments
from crate_mae_hf.data.masks import load_datasets
from crate_mae_hf.training.arguments import ScriptTrainingArguments
from crate_mae_hf.training.output_folder import open_run
from crate_mae_hf.training.run import run_trainer
from crate_mae_hf.training.trainer import SeededTrainer

EXAMPLES = Path(__file__).parent
DATA = EXAMPLES / "data" / "fashion_mnist_sample"
RECIPE = EXAMPLES / "recipes" / "fashion_mnist_sample.yaml"


def vit_mae_config(config: CrateMaeConfig) -> ViTMAEConfig:
    """Return the configuration of a ViTMAE of the shape of a CRATE-MAE."""
    return ViTMAEConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        num_channels=config.num_channels,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=4 * config.hidden_size,
        decoder_hidden_size=config.hidden_size,
        decoder_num_hidden_layers=cast(int, config.decoder_num_hidden_layers),
        decoder_num_attention_heads=cast(int, config.decoder_num_attention_heads),
        decoder_intermediate_size=4 * config.hidden_size,
        mask_ratio=config.mask_ratio,
        norm_pix_loss=config.norm_pix_loss,
    )


def train(
    crate_mae: Path,
    data_args: DataArguments,
    augmentation_args: AugmentationArguments,
    training_args: ScriptTrainingArguments,
    checkpoint: str | None,
) -> None:
    """Train a ViTMAE of the shape of a CRATE-MAE, and save it with its image processor."""
    config = AutoConfig.from_pretrained(crate_mae)
    processor = AutoImageProcessor.from_pretrained(crate_mae)
    set_seed(training_args.seed)
    model = ViTMAEForPreTraining(vit_mae_config(config))
    fill_vit_mae(model)
    train_transform = build_train_transform(
        processor, augmentation_args.min_crop_scale, augmentation_args.horizontal_flip
    )
    train_dataset, _ = load_datasets(
        data_args, config, train_transform, build_eval_transform(processor), training_args.seed
    )
    trainer = SeededTrainer(model=model, args=training_args, train_dataset=train_dataset, processing_class=processor)
    run_trainer(trainer, checkpoint, data_args)


def main() -> None:
    """Train by the recipe of the bundled sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crate_mae", type=Path, help="folder of the CRATE-MAE to compare with")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/vit_mae"), help="a new or empty folder")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    if not (args.crate_mae / "config.json").is_file():
        raise ValueError(f"`crate_mae`: there is no model in {args.crate_mae}; `make demo` leaves one in outputs/demo.")
    if (args.output_dir / "trainer_state.json").is_file():
        raise ValueError(f"`output_dir` {args.output_dir} holds a finished run: choose another folder, or delete it.")

    settings = yaml.safe_load(RECIPE.read_text())
    settings |= {"dataset_name": str(DATA), "output_dir": str(args.output_dir), "seed": args.seed}
    settings |= {"do_eval": False, "eval_strategy": "no"}  # Trainer cannot tell that ViTMAE's loss needs no labels
    settings |= {"resume_from_checkpoint": "auto"}
    arguments: Any = (DataArguments, AugmentationArguments, ScriptTrainingArguments)
    data_args, augmentation_args, training_args = HfArgumentParser(arguments).parse_dict(
        settings, allow_extra_keys=True
    )
    with open_run(training_args) as checkpoint:
        train(args.crate_mae, data_args, augmentation_args, training_args, checkpoint)


if __name__ == "__main__":
    with clear_errors():
        main()
