"""Command line: a saved model for transformers.js and onnxruntime-web, which need neither PyTorch nor this package.

python -m crate_mae_hf.export FOLDER OUT
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_processing_utils import BaseImageProcessor

from .cli import check_new_folder, clear_errors
from .configuration_crate import to_pair
from .image_processing_crate_mae import LUMA
from .loading import load, load_model
from .registry import MODEL_NAMES, MODELS

# What transformers.js asks an image processor for.
PROCESSOR_SETTINGS = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std",
)  # fmt: skip


def export_for_browsers(folder: str | Path, output_dir: Path) -> None:
    """Write a model as one ONNX file, with the configurations that transformers.js reads.

    transformers.js knows no models but its own. It chooses a class by `model_type`, and each runs whatever graph there
    is: `config.json` asks for that of a ViT, and `preprocessor_config.json` for an image processor that resizes and
    crops. Graphs of grey models take pictures in colour, as browsers have them, and make them grey.

    Args:
        folder: Folder or repository of a model with its image processor: a classifier is written with its head, any
            other model is its encoder, with `last_hidden_state` and `pooler_output`.
        output_dir: Folder to write, new or empty.

    Raises:
        ValueError: If the model cannot be loaded, is none of this package or takes no pictures, or the folder is not
            empty.
    """
    import onnx_ir
    from transformers.exporters import OnnxConfig, OnnxExporter

    check_new_folder(output_dir)
    config = load(AutoConfig, folder, "folder")
    if config.model_type not in MODELS:
        raise ValueError(f"`folder` must be a {MODEL_NAMES}, got {folder} of type {config.model_type!r}.")
    if config.num_channels not in (1, 3):
        raise ValueError(f"`folder`: images in a browser have 3 channels, those of {folder} {config.num_channels}.")
    is_classifier = any(name.endswith("ForImageClassification") for name in config.architectures or ())
    auto_class = AutoModelForImageClassification if is_classifier else AutoModel
    model = load_model(auto_class, folder, "folder", with_head=is_classifier, dtype=torch.float32).eval()
    processor = load(AutoImageProcessor, folder, "folder")

    if config.num_channels == 1:
        model.register_forward_pre_hook(make_grey, with_kwargs=True)
    inputs: dict[str, Any] = {"pixel_values": torch.zeros(2, 3, *to_pair(config.image_size))}
    shapes = {"pixel_values": {0: torch.export.Dim.AUTO}}
    graph = OnnxExporter().export(model, inputs, config=OnnxConfig(dynamic_shapes=shapes)).program
    (output_dir / "onnx").mkdir(parents=True)
    onnx_ir.save(graph, output_dir / "onnx" / "model.onnx")
    write_json(output_dir / "config.json", describe_model(model, is_classifier))
    write_json(output_dir / "preprocessor_config.json", describe_processor(processor, config))


def make_grey(module: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Make normalised images in colour grey; the weights sum to 1, so normalising before or after is the same."""
    luma = torch.tensor(LUMA).view(1, 3, 1, 1)
    return args, {**kwargs, "pixel_values": (kwargs["pixel_values"] * luma).sum(dim=1, keepdim=True)}


def describe_model(model: PreTrainedModel, is_classifier: bool) -> dict[str, Any]:
    """Return a configuration by which transformers.js finds a class, labels and the type of the weights."""
    config = model.config
    described = {
        "model_type": "vit",
        "architectures": ["ViTForImageClassification" if is_classifier else "ViTModel"],
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "transformers.js_config": {"dtype": "fp32"},  # otherwise browsers ask for a quantised file
    }
    return described | ({"id2label": config.id2label, "label2id": config.label2id} if is_classifier else {})


def describe_processor(processor: BaseImageProcessor, config: PreTrainedConfig) -> dict[str, Any]:
    """Return the settings of an image processor in a class that transformers.js knows."""
    settings = {name: value for name, value in processor.to_dict().items() if name in PROCESSOR_SETTINGS}
    for name in ("image_mean", "image_std"):
        if config.num_channels == 1 and name in settings:
            settings[name] = settings[name] * 3
    return {"image_processor_type": "BitImageProcessor", "do_convert_rgb": True, **settings}


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; see `--help`."""
    parser = argparse.ArgumentParser(
        prog="python -m crate_mae_hf.export",
        description="Write a model for transformers.js and onnxruntime-web, which run it in a browser.",
    )
    parser.add_argument("folder", help="folder or repository with a model and its image processor")
    parser.add_argument("output", type=Path, help="folder to write")
    options = parser.parse_args(arguments)
    with clear_errors():
        export_for_browsers(options.folder, options.output)
        print(f"Wrote {options.output / 'onnx' / 'model.onnx'} with its configurations.")


if __name__ == "__main__":
    main()
