"""Checkpoints of the official code (github.com/Ma-Lab-Berkeley/CRATE) to this package's layout, and back.

CRATE-MAE or supervised CRATE: a checkpoint's keys tell which.

python -m crate_mae_hf.conversion CHECKPOINT OUT_DIR --size base
python -m crate_mae_hf.conversion FOLDER CHECKPOINT --reverse
"""

import argparse
import json
import math
import pickle
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import PIL.Image
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import PreTrainedModel

from .configuration_crate import CrateConfig, CrateEncoderConfig, ImageSize
from .configuration_crate_mae import CrateMaeConfig
from .crate_patches import sincos_position_table
from .image_processing_crate_mae import CrateMaeImageProcessor
from .modeling_crate import CrateForImageClassification
from .modeling_crate_mae import CrateMaeForPreTraining


class Layout(NamedTuple):
    """How the official code stores a model."""

    name: str
    model_class: type[PreTrainedModel]
    keys: Mapping[str, str]  # official -> ours; `{i}` is the number of a layer
    unused: Mapping[str, str]  # official keys that its forward never reads, and why
    refused: tuple[str, ...]  # settings that the other model has

    @property
    def official_keys(self) -> dict[str, str]:
        """Our keys -> official ones."""
        return {ours: official for official, ours in self.keys.items()}


# The rest of a key in an encoder layer.
LAYER_KEYS = {
    "0.norm.weight": "layernorm_before.weight",
    "0.norm.bias": "layernorm_before.bias",
    "0.fn.qkv.weight": "mssa.subspace_proj.weight",
    "0.fn.to_out.0.weight": "mssa.o_proj.weight",
    "0.fn.to_out.0.bias": "mssa.o_proj.bias",
    "1.norm.weight": "layernorm_after.weight",
    "1.norm.bias": "layernorm_after.bias",
    "1.fn.weight": "ista.dictionary",
}
CRATE_MAE = Layout(
    name="CRATE-MAE",
    model_class=CrateMaeForPreTraining,
    keys={
        "cls_token": "crate_mae.embeddings.cls_token",
        "mask_token": "crate_mae.embeddings.mask_token",
        "decoder_pos_embed": "crate_mae.embeddings.position_embeddings",
        "patch_embed.proj.weight": "crate_mae.embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "crate_mae.embeddings.patch_embeddings.projection.bias",
        **{f"blocks.{{i}}.layers.0.{key}": f"crate_mae.layers.{{i}}.{ours}" for key, ours in LAYER_KEYS.items()},
        "norm.weight": "crate_mae.layernorm.weight",
        "norm.bias": "crate_mae.layernorm.bias",
        "decoder_blocks.{i}.layers.0.0.norm.weight": "decoder.layers.{i}.layernorm_before.weight",
        "decoder_blocks.{i}.layers.0.0.norm.bias": "decoder.layers.{i}.layernorm_before.bias",
        "decoder_blocks.{i}.layers.0.0.fn.weight": "decoder.layers.{i}.dictionary",
        "decoder_blocks.{i}.layers.0.1.norm.weight": "decoder.layers.{i}.layernorm_after.weight",
        "decoder_blocks.{i}.layers.0.1.norm.bias": "decoder.layers.{i}.layernorm_after.bias",
        "decoder_blocks.{i}.layers.0.1.fn.qkv.weight": "decoder.layers.{i}.mssa.subspace_proj.weight",
        "decoder_blocks.{i}.layers.0.1.fn.to_out.0.weight": "decoder.layers.{i}.mssa.o_proj.weight",
        "decoder_blocks.{i}.layers.0.1.fn.to_out.0.bias": "decoder.layers.{i}.mssa.o_proj.bias",
        "decoder_norm.weight": "decoder.layernorm.weight",
        "decoder_norm.bias": "decoder.layernorm.bias",
        "decoder_pred.weight": "decoder.prediction_head.weight",
        "decoder_pred.bias": "decoder.prediction_head.bias",
    },
    unused={
        "pos_embed": "never read: the encoder adds `decoder_pos_embed`",
        "decoder_embed.weight": "never called: encoder and decoder have one width",
        "decoder_embed.bias": "never called: encoder and decoder have one width",
    },
    refused=("image_size", "num_channels"),
)
CRATE = Layout(
    name="supervised CRATE",
    model_class=CrateForImageClassification,
    keys={
        "cls_token": "crate.embeddings.cls_token",
        "pos_embedding": "crate.embeddings.position_embeddings",
        "to_patch_embedding.1.weight": "crate.embeddings.patch_embeddings.layernorm_before.weight",
        "to_patch_embedding.1.bias": "crate.embeddings.patch_embeddings.layernorm_before.bias",
        "to_patch_embedding.2.weight": "crate.embeddings.patch_embeddings.projection.weight",
        "to_patch_embedding.2.bias": "crate.embeddings.patch_embeddings.projection.bias",
        "to_patch_embedding.3.weight": "crate.embeddings.patch_embeddings.layernorm_after.weight",
        "to_patch_embedding.3.bias": "crate.embeddings.patch_embeddings.layernorm_after.bias",
        **{f"transformer.layers.{{i}}.{key}": f"crate.layers.{{i}}.{ours}" for key, ours in LAYER_KEYS.items()},
        "mlp_head.0.weight": "classifier.0.weight",
        "mlp_head.0.bias": "classifier.0.bias",
        "mlp_head.1.weight": "classifier.1.weight",
        "mlp_head.1.bias": "classifier.1.bias",
    },
    unused={},
    refused=("decoder_num_attention_heads", "mask_ratio", "norm_pix_loss"),
)
LAYOUTS = {CrateMaeConfig.model_type: CRATE_MAE, CrateConfig.model_type: CRATE}
LAYER = re.compile(r"(?<=blocks\.|layers\.)\d+")
# Keys that betray another kind of checkpoint: what it is, and what to do.
FOREIGN = {
    r"^crate(_mae)?\.": "is in this package's layout already: load it with `from_pretrained`, or add --reverse",
    r"^transformer\.layers\.\d+\.\d\.(fn\.)?(to_qkv|net)\.": "is a ViT in the layout of vit-pytorch, not a CRATE",
    r"^(decoder_)?blocks\.\d+\.(attn|mlp)\.": (
        "is a ViT or ViTMAE in the layout of MAE or timm: convert it with Transformers' own script for ViTMAE"
    ),
    r"^(vit|vit_mae|encoder|embeddings)\.": (
        "is a model in the layout of Transformers, such as ViTMAE: load it with `from_pretrained` of its own class"
    ),
}
LAMBDA_FILE = "lambda_comparison.json"


class KeyReport(NamedTuple):
    """What became of an official key, or of those that differ only in the number of their layer."""

    status: str
    official_key: str
    note: str
    tensors: int


def convert_key(key: str, keys: Mapping[str, str]) -> str:
    """Return our name of an official key with `Layout.keys`, the official name of ours with `Layout.official_keys`.

    Raises:
        ValueError: If the official code has no such key, or never uses it.
    """
    layer = LAYER.search(key)
    pattern = to_pattern(key)
    if pattern not in keys:
        raise ValueError(f"`{key}` is not a weight that the official code uses.")
    return keys[pattern].format(i=layer[0] if layer else "")


def to_pattern(key: str) -> str:
    """Replace the number of the layer by `{i}`, as the key tables have it."""
    return LAYER.sub("{i}", key, count=1)


def find_layout(state_dict: Mapping[str, torch.Tensor]) -> Layout:
    """Tell by its keys of which model an official state dict is."""
    prefixes = ("to_patch_embedding.", "transformer.", "mlp_head.")
    return CRATE if any(key.startswith(prefixes) for key in state_dict) else CRATE_MAE


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Read an official state dict, bare or under `model` or `state_dict`, without `module.` prefixes.

    Nothing in the file is run: pickles are read with `weights_only=True`.

    Raises:
        ValueError: If the file is missing, damaged, holds more than tensors and plain values, or is of another model.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"`checkpoint` must be a .pth or .safetensors file, {path} {found}.")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            # Training scripts in the manner of MAE store their command line beside the weights.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise ValueError(
                f"{path} holds Python objects that may run code when loaded ({code[1]}), so it was not loaded. If you "
                "trust where it comes from, save its state dict alone and convert that: "
                "`torch.save(torch.load(path, weights_only=False)['model'], new_path)`."
            ) from error
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as a {path.suffix or 'PyTorch'} file: it is damaged, "
            "cut short, or a web page or pointer in place of the file. Download it again."
        ) from error
    for name in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(v, torch.Tensor) for v in content.values())
    ):
        raise ValueError(
            f"{path} holds no state dict: it must be a mapping from names to tensors, bare or under `model` or "
            "`state_dict`."
        )
    state_dict = {key.removeprefix("module."): value for key, value in content.items()}
    for pattern, message in FOREIGN.items():
        if any(re.search(pattern, key) for key in state_dict):
            raise ValueError(f"{path} {message}.")
    return state_dict


def read_grid_size(position_table: torch.Tensor) -> tuple[int, int]:
    """Return the (rows, columns) of the patch grid whose sine-cosine table, `(1, rows * columns + 1, d)`, this is.

    Raises:
        ValueError: If it is the table of no grid.
    """
    num_patches, hidden_size = position_table.shape[1] - 1, position_table.shape[2]
    for rows in range(1, num_patches + 1):
        grid_size = (rows, num_patches // rows)
        if num_patches % rows == 0:
            # Generous enough for half precision; the tables of two grids differ by much more.
            difference = sincos_position_table(hidden_size, grid_size) - position_table.float()
            if difference.abs().max() < 1e-2:
                return grid_size
    raise ValueError(
        f"`decoder_pos_embed` must be the fixed sine-cosine table of a patch grid, got another one for {num_patches} "
        "patches."
    )


def read_config(
    state_dict: Mapping[str, torch.Tensor],
    size: str | None = None,
    num_attention_heads: int | None = None,
    decoder_num_attention_heads: int | None = None,
    **settings: Any,
) -> CrateMaeConfig:
    """Return the configuration of an official checkpoint of CRATE-MAE; sizes are read off its tensors.

    Args:
        state_dict: Official state dict.
        size: Published size, `"tiny"`, `"small"`, `"base"` or `"large"`; gives the numbers of heads.
        num_attention_heads: Number of heads of the encoder. One head has no output projection and needs no telling.
        decoder_num_attention_heads: The same for the decoder; the encoder's when left out.
        **settings: Other arguments of [`CrateMaeConfig`] that a checkpoint does not hold, such as `ista_lambda`.

    Raises:
        ValueError: If the checkpoint lacks a tensor that tells the sizes, they contradict `size`, or heads are untold.
    """
    check_dimensions(state_dict, CRATE_MAE, {"patch_embed.proj.weight": 4, "decoder_pos_embed": 3})
    hidden_size, num_channels, *patch_size = state_dict["patch_embed.proj.weight"].shape
    position_table = state_dict["decoder_pos_embed"]
    if position_table.shape[2] != hidden_size or hidden_size % 4:
        raise ValueError(
            f"`decoder_pos_embed` and `patch_embed.proj.weight` must have one width, a multiple of 4, got "
            f"{position_table.shape[2]} and {hidden_size}."
        )
    sizes: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_hidden_layers": count_layers(state_dict, "blocks"),
        "decoder_num_hidden_layers": count_layers(state_dict, "decoder_blocks"),
    }
    published_heads = check_size(size, CrateMaeConfig, sizes)
    default = published_heads if num_attention_heads is None else num_attention_heads
    for name, given, projection in (
        ("num_attention_heads", num_attention_heads, "blocks.0.layers.0.0.fn.to_out.0.weight"),
        ("decoder_num_attention_heads", decoder_num_attention_heads, "decoder_blocks.0.layers.0.1.fn.to_out.0.weight"),
    ):
        sizes[name] = infer_heads(name, given, default, has_projection=projection in state_dict)
    grid_size = read_grid_size(position_table)
    return CrateMaeConfig(
        num_channels=num_channels,
        patch_size=simplify(patch_size),
        image_size=simplify([n * patch for n, patch in zip(grid_size, patch_size, strict=True)]),
        **sizes,
        **settings,
    )


def read_crate_config(
    state_dict: Mapping[str, torch.Tensor],
    size: str | None = None,
    num_attention_heads: int | None = None,
    num_channels: int = 3,
    **settings: Any,
) -> CrateConfig:
    """Return the configuration of an official checkpoint of supervised CRATE, for square images and patches.

    Args:
        state_dict: Official state dict.
        size: Published size; gives the number of heads.
        num_attention_heads: Number of heads. One head has no output projection and needs no telling.
        num_channels: Number of image channels; with it the length of a flattened patch tells the patch size.
        **settings: Other arguments of [`CrateConfig`] that a checkpoint does not hold, such as `ista_lambda`.

    Raises:
        ValueError: If the checkpoint lacks a tensor that tells the sizes, they contradict `size`, heads are untold, or
            patches or images are no squares.
    """
    check_dimensions(state_dict, CRATE, {"to_patch_embedding.2.weight": 2, "pos_embedding": 3, "mlp_head.1.weight": 2})
    hidden_size, num_values = state_dict["to_patch_embedding.2.weight"].shape
    num_patches = state_dict["pos_embedding"].shape[1] - 1
    patch_side, grid_side = math.isqrt(num_values // max(num_channels, 1)), math.isqrt(num_patches)
    if patch_side**2 * num_channels != num_values:
        raise ValueError(
            f"`num_channels` must be such that the {num_values} values of a patch are a square in each channel, got "
            f"{num_channels}."
        )
    if grid_side**2 != num_patches:
        raise ValueError(f"`pos_embedding` must be that of a square grid of patches, got {num_patches} patches.")
    sizes: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_hidden_layers": count_layers(state_dict, "transformer.layers"),
    }
    default = check_size(size, CrateConfig, sizes)
    sizes["num_labels"] = len(state_dict["mlp_head.1.weight"])
    has_projection = "transformer.layers.0.0.fn.to_out.0.weight" in state_dict
    return CrateConfig(
        num_attention_heads=infer_heads("num_attention_heads", num_attention_heads, default, has_projection),
        num_channels=num_channels,
        patch_size=patch_side,
        image_size=grid_side * patch_side,
        **sizes,
        **settings,
    )


def check_dimensions(state_dict: Mapping[str, torch.Tensor], layout: Layout, ndims: Mapping[str, int]) -> None:
    for key, ndim in ndims.items():
        if key not in state_dict or state_dict[key].ndim != ndim:
            raise ValueError(f"The checkpoint has no `{key}` with {ndim} dimensions: it is not one of {layout.name}.")


def count_layers(state_dict: Mapping[str, torch.Tensor], prefix: str) -> int:
    layers = [int(match[1]) for key in state_dict if (match := re.match(rf"{prefix}\.(\d+)\.", key))]
    return max(layers, default=-1) + 1


def check_size(size: str | None, config_class: type[CrateEncoderConfig], found: Mapping[str, int]) -> int | None:
    """Return the heads of a published size after comparing it with what was found; `None` without a size."""
    if size is None:
        return None
    published = config_class.from_size(size)
    for name, value in found.items():
        if getattr(published, name) != value:
            raise ValueError(
                f"`size` {size!r} has `{name}` {getattr(published, name)}, the checkpoint has {value}: choose "
                "another, or leave it out and pass `num_attention_heads`."
            )
    return published.num_attention_heads


def infer_heads(name: str, given: int | None, default: int | None, has_projection: bool) -> int:
    """Return the number of heads: as given, else 1 without output projection, else the default."""
    num_heads = given if given is not None else default if has_projection else 1
    if num_heads is None:
        raise ValueError(
            f"`{name}` cannot be read off a checkpoint: pass it, or `size` ({', '.join(CrateEncoderConfig.sizes)})."
        )
    return num_heads


def simplify(size: Sequence[int]) -> int | list[int]:
    """Return a (height, width) pair as one number where it is a square."""
    return size[0] if size[0] == size[1] else list(size)


def compare_keys(state_dict: Mapping[str, torch.Tensor], layout: Layout, config: CrateEncoderConfig) -> list[KeyReport]:
    """Compare an official state dict with what a model of `config` needs.

    Returns:
        Rows with the status `"mapped"` (one for all layers together), `"dropped"`, `"missing"`, `"unknown"` or
        `"wrong shape"`.
    """
    with torch.device("meta"):
        model = layout.model_class(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    needed = {convert_key(name, layout.official_keys): shape for name, shape in shapes.items()}
    rows: Counter[tuple[str, str, str]] = Counter()
    for key in dict.fromkeys([*needed, *state_dict]):
        pattern = to_pattern(key)
        if key in layout.unused:
            row = "dropped", key, layout.unused[key]
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


def format_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return rows of text in aligned columns under a header."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def format_report(report: Sequence[KeyReport]) -> str:
    """Return the report as a table, what needs attention at its end."""
    order = ("mapped", "dropped", "missing", "unknown", "wrong shape")
    rows = sorted(report, key=lambda row: order.index(row.status))
    return format_table(("status", "official key", "ours, or why", "tensors"), rows)


def convert_checkpoint(
    checkpoint: str | Path, output_dir: str | Path, *, image_size: ImageSize | None = None, **settings: Any
) -> list[KeyReport]:
    """Convert an official checkpoint to a folder that the Auto classes load.

    The weights keep their values and their dtype; the image processor is saved beside them.

    Args:
        checkpoint: Official `.pth` or `.safetensors` file, see `read_checkpoint`.
        output_dir: Folder to write; must not exist or be empty.
        image_size: For supervised CRATE: the image size of the converted model, by interpolating the positions; the
            checkpoint's own when left out.
        **settings: What a checkpoint does not hold: `size` or `num_attention_heads`, and the other arguments of
            `read_config` for CRATE-MAE, of `read_crate_config` for supervised CRATE.

    Returns:
        What became of every key.

    Raises:
        ValueError: If the checkpoint cannot be read, is of another model, lacks a key, has an unknown one or a wrong
            shape, if a setting is not one of its model, or if there is something in `output_dir` already.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"`output_dir` must be a new or an empty folder, {output_dir} is not.")
    state_dict = read_checkpoint(Path(checkpoint))
    layout = find_layout(state_dict)
    given = {name: value for name, value in {"image_size": image_size, **settings}.items() if value is not None}
    for name in layout.refused:
        if name in given:
            raise ValueError(
                f"`{name}` does not go with a checkpoint of {layout.name}: leave it out, got {given[name]}."
            )
    config = (read_crate_config if layout is CRATE else read_config)(state_dict, **settings)
    report = compare_keys(state_dict, layout, config)
    if any(row.status not in ("mapped", "dropped") for row in report):
        raise ValueError(
            f"{checkpoint} does not fit {layout.name}, nothing was written; see the end of this table.\n\n"
            + format_report(report)
        )
    with torch.device("meta"):
        model = layout.model_class(config)
    weights = {convert_key(key, layout.keys): value for key, value in state_dict.items() if key not in layout.unused}
    model.load_state_dict(weights, assign=True)
    if image_size is not None:
        cast(CrateForImageClassification, model).set_image_size(image_size)
    model.save_pretrained(output_dir)
    CrateMaeImageProcessor.from_config(cast(CrateEncoderConfig, model.config)).save_pretrained(output_dir)
    return report


def revert_checkpoint(folder: str | Path, checkpoint: str | Path) -> None:
    """Write a checkpoint of this package as an official one, which the official code loads strictly.

    The official CRATE-MAE also has weights that it never uses. They are written so that they would do nothing if they
    were: `pos_embed` is the one position table, `decoder_embed` the identity.

    Args:
        folder: Folder of a [`CrateMaeForPreTraining`] or a [`CrateForImageClassification`].
        checkpoint: File to write: `.safetensors` with a bare state dict, anything else a PyTorch file with the state
            dict under `model`.

    Raises:
        ValueError: If the folder holds no complete model of these classes, or the file exists.
    """
    folder, checkpoint = Path(folder), Path(checkpoint)
    if checkpoint.exists():
        raise ValueError(f"`checkpoint` must be a new file, {checkpoint} exists already.")
    if not (folder / "config.json").is_file():
        raise ValueError(f"`folder` must be one written by `save_pretrained`, {folder} has no config.json.")
    model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    if model_type not in LAYOUTS:
        raise ValueError(f"`folder` must hold a CRATE-MAE or CRATE model, {folder} has one of type {model_type!r}.")
    layout = LAYOUTS[model_type]
    model, info = cast(Any, layout.model_class.from_pretrained(folder, output_loading_info=True))
    missing = sorted(info["missing_keys"])
    if missing:
        needed = "a classifier" if layout is CRATE else "a pre-training model with its decoder"
        raise ValueError(f"`folder` must hold {needed}, {folder} lacks {len(missing)} weights such as `{missing[0]}`.")
    state_dict = {convert_key(name, layout.official_keys): value for name, value in model.state_dict().items()}
    if layout is CRATE_MAE:
        # Loading leaves a buffer in float32; the values are the checkpoint's.
        table = state_dict["decoder_pos_embed"].to(model.dtype)
        width = table.shape[2]
        state_dict |= {"decoder_pos_embed": table, "pos_embed": table.clone()}
        state_dict["decoder_embed.weight"] = torch.eye(width, dtype=table.dtype)
        state_dict["decoder_embed.bias"] = torch.zeros(width, dtype=table.dtype)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if checkpoint.suffix == ".safetensors":
        save_file(state_dict, checkpoint)
    else:
        torch.save({"model": state_dict}, checkpoint)


def find_images(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders.

    Raises:
        ValueError: If there are none.
    """
    extensions = PIL.Image.registered_extensions()
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in extensions)
    if not paths:
        raise ValueError(f"`images` must be a folder of images, found none in {folder}.")
    return paths


@torch.no_grad()
def compare_lambda(folder: str | Path, candidates: Sequence[float], images: Sequence[Path]) -> dict[float, float]:
    """Return the masked loss on given images for each candidate of `ista_lambda`, which a checkpoint does not hold.

    Every candidate sees the same images with the same masks. Also written to `lambda_comparison.json` in the folder.

    Args:
        folder: Converted checkpoint.
        candidates: Values of lambda.
        images: Image files.
    """
    processor = CrateMaeImageProcessor.from_pretrained(folder)
    models = {
        value: CrateMaeForPreTraining.from_pretrained(folder, ista_lambda=value, dtype=torch.float32)
        for value in candidates
    }
    rows, columns = models[candidates[0]].config.grid_size
    generator = torch.Generator().manual_seed(0)
    totals = dict.fromkeys(candidates, 0.0)
    for start in tqdm(range(0, len(images), 16), desc="Comparing lambda", unit="batch"):
        batch = images[start : start + 16]
        loaded: list[PIL.Image.Image] = [PIL.Image.open(path) for path in batch]
        pixel_values = processor(loaded, return_tensors="pt").pixel_values
        noise = torch.rand(len(batch), rows * columns, generator=generator)
        for value, model in models.items():
            totals[value] += model(pixel_values, noise=noise).loss.item() * len(batch)
    losses = {value: total / len(images) for value, total in totals.items()}
    comparison = {"images": len(images), "masked_loss": losses}
    (Path(folder) / LAMBDA_FILE).write_text(json.dumps(comparison, indent=2) + "\n")
    return losses


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m crate_mae_hf.conversion", description="Convert checkpoints of the official CRATE code."
    )
    parser.add_argument("checkpoint", type=Path, help="official .pth or .safetensors file; with --reverse our folder")
    parser.add_argument("output", type=Path, help="folder to write; with --reverse the file to write")
    parser.add_argument("--reverse", action="store_true", help="write the official layout")
    options = parser.add_argument_group("what a checkpoint does not hold").add_argument
    options("--size", choices=CrateEncoderConfig.sizes, help="published size, gives the numbers of heads")
    options("--num_attention_heads", type=int, help="heads of the encoder, for other sizes")
    options("--ista_lambda", type=float, help="sparsity weight; CRATE-MAE: 0.5, but see --compare_lambda; CRATE: 0.1")
    options = parser.add_argument_group("CRATE-MAE").add_argument
    options("--decoder_num_attention_heads", type=int, help="heads of the decoder, if they differ")
    options("--mask_ratio", type=float, help="share of masked patches; 0.75 when left out")
    options("--norm_pix_loss", action="store_true", default=None, help="trained on normalised patches")
    options("--compare_lambda", type=float, nargs="+", metavar="LAMBDA", help="report the masked loss of each")
    options("--images", type=Path, metavar="DIR", help="images for --compare_lambda")
    options = parser.add_argument_group("supervised CRATE").add_argument
    options("--image_size", type=int, help="image size to convert to, by interpolating the positions")
    options("--num_channels", type=int, help="image channels; 3 when left out")
    parsed = parser.parse_args(arguments)
    given = {name for name, value in vars(parsed).items() if value is not None} - {"checkpoint", "output", "reverse"}
    if parsed.reverse and given:
        parser.error(f"--reverse goes without --{' --'.join(sorted(given))}")
    if (parsed.compare_lambda is None) != (parsed.images is None):
        parser.error("--compare_lambda and --images go together")
    if parsed.compare_lambda and min(parsed.compare_lambda) < 0:
        parser.error(f"--compare_lambda must not be negative, got {min(parsed.compare_lambda)}")
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; see `--help`."""
    settings = vars(parse_arguments(arguments))
    checkpoint, output, reverse = (settings.pop(name) for name in ("checkpoint", "output", "reverse"))
    candidates, image_dir = settings.pop("compare_lambda"), settings.pop("images")
    try:
        if reverse:
            revert_checkpoint(checkpoint, output)
            print(f"Wrote {output} in the official layout.")
            return
        images = find_images(image_dir) if candidates else []
        if candidates and find_layout(read_checkpoint(checkpoint)) is CRATE:
            raise ValueError("`compare_lambda` needs a masked loss, which supervised CRATE has not; its lambda is 0.1.")
        report = convert_checkpoint(checkpoint, output, **{k: v for k, v in settings.items() if v is not None})
        print(format_report(report))
        ista_lambda = json.loads((output / "config.json").read_text())["ista_lambda"]
        print(f"\nWrote {output} with ista_lambda={ista_lambda}, which no checkpoint holds.")
        if candidates:
            losses = compare_lambda(output, candidates, images)
            print(format_table(("ista_lambda", "masked loss"), [(k, f"{v:.6f}") for k, v in losses.items()]))
            print("\nThe lowest loss is the likeliest; set it with --ista_lambda, or `ista_lambda` in config.json.")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
