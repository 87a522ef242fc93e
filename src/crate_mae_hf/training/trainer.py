"""The Trainer of the example scripts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.augmentation import build_normalization
from ..data.seeded import SeededDataset
from .checkpoints import last_complete_checkpoint
from .record import RunRecord, mean_loss


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
    """Transformers' Trainer, with new draws in every epoch and rank, and a stop at the first non-finite loss.

    A resumed run is the unbroken one: it stops at the same step, and its loss and time are those of the whole run. Its
    metrics have `train_cpu_seconds`: user CPU seconds of this process and its data loader workers, without those of
    evaluations in between.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_callback(SeedCallback(self.train_dataset))
        self.add_callback(RunRecord())

    @property
    def record(self) -> RunRecord:
        """What checkpoints keep of the run."""
        return next(each for each in self.callback_handler.callbacks if isinstance(each, RunRecord))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.record.uncounted():
            return super().evaluate(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # Trainer takes names of weights as they stand in the file, and would leave out those of a ViT or ViTMAE:
        # Transformers 5.23 saves these under their former names, which `from_pretrained` knows.
        is_whole = not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
        if is_whole and isinstance(self.model, PreTrainedModel):
            loaded = type(self.model).from_pretrained(resume_from_checkpoint)
            self.model.load_state_dict(loaded.state_dict())
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        if self.state.global_step >= self.state.max_steps:  # Trainer asks only after a step, as when it has resumed
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_loss" in logs:  # Trainer's summary counts the loss and the time since it has resumed
            del logs["train_loss"]
            if (loss := mean_loss(self.state.log_history)) is not None:
                logs["train_loss"] = loss
            logs["train_runtime"] = round(self.record.elapsed(), 4)
            logs["train_cpu_seconds"] = round(self.record.elapsed_cpu(), 4)
        super().log(logs, start_time)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # what is written next says that the checkpoint is complete

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):  # before the optimizer's step, so that the weights are still good
            checkpoint = last_complete_checkpoint(Path(str(self.args.output_dir)))
            saved = f"The last checkpoint is {checkpoint}." if checkpoint else "No checkpoint was saved before."
            raise NonFiniteLossError(
                f"The loss became {loss.item()} in step {self.state.global_step + 1}. {self.find_cause(inputs)} {saved}"
            )
        return loss

    def find_cause(self, inputs: dict[str, Any]) -> str:
        """Say why the loss of a batch is not finite, or what to try where that cannot be seen."""
        pixel_values = inputs.get("pixel_values")
        if pixel_values is not None and not pixel_values.isfinite().all():
            return (
                "The images themselves are not finite: look at `image_mean` and `image_std` of the image processor, "
                "and at the images."
            )
        weights = cast(nn.Module, self.model).named_parameters()
        broken = [name for name, weight in weights if not weight.isfinite().all()]
        if broken and self.state.global_step == self.record.first_step:
            return (
                f"The model was not finite from the start: {len(broken)} of its weights are not, among them "
                f"{broken[0]}. The checkpoint that it comes from is damaged, or its training had failed."
            )
        return (
            "Try a lower learning rate, more warm-up, a smaller `max_grad_norm`, or float32 or bf16 instead of fp16, "
            "and look for images with extreme values."
        )


class MaskedAutoencoderTrainer(SeededTrainer):
    """Trainer of [`CrateMaeForPreTraining`]: in training it computes the loss alone, without visible patches.

    Images that come in 8 bits are normalised on the device, by the settings of the image processor.
    """

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        if inputs["pixel_values"].dtype == torch.uint8:
            inputs["pixel_values"] = build_normalization(self.processing_class)(inputs["pixel_values"])
        return inputs

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
