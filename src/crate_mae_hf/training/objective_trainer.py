"""The Trainer of objectives: what is saved is the autoencoder, what is logged are the terms of the loss."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from ..objectives.objective import Objective
from .trainer import SeededTrainer


class TermMeans:
    """Means of the terms of a loss over batches, and over processes."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.count = 0

    def add(self, outputs: Mapping[str, torch.Tensor], count: int) -> None:
        """Add the terms of a batch: every single number but the loss itself; `count` is the batch's weight."""
        for name, value in outputs.items():
            if name != "loss" and value.ndim == 0:
                self.sums[name] = self.sums.get(name, 0) + count * value.detach().float()
        self.count += count

    def pop(self, trainer: Trainer) -> dict[str, float]:
        """Return the means, and begin anew; to be called in all processes together."""
        sums, count, self.sums, self.count = self.sums, self.count, {}, 0
        if not sums:
            return {}
        totals = torch.stack([*sums.values(), torch.tensor(count).to(next(iter(sums.values())))])
        *terms, weight = trainer.accelerator.reduce(totals, "sum").tolist()
        return {name: term / weight for name, term in zip(sums, terms, strict=True)}


class ProgressCallback(TrainerCallback):
    """Tells the objective which share of the training is over."""

    def __init__(self, objective: Objective):
        self.objective = objective

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.objective.progress.fill_(state.global_step / state.max_steps)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.objective.progress.fill_(1)


class ObjectiveTrainer(SeededTrainer):
    """Trainer of an [`Objective`].

    Every folder that it writes, checkpoints too, is one of the autoencoder, as if that had been the model, with the
    rest of the objective in a file beside it. Each log has the terms of the loss by name.

    Args:
        model: The objective.
        *args: As Trainer has them.
        **kwargs: As Trainer has them.

    Raises:
        ValueError: With FSDP or DeepSpeed, which write checkpoints of their own, and with several GPUs in one process.
    """

    # The loss is a mean over the batch: Trainer has to divide it by the accumulation steps itself.
    loss_is_scaled_for_ga = False

    def __init__(self, model: Objective, *args: Any, **kwargs: Any):
        super().__init__(model, *args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("FSDP and DeepSpeed cannot train an objective, of which they would not save the parts.")
        if self.args.n_gpu > 1:
            raise ValueError("An objective needs a process for each GPU: start the script with `torchrun`.")
        self.can_return_loss, self.label_names = True, []  # in evaluation too, with labels or without
        self.terms: defaultdict[bool, TermMeans] = defaultdict(TermMeans)  # of training, and of evaluation
        self.add_callback(ProgressCallback(model))

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        vectors = {name for name, parameter in model.named_parameters() if parameter.ndim == 1}  # of batch norms too
        return [name for name in super().get_decay_parameter_names(model) if name not in vectors]

    # Terms

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        outputs = model(**inputs)
        self.terms[model.training].add(outputs, len(next(iter(inputs.values()))))
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self.terms[True].pop(self)
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        terms = {f"{prefix}_{name}": mean for name, mean in self.terms[False].pop(self).items()}
        return output._replace(metrics={**(output.metrics or {}), **terms})

    # Saving and loading

    @contextmanager
    def _autoencoder_as_model(self) -> Iterator[Objective]:
        """Context manager: the model is the autoencoder alone; gives the objective."""
        objective = cast(Objective, self.model)
        self.model = objective.autoencoder
        try:
            yield objective
        finally:
            self.model = objective

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        with self._autoencoder_as_model() as objective:
            super()._save(output_dir)
        if self.args.should_save:
            objective.save_rest(str(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with self._autoencoder_as_model() as objective:
            objective.load_rest(resume_from_checkpoint)  # first: it tells the checkpoint of another run
            super()._load_from_checkpoint(resume_from_checkpoint)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        with self._autoencoder_as_model():
            super().create_model_card(*args, **kwargs)
