"""Arguments of the scripts that train."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


@dataclass
class ModelArguments:
    """Which model to train: a checkpoint, a configuration, or a new one that the script's own arguments describe."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A checkpoint to start from."})
    config_name: str | None = field(default=None, metadata={"help": "A configuration to start from, without weights."})
    config_overrides: str | None = field(
        default=None, metadata={"help": 'Changes to the configuration, as "image_size=32,patch_size=4".'}
    )
    image_processor_name: str | None = field(default=None, metadata={"help": "An image processor to use."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the checkpoint."})
    token: str | None = field(default=None, metadata={"help": "Access token for the Hub."})

    @property
    def config_source(self) -> str | None:
        """Where the configuration comes from; None for a new one."""
        return self.config_name or self.model_name_or_path

    def hub_access(self) -> dict[str, Any]:
        """Return what every `from_pretrained` is called with."""
        return {"revision": self.model_revision, "token": self.token}


@dataclass
class ScriptTrainingArguments(TrainingArguments):
    """Transformers' training arguments, with a learning rate that may grow with the batch: base rate * batch / 256."""

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
