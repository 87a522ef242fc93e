"""The output folder of a run: one run at a time, begun in an empty folder or gone on with, and how it may end."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ..cli import is_disk_full
from .arguments import ScriptTrainingArguments
from .checkpoints import STATE, find_fault, last_complete_checkpoint, list_checkpoints

# Names with an underscore are not pushed to the Hub. The owner's name is kept beside the lock, which other systems do
# not let one read.
LOCK, OWNER, PREVIOUS = "_run.lock", "_run.owner", "_previous_runs"
# What Trainer writes about a run, beside the model.
RESULTS = (STATE, "all_results.json", "train_results.json", "eval_results.json")


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Context manager: have an output folder for one run alone, also against other machines where the disk allows it.

    The system gives the lock back when the process ends, however it ends.

    Raises:
        ValueError: If another run has the folder, or nothing can be written there.
    """
    lock, owner = FileLock(folder / LOCK), folder / OWNER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    except Timeout as error:
        name = owner.read_text() if owner.is_file() else "a process of unknown number"
        raise ValueError(
            f"`output_dir` {folder} is in use by another run, {name}: wait for its end, or choose another folder."
        ) from error
    except OSError as error:
        lock.release()
        raise ValueError(f"`output_dir` {folder} cannot be written to: {error.strerror or error}.") from error
    try:
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def find_checkpoint(args: ScriptTrainingArguments) -> Path | None:
    """Return the checkpoint to resume from, and refuse to train over the results of another run.

    Args:
        args: `output_dir`, `overwrite_output_dir`, and `resume_from_checkpoint`: a folder, "true" for the last complete
            one in `output_dir`, or "auto" for that one if there is any.

    Raises:
        ValueError: If there is nothing to resume from, or the output folder holds something else and
            `overwrite_output_dir` does not allow it.
    """
    output_dir, wanted = Path(str(args.output_dir)), args.resume_from_checkpoint
    word = str(wanted).lower() if wanted else None
    checkpoint = None
    if word in ("true", "auto"):
        checkpoint = last_complete_checkpoint(output_dir)
        if checkpoint is None and word == "true":
            raise ValueError(
                f"`resume_from_checkpoint`: there is no complete checkpoint in {output_dir}; begin anew without this "
                "flag, and with `--overwrite_output_dir` where the folder is not empty."
            )
    elif wanted:
        checkpoint = Path(wanted)
        if not checkpoint.is_dir():
            raise ValueError(f"`resume_from_checkpoint`: there is no checkpoint {wanted}.")
        if fault := find_fault(checkpoint):
            raise ValueError(
                f"`resume_from_checkpoint`: a run cannot go on from {wanted}: {fault}. Its weights can begin a new run "
                "with `--model_name_or_path`."
            )
    if args.overwrite_output_dir or (checkpoint is not None and checkpoint.resolve().parent == output_dir.resolve()):
        return checkpoint
    begun = {LOCK, OWNER, PREVIOUS}
    if word == "auto":  # nor is what an interrupted run without a complete checkpoint leaves a result
        begun |= {"runs", "masks", *(path.name for path in list_checkpoints(output_dir).values())}
    if any(path.name not in begun for path in output_dir.iterdir()):
        ways = "choose another folder."
        if word != "auto":
            ways = (
                "continue its run with `--resume_from_checkpoint true`, choose another folder, or allow files in it to "
                "be replaced with `--overwrite_output_dir`."
            )
        raise ValueError(f"`output_dir` {output_dir} is not empty: {ways}")
    return checkpoint


def move_previous(output_dir: Path, checkpoint: str | None) -> None:
    """Move what a run does not go on from out of its way, into a folder of its own, so that no later run resumes it.

    These are checkpoints behind the one to resume from, complete or not; without one, or with one from elsewhere, all
    checkpoints, and the results.

    Args:
        output_dir: Output folder of the run.
        checkpoint: The checkpoint to resume from.
    """
    checkpoints = list_checkpoints(output_dir)
    goes_on = checkpoint is not None and Path(checkpoint).resolve().parent == output_dir.resolve()
    if goes_on:
        step = next(step for step, path in checkpoints.items() if path.name == Path(str(checkpoint)).name)
        previous = [path for other, path in checkpoints.items() if other > step]
    else:
        results = [output_dir / name for name in RESULTS]
        previous = [*checkpoints.values(), *(path for path in results if path.exists())]
    if not previous:
        return
    folder = output_dir / PREVIOUS
    folder.mkdir(exist_ok=True)
    number = 1 + max((int(path.name) for path in folder.glob("*") if path.name.isdecimal()), default=0)
    (folder / str(number)).mkdir()
    for path in previous:
        path.rename(folder / str(number) / path.name)


def describe_rest(args: ScriptTrainingArguments) -> str:
    """Return how to go on with a run that was cut off."""
    checkpoint = last_complete_checkpoint(Path(str(args.output_dir)))
    if checkpoint is None:
        return "There is no complete checkpoint yet: begin anew."
    if str(args.resume_from_checkpoint).lower() == "auto":
        return f"The same command goes on from {checkpoint}."
    return f"The same command with `--resume_from_checkpoint true` goes on from {checkpoint}."


@contextmanager
def open_run(args: ScriptTrainingArguments) -> Iterator[str | None]:
    """Context manager: have the output folder for this run; gives the checkpoint to resume from, None to begin anew.

    Being interrupted and a full disk end the program with one line that says how to go on.

    Raises:
        ValueError: If the folder cannot be written to, is in use, or holds what must not be replaced; if there is
            nothing to resume from; or if the disk is full.
    """
    with ExitStack() as stack:
        decision: list[str | None] = [None, None]  # of the first process for all: checkpoint, or what is wrong
        if args.process_index == 0:
            try:
                stack.enter_context(lock_folder(Path(str(args.output_dir))))
                found = find_checkpoint(args)
                decision[0] = None if found is None else str(found)
            except ValueError as error:
                decision[1] = str(error)
        checkpoint, problem = broadcast_object_list(decision)
        if problem is not None:
            raise ValueError(problem)
        try:
            yield checkpoint
        except KeyboardInterrupt:
            if args.process_index == 0:
                print(f"\nInterrupted. {describe_rest(args)}", file=sys.stderr)
            sys.exit(130)  # as shells have it
        except (OSError, RuntimeError, SafetensorError) as error:
            if not is_disk_full(error):
                raise
            raise ValueError(
                f"The disk is full ({error}), the run in {args.output_dir} was broken off: make room. "
                f"{describe_rest(args)}"
            ) from error
