"""Command lines: flags, or a recipe file with flags that override it; errors in one clear line; output folders."""

import argparse
import errno
import json
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import HfArgumentParser, PreTrainedConfig
from transformers.hf_argparser import string_to_bool
from transformers.utils import logging

logger = logging.get_logger(__name__)

# How a full disk is reported by Python, safetensors, and PyTorch, which knows no more than that it could not write.
DISK_FULL = re.compile("No space left|Disk quota|PytorchStreamWriter|file write failed|iostream error|unexpected pos")


class _RecipeLoader(yaml.SafeLoader):
    """YAML in which a key that is set twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"{key} is set twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return mapping


def _check_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; a key that is set twice is an error."""
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise ValueError(f"{key} is set twice")
        mapping[key] = value
    return mapping


def read_recipe(recipe: Path) -> dict[str, Any]:
    """Read a JSON or YAML file that maps arguments to values.

    Raises:
        ValueError: If it is no such file; names the file and, where it can, the line.
    """
    if not recipe.is_file():
        raise ValueError(f"The recipe {recipe} does not exist.")
    try:
        text = recipe.read_text(encoding="utf-8")
        if recipe.suffix == ".json":
            settings = json.loads(text, object_pairs_hook=_check_pairs)
        else:
            settings = yaml.load(text, _RecipeLoader)  # constructs what `safe_load` does
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"The recipe {recipe}{line}: {error.problem}.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"The recipe {recipe}, line {error.lineno}: {error.msg}.") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"The recipe {recipe}: {' '.join(str(error).split())}.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"The recipe {recipe} must map arguments to values.")
    return settings


def _convert(value: Any, hint: Any) -> Any:
    """Return a value of a recipe in the type of an argument.

    Raises:
        ValueError: If it has another type.
    """
    origin, members = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        for member in sorted(members, key=lambda member: member is str):  # anything may be written as text
            with suppress(ValueError):
                return _convert(value, member)
    elif origin is list and isinstance(value, list):
        return [_convert(item, members[0]) if members else item for item in value]
    elif origin is bool and isinstance(value, (bool, str)):
        with suppress(argparse.ArgumentTypeError):
            return string_to_bool(value)
    elif origin in (int, float) and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with suppress(ValueError):
            number = float(value)  # YAML takes 1e-3 for text
            if origin is float:
                return number
            if number.is_integer():
                return value if isinstance(value, int) else int(number)
    elif origin is str and isinstance(value, (str, int, float, date)):
        return str(value).lower() if isinstance(value, bool) else str(value)
    elif origin not in (list, bool, int, float, str) and (not isinstance(origin, type) or isinstance(value, origin)):
        return value
    raise ValueError(f"it must be {hint.__name__ if isinstance(hint, type) else hint}")


def convert_settings(recipe: Path, settings: Mapping[str, Any], parser: HfArgumentParser) -> dict[str, Any]:
    """Return what a recipe sets in the types of the arguments.

    Raises:
        ValueError: If it sets something that is no argument, or to what the argument cannot be.
    """
    hints = {name: hint for kind in parser.dataclass_types for name, hint in get_type_hints(kind).items()}
    choices = {action.dest: action.choices for action in parser._actions if action.choices}
    known = {action.dest for action in parser._actions}
    if unknown := sorted(str(name) for name in settings if name not in known):
        raise ValueError(f"The recipe {recipe} sets {', '.join(unknown)}, which this script does not know.")
    converted = {}
    for name, value in settings.items():
        allowed = [str(choice) for choice in choices.get(name) or ()]
        try:
            if allowed and value is False and "no" in allowed:
                value = "no"  # which YAML takes for false
            converted[name] = _convert(value, hints[name])
            values = converted[name] if isinstance(converted[name], list) else [converted[name]]
            if allowed and not all(item is None or str(item) in allowed for item in values):
                raise ValueError(f"it must be one of {', '.join(allowed)}")
        except ValueError as error:
            raise ValueError(f"The recipe {recipe} sets `{name}` to {value!r}: {error}.") from error
    return converted


def drop_alternatives(settings: dict[str, Any], flags: Collection[str], dataclass_types: Sequence[Any]) -> None:
    """Drop from a recipe what flags say in another way, see `parse_arguments`."""
    for kind in dataclass_types:
        groups: Mapping[tuple[str, ...], tuple[str, ...]] = getattr(kind, "alternatives", {})
        for names, details in groups.items():
            others = {name for other in groups if other != names for name in other}
            if others & set(flags) and settings.keys() & set(names):
                for name in (*names, *details):
                    settings.pop(name, None)


def parse_arguments(dataclass_types: Sequence[Any], argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Read a command line: flags, or a JSON or YAML file followed by flags that win over it.

    A dataclass may have `alternatives`: groups of fields of which one is needed, each with further fields that describe
    it. A flag of one group drops from the recipe the other groups and what describes them.

    Args:
        dataclass_types: Dataclasses whose fields are the flags, as for `HfArgumentParser`.
        argv: The command line without the program; `sys.argv[1:]` when left out.

    Returns:
        One instance of each dataclass.

    Raises:
        ValueError: If the file is missing, is no mapping, sets something that is no argument, or to a value of another
            type.
    """
    parser = HfArgumentParser(dataclass_types)
    argv = list(sys.argv[1:] if argv is None else argv)
    settings: dict[str, Any] = {}
    if argv and argv[0].endswith((".json", ".yaml", ".yml")):
        recipe = Path(argv.pop(0))
        settings = convert_settings(recipe, read_recipe(recipe), parser)
    given = HfArgumentParser(dataclass_types, add_help=False)
    for action in given._actions:
        action.default = argparse.SUPPRESS
    flags = vars(given.parse_known_args(argv)[0])
    drop_alternatives(settings, flags.keys(), dataclass_types)
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
    """Refuse to write into a folder that cannot be written to, or holds something already.

    Args:
        output_dir: The folder to write to; it need not exist.
        overwrite: Whether files in it may be replaced.

    Raises:
        ValueError: If the folder cannot be made or written to, or it is not empty and nothing may be replaced.
    """
    existing = next(path for path in (output_dir, *output_dir.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"`output_dir` {output_dir} cannot be written to: {existing} is no folder.")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"`output_dir` {output_dir} cannot be written to: {existing} is read-only for this user.")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not overwrite:
        raise ValueError(
            f"`output_dir` {output_dir} is not empty: choose another folder, or allow files in it to be replaced with "
            "`--overwrite_output_dir`."
        )


def check_new_folder(output_dir: Path) -> None:
    """Refuse to write into a folder that holds something, or into a file.

    Raises:
        ValueError: If there is something.
    """
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"`output_dir` must be a new or an empty folder, {output_dir} is not.")


def is_disk_full(error: BaseException) -> bool:
    """Whether a checkpoint could not be written because the disk is full, as far as the error tells."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in full or bool(DISK_FULL.search(str(error)))


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
        if not is_disk_full(error):
            raise
        message = f"the files could not be written: is the disk full? ({error})"
    else:
        return
    logger.debug("Traceback of the error below", exc_info=True)
    if "Traceback" in message:
        message = re.sub(r"^[\w.]+: ", "", message.splitlines()[-1].strip())
    sys.exit(f"error: {message}")
