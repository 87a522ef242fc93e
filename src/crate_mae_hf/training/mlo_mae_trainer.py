"""The Trainer of MLO-MAE: two steps of the autoencoder, one of the head, one of the masking network, and again."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..objectives.mlo_mae import MloMae
from .levels import Level, endless_batches
from .objective_trainer import ObjectiveTrainer, TermMeans
from .trainer import NonFiniteLossError

# Steps of level I per step of the others.
STEPS_PER_CYCLE = 2
# Optimizers and schedules of the upper levels, in a checkpoint.
LEVELS = "levels.pt"


def check_arguments(args: TrainingArguments) -> None:
    """Refuse what differences cannot be taken with: they shift all weights in place, a little, and compare.

    Raises:
        ValueError: With several processes, FSDP, DeepSpeed, compilation or fp16.
    """
    reasons = {
        "several processes (DDP)": (args.world_size > 1, "whose copies of the weights would not follow"),
        "FSDP": (bool(args.fsdp), "of whose shards no process can shift the whole"),
        "DeepSpeed": (bool(args.deepspeed), "which keeps the weights to itself"),
        "`torch_compile`": (args.torch_compile, "whose graphs are made anew as weights begin and cease to train"),
        "`fp16`": (
            args.fp16,
            "whose rounding is as large as the differences; `bf16` serves level I, and level I alone",
        ),
    }
    for name, (is_on, reason) in reasons.items():
        if is_on:
            raise ValueError(
                f"MLO-MAE shifts the weights in place for its hypergradient: it cannot use {name}, {reason}."
            )


class CycleCallback(TrainerCallback):
    """Has the upper levels trained at the end of each cycle, before anything is logged, saved or evaluated."""

    def __init__(self, trainer: "MloMaeTrainer"):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.start_batches(state.global_step // STEPS_PER_CYCLE)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % STEPS_PER_CYCLE == 0:
            self.trainer.end_cycle()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.batches = {}  # with their workers


class MloMaeTrainer(ObjectiveTrainer):
    """Trainer of [`MloMae`]: the cycle I, I, II, III. Its steps are those of level I.

    Each level changes its own weights alone. Trainer's optimizer has the autoencoder's; head and masking network have
    optimizers of the same kind and schedules of the same shape, over half as many steps. Weight decay is on all
    weights, biases and norms too, as the authors' runs have it. Level III takes the images of the last step of level I,
    those of level II, and images that level II never sees.

    Without learned masks (`MloMae.masks`) there is level I alone.

    Args:
        model: The objective.
        args: As Trainer has them.
        *others: As Trainer has them.
        finetune_dataset: Labelled images for level II, by (epoch, index), see `SeededDataset`.
        validation_dataset: The same for level III.
        head_learning_rate: Learning rate of level II.
        mask_learning_rate: Learning rate of level III.
        **kwargs: As Trainer has them.

    Raises:
        ValueError: If the weights are in half precision, or with what `check_arguments` refuses.
    """

    def __init__(
        self,
        model: MloMae,
        args: TrainingArguments,
        *others: Any,
        finetune_dataset: Dataset | None = None,
        validation_dataset: Dataset | None = None,
        head_learning_rate: float = 1e-3,
        mask_learning_rate: float = 1e-3,
        **kwargs: Any,
    ):
        check_arguments(args)
        if dtypes := {str(weight.dtype) for weight in model.parameters() if weight.dtype.itemsize < 4}:
            raise ValueError(
                f"MLO-MAE takes small differences: its weights must be in float32, got {', '.join(dtypes)}."
            )
        model.head.requires_grad_(False)  # Trainer's optimizer and the clipping of its gradients are of level I
        model.masking.requires_grad_(False)
        super().__init__(model, args, *others, **kwargs)
        self.datasets = {"head": finetune_dataset, "masking": validation_dataset}
        self.learning_rates = {"head": head_learning_rate, "masking": mask_learning_rate}
        self.levels: dict[str, Level] = {}
        self.batches: dict[str, Iterator[dict[str, torch.Tensor]]] = {}
        self.last_batch: dict[str, torch.Tensor] = {}
        self.cycle_terms = TermMeans()
        self.add_callback(CycleCallback(self))

    @property
    def mlo_mae(self) -> MloMae:
        """What is trained."""
        return cast(MloMae, self.model)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return [name for name, _ in model.named_parameters()]

    # The levels

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        if self.mlo_mae.masks == "learned":
            num_cycles = max(num_training_steps // STEPS_PER_CYCLE, 1)
            self.levels = {
                name: Level(self.mlo_mae.get_submodule(name), rate, self.args, num_cycles, STEPS_PER_CYCLE)
                for name, rate in self.learning_rates.items()
            }
        return super().create_scheduler(num_training_steps, optimizer)

    def start_batches(self, cycle: int) -> None:
        """Begin with the batches of a cycle."""
        missing = [name for name in self.levels if self.datasets[name] is None]
        if missing:
            raise ValueError("`finetune_dataset` and `validation_dataset` are needed to learn masks.")
        self.batches = {
            name: endless_batches(cast(Dataset, self.datasets[name]), self.args, cycle) for name in self.levels
        }

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if model.training:
            self.last_batch = inputs
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    @contextmanager
    def _upper_weights_train(self) -> Iterator[None]:
        """Context manager: the weights of the upper levels take gradients."""
        for name in self.levels:
            self.mlo_mae.get_submodule(name).requires_grad_(True)
        try:
            yield
        finally:
            for name in self.levels:
                self.mlo_mae.get_submodule(name).requires_grad_(False)

    def end_cycle(self) -> None:
        """Train the head by one step, then the masking network by one."""
        if not self.levels:
            return
        objective = self.mlo_mae
        finetuning, validation = (self._prepare_inputs(next(self.batches[name])) for name in ("head", "masking"))
        with self._upper_weights_train():
            with torch.no_grad():
                features = objective.features(finetuning["pixel_values"])
            finetune_loss = objective.head_loss(features, finetuning["labels"])
            self._check("II", finetune_loss)
            self.levels["head"].step(torch.autograd.grad(finetune_loss, self.levels["head"].parameters))
            gradients, validation_loss = objective.mask_gradient(self.last_batch, finetuning, validation)
            norm = nn.utils.get_total_norm(gradients)
            self._check("III", norm)
            self.levels["masking"].step(gradients)
        terms = {"finetune_loss": finetune_loss, "validation_loss": validation_loss, "mask_grad_norm": norm}
        self.cycle_terms.add(terms, 1)

    def _check(self, level: str, value: torch.Tensor) -> None:
        """Raise NonFiniteLossError, before the level's step, where its loss or gradient is not finite."""
        if not torch.isfinite(value):
            raise NonFiniteLossError(
                f"Level {level} became {value.item()} after step {self.state.global_step}. Try lower learning rates, "
                "and `freeze_ranking`."
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self.cycle_terms.pop(self)
            for name, level in self.levels.items():
                logs[f"{name}_learning_rate"] = level.scheduler.get_last_lr()[0]
        super().log(logs, start_time)

    # Saving and loading

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        torch.save({name: level.state_dict() for name, level in self.levels.items()}, Path(output_dir) / LEVELS)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / LEVELS
        saved = torch.load(path, map_location=self.args.device, weights_only=True) if os.path.isfile(path) else {}
        if saved.keys() != self.levels.keys():
            theirs, ours = (", ".join(levels) or "nothing" for levels in (saved, self.levels))
            raise ValueError(
                f"`resume_from_checkpoint`: beside the autoencoder {checkpoint} has {theirs}, and this run trains "
                f"{ours}: `masks` must be the same."
            )
        for name, level in self.levels.items():
            level.load_state_dict(saved[name])
