"""The upper levels of a multi-level training: each has weights, an optimizer, a schedule and batches of its own."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate
from transformers import Trainer, TrainingArguments, get_scheduler

from ..data.seeded import EndlessBatches


class Level:
    """What one level owns, and how it is trained: by the Trainer's kind of optimizer and schedule.

    Args:
        module: Whose weights it owns.
        learning_rate: Its learning rate.
        args: What else optimizer and schedule depend on.
        num_steps: Number of steps of this level in the whole training.
        steps_apart: Steps of the Trainer per step of this level; a number of warm-up steps is in the former.
    """

    def __init__(
        self, module: nn.Module, learning_rate: float, args: TrainingArguments, num_steps: int, steps_apart: int
    ):
        self.parameters = list(module.parameters())
        self.max_grad_norm = args.max_grad_norm
        optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(args)
        group = {"params": self.parameters, "weight_decay": args.weight_decay}
        self.optimizer = optimizer_class([group], **{**settings, "lr": learning_rate})
        self.scheduler = get_scheduler(
            args.lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=math.ceil(args.get_warmup_steps(num_steps * steps_apart) / steps_apart),
            num_training_steps=num_steps,
            scheduler_specific_kwargs=cast(Any, args.lr_scheduler_kwargs),
        )

    def step(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """Descend by these gradients, clipped as the Trainer's; return their norm before that."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm or math.inf)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return what a run goes on from."""
        return {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` has returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


def endless_batches(dataset: Dataset, args: TrainingArguments, start: int) -> Iterator[dict[str, torch.Tensor]]:
    """Return batches of a dataset without an end, a function of the seed and their number.

    Args:
        dataset: Items by (epoch, index), see `SeededDataset`.
        args: Give batch size, seed and data loader workers.
        start: Number of the first batch.
    """
    batches = EndlessBatches(len(dataset), args.train_batch_size, args.seed, start)  # type: ignore[arg-type]
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=default_collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        generator=torch.Generator().manual_seed(args.seed),  # of workers' seeds: nobody else's draws may move
    )
    return iter(loader)
