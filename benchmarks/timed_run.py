"""One run with a clock, in the process that it has for itself, which `time_program` starts."""

import argparse
import json
import os
import resource
import runpy
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
import transformers.trainer
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from benchmarks.measure import keep_freed_memory, resident_memory, synchronize
from crate_mae_hf import CrateMaeForPreTraining
from crate_mae_hf.cli import parse_arguments
from crate_mae_hf.data.augmentation import AugmentationArguments, build_eval_transform, build_train_transform
from crate_mae_hf.data.images import DataArguments
from crate_mae_hf.data.masks import load_datasets
from crate_mae_hf.training.arguments import MaeModelArguments, MaeTrainingArguments
from crate_mae_hf.training.models import build_autoencoder, build_image_processor

ROOT = Path(__file__).parents[1]
BARE_LOOP = "bare_loop"  # instead of a script


def time_program(
    program: str, flags: Sequence[Any], first: int, last: int, device: str = "cpu", keep: bool = False
) -> dict[str, float]:
    """Run a program in a process of its own, and return what it took between the ends of two steps, and peak memory.

    Args:
        program: Name of an example script, or [`BARE_LOOP`].
        flags: Its command line.
        first: The last step that does not count.
        last: The last step that does.
        device: Device that trains.
        keep: Keep freed memory.
    """
    with TemporaryDirectory() as folder:
        clock = Path(folder) / "clock.json"
        command = [sys.executable, "-m", "benchmarks.timed_run", program, "--clock_file", clock]
        command += ["--clock_steps", first, last, "--clock_device", device, *(["--keep"] if keep else []), *flags]
        done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"error: {program} failed:\n{done.stderr}")
        record: dict[str, float] = json.loads(clock.read_text())
    return record


def cpu_seconds() -> float:
    """CPU seconds of this process and of all that it started; those of the system too, where page faults count."""
    total = sum(os.times()[:4])  # with children that have ended
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            total += times.user + times.system
    return total


def read_clocks() -> dict[str, float]:
    """What a run has taken up to now; the system's seconds and the page faults are those of this process alone."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": time.perf_counter(),
        "cpu_seconds": cpu_seconds(),
        "system_seconds": own.ru_stime,
        "page_faults": own.ru_minflt,
    }


class StepClock(TrainerCallback):
    """Reads the clocks at the ends of two steps, so that neither start nor end of the run counts.

    Args:
        first: The last step that does not count.
        last: The last step that does.
        device: Device that trains.
    """

    def __init__(self, first: int, last: int, device: str):
        self.first, self.last, self.device = first, last, device
        self.readings: dict[int, dict[str, float]] = {}

    def read(self, step: int) -> None:
        if step in (self.first, self.last):
            synchronize(self.device)
            self.readings[step] = read_clocks()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.read(state.global_step)

    def elapsed(self) -> dict[str, float]:
        """Return what the steps that count have taken."""
        start, end = self.readings[self.first], self.readings[self.last]
        return {name: end[name] - start[name] for name in end}


def run_bare_loop(clock: StepClock, flags: list[str]) -> None:
    """Train as run_mae.py does with the same flags, by PyTorch alone."""
    model_args, data_args, augmentation_args, args = parse_arguments(
        (MaeModelArguments, DataArguments, AugmentationArguments, MaeTrainingArguments), flags
    )
    set_seed(args.seed)
    model = build_autoencoder(model_args, CrateMaeForPreTraining).to(args.device).train()
    processor = build_image_processor(model_args, model.config, augmentation_args)
    transform = build_train_transform(processor, augmentation_args.min_crop_scale, augmentation_args.horizontal_flip)
    images, _ = load_datasets(data_args, model.config, transform, build_eval_transform(processor), args.seed)
    loader = DataLoader(
        images,
        args.train_batch_size,
        shuffle=True,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
    )
    optimizer = torch.optim.AdamW(model.parameters(), args.learning_rate, weight_decay=args.weight_decay, fused=True)
    for step, batch in zip(range(1, args.max_steps + 1), loader, strict=False):
        inputs = {name: value.to(args.device, non_blocking=True) for name, value in batch.items()}
        model(**inputs, return_logits=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        clock.read(step)


def main() -> None:
    """Run a script with its flags, or the bare loop, and write what the clock has read."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("program", help=f"name of an example script, or {BARE_LOOP}")
    parser.add_argument("--clock_file", type=Path, required=True)
    parser.add_argument("--clock_steps", nargs=2, type=int, required=True, help="two steps, at whose ends it is read")
    parser.add_argument("--clock_device", required=True)
    parser.add_argument("--keep", action="store_true", help="keep freed memory")
    args, flags = parser.parse_known_args()
    if args.keep:
        keep_freed_memory()
    first, last = args.clock_steps
    clock = StepClock(first, last, args.clock_device)
    if args.program == BARE_LOOP:
        run_bare_loop(clock, flags)
    else:
        callbacks: list[Any] = transformers.trainer.DEFAULT_CALLBACKS
        callbacks.append(clock)  # the only way to a Trainer that a script makes
        sys.argv = [args.program, *flags]
        runpy.run_path(str(ROOT / "examples" / args.program), run_name="__main__")
    args.clock_file.write_text(json.dumps({**clock.elapsed(), "peak_memory_mib": resident_memory("VmHWM")}))


if __name__ == "__main__":
    main()
