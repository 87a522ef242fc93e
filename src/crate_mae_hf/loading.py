"""Loading what a user names, a folder or a repository on the Hub, with one clear error for whatever is wrong."""

from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

# What Transformers raises for files that are missing, damaged or of another kind.
FAILURES = (
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    StrictDataclassError,
    SafetensorError,
    UnpicklingError,
)
LFS_POINTER = b"version https://git-lfs"


def load(auto_class: Any, name: str | Path, argument: str = "model_name_or_path", **kwargs: Any) -> Any:
    """Call `auto_class.from_pretrained`.

    Args:
        auto_class: An Auto class or a class of models, configurations or image processors.
        name: Folder, or repository on the Hub.
        argument: Name of the argument that names it, for errors.
        **kwargs: As `from_pretrained` has them.

    Raises:
        ValueError: Naming argument, folder and reason, if that fails for any reason.
    """
    try:
        return auto_class.from_pretrained(name, **kwargs)
    except FAILURES as error:
        raise ValueError(f"`{argument}`: cannot load {name}: {_find_reason(Path(name), error)}") from error


def load_model(
    auto_class: Any,
    name: str | Path,
    argument: str = "model_name_or_path",
    with_head: bool = False,
    **kwargs: Any,
) -> Any:
    """Load a model whose encoder is complete; a head that is missing as a whole starts from fresh weights.

    Args:
        auto_class: As for `load`.
        name: As for `load`.
        argument: As for `load`.
        with_head: Whether the head (the decoder of an autoencoder) has to be there too.
        **kwargs: As `from_pretrained` has them.

    Raises:
        ValueError: As for `load`, and naming weights that are missing.
    """
    model, info = load(auto_class, name, argument, output_loading_info=True, **kwargs)
    missing = sorted(info["missing_keys"]) if with_head else find_missing_weights(model, info["missing_keys"])
    if missing:
        raise ValueError(
            f"`{argument}`: {name} lacks {len(missing)} weights of {type(model).__name__}, among them "
            f"{', '.join(missing[:3])}: they would be random."
        )
    return model


def find_missing_weights(model: PreTrainedModel, missing: Iterable[str]) -> list[str]:
    """Return the missing weights that a checkpoint should have had: those of the encoder, and of incomplete heads.

    Poolers count as heads.

    Args:
        model: The loaded model.
        missing: Names of weights that were not in the checkpoint.
    """
    missing = sorted(missing)
    is_base = model.base_model is model

    def part(name: str) -> str:
        return "pooler" if ".pooler." in f".{name}" else "" if is_base else name.split(".")[0]

    sizes: dict[str, int] = {}
    for name in model.state_dict():
        sizes[part(name)] = sizes.get(part(name), 0) + 1
    heads = {name for name in sizes if name not in ("", model.base_model_prefix)}
    fresh = {head for head in heads if sum(part(name) == head for name in missing) == sizes[head]}
    return [name for name in missing if part(name) not in fresh]


def _find_reason(folder: Path, error: Exception) -> str:
    """Say in one line why loading failed."""
    if not folder.is_dir():
        where = "it is a file, not a folder" if folder.exists() else "there is no such folder, and from the Hub"
        return f"{where}: {_first_line(error)}"
    if damaged := find_damaged_weights(folder):
        return damaged
    return _first_line(error)


def _first_line(error: Exception) -> str:
    if isinstance(error, StrictDataclassError):  # which field, then why
        return " ".join(str(error).split())
    text = str(error) if not isinstance(error, KeyError) else f"there is no {error}"
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)


def find_damaged_weights(folder: Path) -> str | None:
    """Say which file of weights in a folder cannot be opened, and why; None where all can."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
        size = path.stat().st_size
        if start == LFS_POINTER:
            return f"{path.name} is a pointer of Git LFS, not the weights: get them with `git lfs pull`."
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            state = "empty" if not size else f"damaged or cut short ({size} bytes; {error})"
            return f"{path.name} is {state}."
    return None
