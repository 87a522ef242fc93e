#!/usr/bin/env python
# /// script
# dependencies = ["crate-mae-hf[train]"]
# ///
"""Pre-train a ViTMAE to compare with a CRATE-MAE: the same images, patches and CPU seconds, its own recipe.

    python examples/vit_mae_baseline.py outputs/demo --output_dir outputs/vit_mae [--seed 42] [--learning_rate 2e-3 ...]

The folder of the CRATE-MAE says how many CPU seconds its training took. A short trial, which is thrown away, says how
many a step of the ViTMAE takes; so many steps as fit are the length of its training. Settings come from
recipes/vit_mae_fashion_mnist_sample.yaml, and flags after the folder win over it; `--max_steps` sets the length itself.
After an interruption the same command goes on from the last checkpoint, to the length of its first start.
"""

import argparse
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    set_seed,
)

from crate_mae_hf import CrateMaeConfig
from crate_mae_hf.adapters import fill_vit_mae
from crate_mae_hf.cli import clear_errors, parse_arguments, parse_overrides
from crate_mae_hf.data.augmentation import AugmentationArguments, build_eval_transform, build_train_transform
from crate_mae_hf.data.images import DataArguments
from crate_mae_hf.data.masks import load_datasets
from crate_mae_hf.evaluation.reconstruction import masked_error
from crate_mae_hf.training.arguments import ScriptTrainingArguments
from crate_mae_hf.training.checkpoints import read_state
from crate_mae_hf.training.output_folder import open_run
from crate_mae_hf.training.record import user_cpu_seconds
from crate_mae_hf.training.run import run_trainer
from crate_mae_hf.training.trainer import SeededTrainer

RECIPE = Path(__file__).parent / "recipes" / "vit_mae_fashion_mnist_sample.yaml"
TRIAL_STEPS, FIRST_STEPS = 60, 10  # of the trial, and those of them that are not counted


@dataclass
class VitMaeArguments:
    """What ViTMAE to train."""

    config_overrides: str | None = field(default=None, metadata={"help": 'Its shape, as "hidden_size=192,...".'})
    mask_ratio: float = field(default=0.75, metadata={"help": "Share of the patches to mask."})
    norm_pix_loss: bool = field(default=True, metadata={"help": "Normalise the targets patch by patch."})


class StepClock(TrainerCallback):
    """Measures the CPU seconds of a step, the first ones not counted."""

    def __init__(self) -> None:
        self.times: dict[int, float] = {}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.times[state.global_step] = user_cpu_seconds()

    def seconds_per_step(self) -> float:
        """Return the mean over the steps that count."""
        return (self.times[TRIAL_STEPS] - self.times[FIRST_STEPS]) / (TRIAL_STEPS - FIRST_STEPS)


def training_cpu_seconds(folder: Path) -> float:
    """Return how many CPU seconds a training took.

    Raises:
        ValueError: If the folder does not say so.
    """
    path = folder / "all_results.json"
    seconds = json.loads(path.read_text()).get("train_cpu_seconds") if path.is_file() else None
    if not seconds:
        raise ValueError(
            f"`crate_mae`: there is no finished training in {folder} that says its `train_cpu_seconds`; `make demo` "
            "leaves one in outputs/demo."
        )
    return seconds


def build_model(args: VitMaeArguments, config: CrateMaeConfig, seed: int) -> ViTMAEForPreTraining:
    """Return a ViTMAE with fresh weights for the images and patches of a CRATE-MAE.

    Raises:
        ValueError: If it is to have others.
    """
    shared = {name: getattr(config, name) for name in ("image_size", "patch_size", "num_channels")}
    changes = parse_overrides(args.config_overrides, ViTMAEConfig)
    if own := sorted(shared.keys() & changes.keys()):
        raise ValueError(f"`config_overrides` sets {', '.join(own)}, which must be that of the CRATE-MAE.")
    set_seed(seed)
    changes |= {"mask_ratio": args.mask_ratio, "norm_pix_loss": args.norm_pix_loss}
    model = ViTMAEForPreTraining(ViTMAEConfig(**shared, **changes))
    fill_vit_mae(model)
    return model


def affordable_steps(model: ViTMAEForPreTraining, args: ScriptTrainingArguments, train: Any, budget: float) -> int:
    """Return how many steps fit into so many CPU seconds, by a trial whose model is thrown away."""
    clock = StepClock()
    with TemporaryDirectory() as folder:
        trial = replace(
            args,
            output_dir=folder,
            max_steps=TRIAL_STEPS,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            push_to_hub=False,
        )
        SeededTrainer(model=model, args=trial, train_dataset=train, callbacks=[clock]).train()
    per_step = clock.seconds_per_step()
    steps = max(1, int(budget / per_step))
    print(f"The CRATE-MAE trained for {budget:.1f} CPU seconds; at {per_step:.4f} each these are {steps} steps.")
    return steps


def train(
    crate_mae: Path,
    model_args: VitMaeArguments,
    data_args: DataArguments,
    augmentation_args: AugmentationArguments,
    args: ScriptTrainingArguments,
    checkpoint: str | None,
) -> None:
    """Train a ViTMAE for the CPU seconds of a CRATE-MAE, save it with its image processor, and measure its error."""
    budget = training_cpu_seconds(crate_mae)
    config, processor = AutoConfig.from_pretrained(crate_mae), AutoImageProcessor.from_pretrained(crate_mae)
    transform = build_train_transform(processor, augmentation_args.min_crop_scale, augmentation_args.horizontal_flip)
    images, held_out = load_datasets(data_args, config, transform, build_eval_transform(processor), args.seed)
    args.scale_learning_rate()
    if args.max_steps <= 0 and checkpoint is not None:
        args.max_steps = read_state(Path(checkpoint))["max_steps"]
    elif args.max_steps <= 0:
        args.max_steps = affordable_steps(build_model(model_args, config, args.seed), args, images, budget)
    model = build_model(model_args, config, args.seed)
    trainer = SeededTrainer(model=model, args=args, train_dataset=images, processing_class=processor)
    run_trainer(trainer, checkpoint, data_args)
    error = masked_error(model, held_out, args.per_device_eval_batch_size)
    trainer.save_metrics("eval", {"eval_masked_error": error, "eval_mask_ratio": model.config.mask_ratio})
    print(f"Masked error on {len(held_out)} held-out images: {error:.4f} at mask ratio {model.config.mask_ratio}")
    spent = training_cpu_seconds(Path(str(args.output_dir)))
    print(f"CPU seconds of training: {budget:.1f} of the CRATE-MAE, {spent:.1f} of the ViTMAE")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crate_mae", type=Path, help="folder of the CRATE-MAE to compare with; flags follow it")
    known, flags = parser.parse_known_args()
    model_args, data_args, augmentation_args, args = parse_arguments(
        (VitMaeArguments, DataArguments, AugmentationArguments, ScriptTrainingArguments), [str(RECIPE), *flags]
    )
    if not (known.crate_mae / "config.json").is_file():
        raise ValueError(
            f"`crate_mae`: there is no model in {known.crate_mae}; `make demo` leaves one in outputs/demo."
        )
    if (Path(args.output_dir) / "eval_results.json").is_file():
        raise ValueError(f"`output_dir` {args.output_dir} holds a finished run: choose another folder, or delete it.")
    with open_run(args) as checkpoint:
        train(known.crate_mae, model_args, data_args, augmentation_args, args, checkpoint)


if __name__ == "__main__":
    with clear_errors():
        main()
