"""Command lines of the example scripts: flags, or a recipe file with flags that override it."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser, PreTrainedConfig, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

logger = logging.get_logger(__name__)


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


def parse_arguments(dataclass_types: Sequence[Any], argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Read a command line: flags, or a JSON or YAML file followed by flags that win over it.

    Args:
        dataclass_types: Dataclasses whose fields are the flags, as for `HfArgumentParser`.
        argv: The command line without the program; `sys.argv[1:]` when left out.

    Returns:
        One instance of each dataclass.

    Raises:
        ValueError: If the file is missing, is no mapping, or sets something that is no argument.
    """
    parser = HfArgumentParser(dataclass_types)
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0].endswith((".json", ".yaml", ".yml")):
        recipe = Path(argv.pop(0))
        if not recipe.is_file():
            raise ValueError(f"The recipe {recipe} does not exist.")
        settings = yaml.safe_load(recipe.read_text())  # JSON is YAML
        if not isinstance(settings, dict):
            raise ValueError(f"The recipe {recipe} must map arguments to values.")
        if unknown := sorted(settings.keys() - {action.dest for action in parser._actions}):
            raise ValueError(f"The recipe {recipe} sets {', '.join(unknown)}, which this script does not know.")
        parser.set_defaults(**settings)
    return parser.parse_args_into_dataclasses(argv, look_for_args_file=False)


def parse_overrides(text: str | None, config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """Read changes to a configuration, "image_size=32,patch_size=[4,8]".

    Raises:
        ValueError: If the text is no list of changes, or sets what the configuration does not have.
    """
    try:
        # "a=1,b=[2,3]" is the inside of a YAML mapping but for the equals signs.
        changes = yaml.safe_load("{" + (text or "").replace("=", ": ") + "}")
    except yaml.YAMLError as error:
        raise ValueError(f'`config_overrides` must be like "image_size=32,patch_size=4", got {text!r}.') from error
    if unknown := sorted(changes.keys() - config_class.__dataclass_fields__.keys()):
        raise ValueError(f"`config_overrides` sets {', '.join(unknown)}, which the configuration does not have.")
    return changes


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


@contextmanager
def clear_errors() -> Iterator[None]:
    """End the program with one line on what was wrong with its input, instead of a traceback.

    The traceback is shown with the log level "debug". Errors from a data loader's worker process carry the worker's
    traceback in their text; its last line is "module.Error: message".
    """
    try:
        yield
    except (ValueError, StrictDataclassError) as error:
        logger.debug("Traceback of the error below", exc_info=True)
        message = str(error).strip()
        if "Traceback" in message:
            message = re.sub(r"^[\w.]+: ", "", message.splitlines()[-1].strip())
        sys.exit(f"error: {message}")
