"""What checkpoints keep of a run, so that a resumed one reports what the unbroken one would."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

logger = logging.get_logger(__name__)


def mean_loss(log_history: Sequence[dict[str, Any]]) -> float | None:
    """Return the mean loss over all steps of a run, None where none was logged.

    Args:
        log_history: `log_history` of the trainer's state, whose entries each hold the mean since the one before.
    """
    total, last = 0.0, 0
    for entry in log_history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - last)
            last = entry["step"]
    return total / last if last else None


def user_cpu_seconds() -> float:
    """Return the user CPU seconds of this process and of all that it started: data loader workers, running or ended."""
    own = os.times()
    total = own.user + own.children_user  # of children that have ended
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            total += times.user + times.children_user
    return total


def read_settings(state: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run that decide its draws, off what a trainer_state.json holds."""
    return saved_attributes(state.get("stateful_callbacks", {})).get("settings", {})


def saved_attributes(stateful_callbacks: dict[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint has of [`RunRecord`]; nothing where it is older than that."""
    return stateful_callbacks.get(RunRecord.__name__, {}).get("attributes", {})


class RunRecord(TrainerCallback, ExportableState):
    """Keeps the time and the settings of a run in its checkpoints, and logs before each so that no loss is left out."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0  # of the run up to the checkpoint that it was resumed from
        self.started, self.cpu_started = time.perf_counter(), user_cpu_seconds()
        self.settings: dict[str, Any] = {}
        self.first_step = 0

    def elapsed(self) -> float:
        """Return how many seconds the run has taken, without what an interruption undid."""
        return self.seconds + time.perf_counter() - self.started

    def elapsed_cpu(self) -> float:
        """Return how many user CPU seconds the run has taken, as `elapsed`, and without what `uncounted` leaves out."""
        return self.cpu_seconds + user_cpu_seconds() - self.cpu_started

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Context manager: CPU seconds that are none of training."""
        before = user_cpu_seconds()
        try:
            yield
        finally:
            self.cpu_started += user_cpu_seconds() - before

    def state(self) -> dict[str, Any]:
        """Return what goes into a checkpoint."""
        times = {"seconds": self.elapsed(), "cpu_seconds": self.elapsed_cpu()}
        return {"args": {}, "attributes": {**times, "settings": self.settings}}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        kept: Any = state.stateful_callbacks  # a dictionary, whatever its type says
        saved = saved_attributes(kept) if state.global_step else {}
        is_stream = isinstance(getattr(train_dataloader, "dataset", None), torch.utils.data.IterableDataset)
        self.first_step = state.global_step
        self.seconds, self.started = saved.get("seconds", 0.0), time.perf_counter()
        self.cpu_seconds, self.cpu_started = saved.get("cpu_seconds", 0.0), user_cpu_seconds()
        self.settings = {"seed": args.seed}
        if is_stream:
            self.settings["dataloader_num_workers"] = args.dataloader_num_workers
        for name, value in saved.get("settings", {}).items():
            if name in self.settings and self.settings[name] != value:
                logger.warning(
                    f"`{name}` is {self.settings[name]}, and was {value} when the checkpoint was made: the images and "
                    "draws are not those of an unbroken run."
                )
        if is_stream and state.global_step and state.is_world_process_zero:
            logger.warning(
                "The stream begins anew: its images are not those of an unbroken run."
                if args.ignore_data_skip
                else "Reading the stream up to where the checkpoint was made; `--ignore_data_skip true` begins it anew."
            )
        kept[RunRecord.__name__] = self.state()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Called after Trainer's own flow. The loss since the last log is not part of a checkpoint.
        if control.should_save or control.should_evaluate or control.should_training_stop:
            control.should_log = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.on_step_end(args, state, control)
        if state.global_step == self.first_step > 0:
            control.should_save = False  # it is the checkpoint that the run was resumed from
