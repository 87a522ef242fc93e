"""Command lines: flags, or a recipe file with flags that override it; errors in one clear line; output folders."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import HfArgumentParser, PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

# How PyTorch reports a file that it could not write.
FULL_DISK = ("PytorchStreamWriter", "No space left on device")


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


def check_output_dir(output_dir: Path, overwrite: bool) -> None:
    """Refuse to write into a folder that holds something already.

    Args:
        output_dir: The folder to write to; it need not exist.
        overwrite: Whether files in it may be replaced.

    Raises:
        ValueError: If the folder is not empty and nothing may be replaced.
    """
    if output_dir.is_dir() and any(output_dir.iterdir()) and not overwrite:
        raise ValueError(
            f"`output_dir` {output_dir} is not empty: choose another folder, or allow files in it to be replaced with "
            "`--overwrite_output_dir`."
        )


@contextmanager
def clear_errors() -> Iterator[None]:
    """Context manager: end the program with one line on what was wrong with its input, instead of a traceback.

    What was wrong may also be the disk, or that somebody pressed Ctrl-C. The traceback is shown with the log level
    "debug". Errors from a data loader's worker process carry the worker's traceback in their text; its last line is
    "module.Error: message".
    """
    try:
        yield
    except KeyboardInterrupt as error:
        sys.exit(str(error) or "interrupted")
    except StrictDataclassError as error:
        message = " ".join(str(error).split())  # which field, then why
    except (ValueError, OSError, SafetensorError) as error:
        message = str(error).strip()
    except RuntimeError as error:
        if not any(sign in str(error) for sign in FULL_DISK):
            raise
        message = f"the files could not be written: is the disk full? ({error})"
    else:
        return
    logger.debug("Traceback of the error below", exc_info=True)
    if "Traceback" in message:
        message = re.sub(r"^[\w.]+: ", "", message.splitlines()[-1].strip())
    sys.exit(f"error: {message}")
