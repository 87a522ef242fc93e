"""The Trainer of the example scripts."""

from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ..data.seeded import SeededDataset


class NonFiniteLossError(ValueError):
    """The loss became infinite or no number; the message says when and what to try."""


class SeedCallback(TrainerCallback):
    """Masks and augmentation that differ between epochs and between ranks.

    Transformers seeds all ranks alike, so that what the model draws would be the same on each. Here every rank gets
    a seed of its own, and a [`SeededDataset`] is told the epoch.
    """

    def __init__(self, train_dataset: Any):
        self.train_dataset = train_dataset

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        torch.manual_seed(args.seed + args.process_index)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if isinstance(self.train_dataset, SeededDataset):
            self.train_dataset.set_epoch(int(round(state.epoch or 0, 6)))


class SeededTrainer(Trainer):
    """Transformers' Trainer, with new draws in every epoch and rank, and a stop at the first non-finite loss."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_callback(SeedCallback(self.train_dataset))

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):  # before the optimizer's step, so that the weights are still good
            checkpoint = get_last_checkpoint(self.args.output_dir)
            saved = f"The last checkpoint is {checkpoint}." if checkpoint else "No checkpoint was saved before."
            raise NonFiniteLossError(
                f"The loss became {loss.item()} in step {self.state.global_step + 1}. Try a lower learning rate, more "
                "warm-up, a smaller `max_grad_norm`, or float32 or bf16 instead of fp16, and look for images with "
                f"extreme values. {saved}"
            )
        return loss


class MaskedAutoencoderTrainer(SeededTrainer):
    """Trainer of [`CrateMaeForPreTraining`]: in training it computes the loss alone, without visible patches."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if not return_outputs:
            inputs = {**inputs, "return_logits": False}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
