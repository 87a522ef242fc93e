"""Arguments of the scripts that train."""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


@dataclass
class ScriptTrainingArguments(TrainingArguments):
    """Transformers' training arguments, with the learning rate by the batch / 256 rule."""

    base_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of a batch of 256; wins over `learning_rate`."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Allow an output folder with contents; files of the same name are replaced."}
    )

    def scale_learning_rate(self) -> None:
        """Set `learning_rate` by `base_learning_rate`, where there is one, and the batch of all processes."""
        if self.base_learning_rate is not None:
            batch_size = self.train_batch_size * self.gradient_accumulation_steps * self.world_size
            self.learning_rate = self.base_learning_rate * batch_size / 256


def find_checkpoint(args: TrainingArguments, overwrite: bool) -> str | None:
    """Return the checkpoint to resume from, and refuse to train over the results of another run.

    Args:
        args: `output_dir` and `resume_from_checkpoint`, a folder or "true" for the last one in `output_dir`.
        overwrite: Whether an output folder with contents may be used without resuming.

    Raises:
        ValueError: If the output folder is not empty and neither was asked for, or there is nothing to resume from.
    """
    output_dir = Path(args.output_dir or "")
    wanted = args.resume_from_checkpoint
    if wanted and str(wanted).lower() != "true":
        if not Path(wanted).is_dir():
            raise ValueError(f"`resume_from_checkpoint`: there is no checkpoint {wanted}.")
        return str(wanted)
    if wanted:
        checkpoint = get_last_checkpoint(str(output_dir)) if output_dir.is_dir() else None
        if checkpoint is None:
            raise ValueError(f"`resume_from_checkpoint`: there is no checkpoint in {output_dir}.")
        return checkpoint
    if output_dir.is_dir() and any(output_dir.iterdir()) and not overwrite:
        raise ValueError(
            f"`output_dir` {output_dir} is not empty: continue its run with `--resume_from_checkpoint true`, choose "
            "another folder, or allow files in it to be replaced with `--overwrite_output_dir`."
        )
    return None
