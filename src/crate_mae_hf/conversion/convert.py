"""Official checkpoints to this package's layout and back, and what became of every weight."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from ..cli import check_new_folder
from ..configuration_crate import CrateEncoderConfig, ImageSize
from ..image_processing_crate_mae import CrateMaeImageProcessor
from ..loading import load
from ..registry import MODELS
from ..tables import text_table
from .checkpoints import list_keys, read_checkpoint
from .layouts import LAYOUTS, Layout, convert_key, find_layout, to_pattern


class KeyReport(NamedTuple):
    """What became of an official key, or of those that differ only in the number of their layer."""

    status: str
    official_key: str
    note: str
    tensors: int


def check_dimensions(state_dict: Mapping[str, torch.Tensor], layout: Layout) -> None:
    for key, ndim in layout.dimensions.items():
        if key not in state_dict or state_dict[key].ndim != ndim:
            raise ValueError(
                f"The checkpoint has no `{key}` with {ndim} dimensions: it is not one of {layout.name}; it has "
                f"{list_keys(state_dict)}."
            )


def compare_keys(state_dict: Mapping[str, torch.Tensor], layout: Layout, config: CrateEncoderConfig) -> list[KeyReport]:
    """Compare an official state dict with what a model of `config` needs.

    Returns:
        Rows with the status `"mapped"` (one for all layers together), `"added"`, `"dropped"`, `"missing"`, `"unknown"`
        or `"wrong shape"`.
    """
    with torch.device("meta"):
        model = layout.model_class(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    needed = {convert_key(name, layout.official_keys): shape for name, shape in shapes.items()}
    rows: Counter[tuple[str, str, str]] = Counter()
    for key in dict.fromkeys([*needed, *state_dict]):
        pattern = to_pattern(key)
        if why := layout.why_unused(key):
            row = "dropped", pattern, why
        elif key in layout.added:
            row = "added", key, layout.added[key]
        elif key not in needed:
            row = "unknown", key, f"not a weight of {layout.name} of this size"
        elif key not in state_dict:
            row = "missing", key, f"needed for {convert_key(key, layout.keys)}"
        elif tuple(state_dict[key].shape) != needed[key]:
            row = "wrong shape", key, f"got {tuple(state_dict[key].shape)}, needs {needed[key]}"
        else:
            row = "mapped", pattern, layout.keys[pattern]
        rows[row] += 1
    return [KeyReport(*row, tensors) for row, tensors in rows.items()]


def format_report(report: Sequence[KeyReport]) -> str:
    """Return the report as a table, what needs attention at its end."""
    order = ("mapped", "added", "dropped", "missing", "unknown", "wrong shape")
    header = ("status", "official key", "ours, or why", "tensors")
    rows = sorted(report, key=lambda row: order.index(row.status))
    return text_table([dict(zip(header, row, strict=True)) for row in rows])


def convert_checkpoint(
    checkpoint: str | Path, output_dir: str | Path, *, image_size: ImageSize | None = None, **settings: Any
) -> list[KeyReport]:
    """Convert an official checkpoint to a folder that the Auto classes load.

    The weights keep their values and their dtype; the image processor is saved beside them.

    Args:
        checkpoint: Official `.pth`, `.npz` or `.safetensors` file, see `read_checkpoint`.
        output_dir: Folder to write; must not exist or be empty.
        image_size: For supervised CRATE and CRATE-alpha: the image size of the converted model, by interpolating the
            positions; the checkpoint's own when left out.
        **settings: What a checkpoint does not hold: `size` or `num_attention_heads`, and the other arguments of
            `read_crate_mae_config` for CRATE-MAE, of `read_crate_config` for supervised CRATE, of
            `read_crate_alpha_config` for CRATE-alpha.

    Returns:
        What became of every key.

    Raises:
        ValueError: If the checkpoint cannot be read, is of another model, lacks a key, has an unknown one or a wrong
            shape, if a setting is not one of its model, or if there is something in `output_dir` already.
    """
    output_dir = Path(output_dir)
    check_new_folder(output_dir)
    state_dict = read_checkpoint(Path(checkpoint))
    layout = find_layout(state_dict)
    given = {name: value for name, value in {"image_size": image_size, **settings}.items() if value is not None}
    for name in layout.refused:
        if name in given:
            raise ValueError(
                f"`{name}` does not go with a checkpoint of {layout.name}: leave it out, got {given[name]}."
            )
    check_dimensions(state_dict, layout)
    config = layout.read_config(state_dict, **settings)
    state_dict = layout.prepare(state_dict)
    report = compare_keys(state_dict, layout, config)
    if any(row.status not in ("mapped", "added", "dropped") for row in report):
        raise ValueError(
            f"{checkpoint} does not fit {layout.name}, nothing was written; see the end of this table.\n\n"
            + format_report(report)
        )
    with torch.device("meta"):
        model = layout.model_class(config)
    weights = {convert_key(key, layout.keys): v for key, v in state_dict.items() if not layout.why_unused(key)}
    model.load_state_dict(weights, assign=True)
    if image_size is not None:
        cast(Any, model).set_image_size(image_size)
    with written_beside(output_dir) as partial:
        model.save_pretrained(partial)
        CrateMaeImageProcessor.from_config(cast(CrateEncoderConfig, model.config)).save_pretrained(partial)
    return report


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Context manager: the path to write to in place of `path`, where the finished file or folder is put at the end.

    A run that fails leaves nothing in the way of the next one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        partial = Path(folder) / path.name
        yield partial
        if path.is_dir():
            path.rmdir()  # an empty one
        partial.rename(path)


def revert_checkpoint(folder: str | Path, checkpoint: str | Path) -> None:
    """Write a checkpoint of this package as an official one, which the official code loads strictly.

    The official CRATE-MAE also has weights that it never uses. They are written so that they would do nothing if they
    were: `pos_embed` is the one position table, `decoder_embed` the identity.

    Args:
        folder: Folder of a [`CrateMaeForPreTraining`], [`CrateForImageClassification`] or
            [`CrateAlphaForImageClassification`].
        checkpoint: File to write: `.safetensors` with a bare state dict, anything else a PyTorch file with the state
            dict under `model`, but for CRATE-alpha, whose official code wants it bare.

    Raises:
        ValueError: If the folder holds no complete model of these classes, the official code has no such model, or the
            file exists.
    """
    folder, checkpoint = Path(folder), Path(checkpoint)
    if checkpoint.exists():
        raise ValueError(f"`checkpoint` must be a new file, {checkpoint} exists already.")
    if not (folder / "config.json").is_file():
        raise ValueError(f"`folder` must be one written by `save_pretrained`, {folder} has no config.json.")
    model_type = load(AutoConfig, folder, "folder").model_type
    layouts = {layout.config_class.model_type: layout for layout in reversed(LAYOUTS)}
    if model_type not in layouts:
        names = " or ".join(MODELS[known].name for known in layouts)
        raise ValueError(f"`folder` must hold a {names} model, {folder} has one of type {model_type!r}.")
    layout = layouts[model_type]
    model, info = load(layout.model_class, folder, "folder", output_loading_info=True)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"`folder` must hold {layout.saved_model}, {folder} lacks {len(missing)} weights such as `{missing[0]}`."
        )
    for name, value in layout.fixed.items():
        if (found := getattr(model.config, name)) != value:
            raise ValueError(
                f"`folder` must hold a model with `{name}={value}`, as the official code has it, not {found}."
            )
    state_dict = {convert_key(name, layout.official_keys): value for name, value in model.state_dict().items()}
    state_dict = layout.complete(state_dict)
    with written_beside(checkpoint) as partial:
        if checkpoint.suffix == ".safetensors":
            save_file(state_dict, partial)
        else:
            torch.save(state_dict if layout.is_bare else {"model": state_dict}, partial)
