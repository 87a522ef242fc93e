"""Model cards: what a saved model is, from its configuration, the metrics beside it and the list of models."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..configuration_crate import CrateEncoderConfig
from ..loading import load
from ..objectives.objective import read_description
from ..registry import MODEL_NAMES, MODELS
from ..tables import format_value

TEMPLATE = Path(__file__).with_name("model_card_template.md")
# Pictures of what a model predicts, and what they show.
COLOR_PICTURE = "color_prediction.png"
PICTURES = {
    "reconstruction.png": "Masked image, reconstruction and original",
    COLOR_PICTURE: "Colour predicted from lightness, and lightness from colour, beside the truth",
}
# The metrics of a Trainer, and of whatever measured the model afterwards.
METRICS = ("all_results.json", "metrics.json")
# What is written beside the metrics and tells nothing about the model.
NO_METRIC = re.compile(r"(epochs?|steps?|samples|runtime|seconds?|total_flos)$")
# Kinds of models, by the end of the class's name: settings that the card shows beside the encoder's, where there are.
KINDS = {
    "ForPreTraining": ("decoder_num_hidden_layers", "mask_ratio", "norm_pix_loss", "prediction", "target_grid_size"),
    "ForMaskedImageModeling": ("decoder_num_hidden_layers", "norm_pix_loss"),
    "ForImageClassification": ("pooling", "num_labels"),
    "": (),
}
ENCODER_SETTINGS = (
    "image_size",
    "patch_size",
    "num_channels",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "ista_step_size",
    "ista_lambda",
    "overcomplete_ratio",  # this and the next two of CRATE-alpha alone
    "decoupled_dictionary",
    "ista_residual",
)


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds, nothing where there is none."""
    return json.loads(path.read_text()) if path.is_file() else {}


def read_config(folder: Path) -> CrateEncoderConfig:
    """Return the configuration in a folder.

    Raises:
        ValueError: If there is none, or one of another model.
    """
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type not in MODELS:
        found = f"holds a model of type {model_type!r}" if model_type else "has no config.json"
        raise ValueError(f"`folder` must hold a {MODEL_NAMES} model saved with `save_pretrained`, {folder} {found}.")
    return load(MODELS[model_type].config_class, folder, "folder")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested groups of values as one level, with names such as `eval/loss`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def describe_model(config: CrateEncoderConfig, architecture: str, kind: str) -> dict[str, Any]:
    """Return class, number of parameters and settings of a model; a class of the user's own is not counted."""
    model: dict[str, Any] = {"class": f"`{architecture}`"}
    for model_class in MODELS[config.model_type].model_classes.values():
        if model_class.__name__ == architecture:
            with torch.device("meta"):
                model["parameters"] = f"{model_class(config).num_parameters():,}"
    names = (*ENCODER_SETTINGS, *KINDS[kind])
    return model | {f"`{name}`": getattr(config, name) for name in names if hasattr(config, name)}


def create_model_card(
    folder: str | Path,
    *,
    model_id: str | None = None,
    dataset: str | None = None,
    data: str | None = None,
    license: str | None = None,
    base_model: str | None = None,
    recipe: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> ModelCard:
    """Return the card of a saved model; its `save` writes it.

    Args:
        folder: Folder with `config.json` and, where there are any, `all_results.json`, `metrics.json`,
            `trainer_state.json`, `objective.safetensors` and one of `PICTURES`.
        model_id: Repository on the Hub, for the title and the snippet; the folder's name when left out.
        dataset: Id of the training data on the Hub.
        data: What the model was trained on, in words.
        license: Licence of the weights, as the Hub names it.
        base_model: Id on the Hub of the model that the training started from.
        recipe: Settings of the training run by name. Steps, epochs and batch size are read off `trainer_state.json`.
        metrics: Measured values by name; read off `all_results.json` and `metrics.json` when left out. All are shown,
            but the metadata's results of the model leave out groups, such as comparisons with baselines, and what was
            measured in training. What is no decimal number, such as a seed, is listed as a setting.

    Raises:
        ValueError: If the folder holds no model of this package.
    """
    folder = Path(folder)
    config = read_config(folder)
    row = MODELS[config.model_type]
    model_id = model_id or folder.resolve().name
    title = model_id.split("/")[-1]
    architecture = (config.architectures or [row.model_classes["AutoModel"].__name__])[0]
    kind = next(kind for kind in KINDS if architecture.endswith(kind))
    pipeline_tag = "image-classification" if kind == "ForImageClassification" else "image-feature-extraction"

    if metrics is None:
        metrics = {name: value for file in METRICS for name, value in read_json(folder / file).items()}
    values = {name: value for name, value in flatten(metrics).items() if not NO_METRIC.search(name)}
    measured = {name: value for name, value in values.items() if isinstance(value, float)}
    eval_results = [
        EvalResult(
            task_type=pipeline_tag,
            dataset_type=dataset or "custom",
            dataset_name=dataset or str(data),
            metric_type=next((known for known in ("accuracy", "loss") if known in name), name),
            metric_name=name,
            metric_value=value,
        )
        for name, value in measured.items()
        if (dataset or data) and name in metrics and not name.startswith("train_")
    ]
    metadata = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        tags=[*row.tags, "white-box", "vision"],
        datasets=[dataset] if dataset else None,
        base_model=base_model,
        model_name=title,
        eval_results=eval_results or None,
    )

    picture = next((name for name in PICTURES if (folder / name).is_file()), None)
    objective = read_description(folder)
    state = read_json(folder / "trainer_state.json")
    names = {"global_step": "steps", "epoch": "epochs", "train_batch_size": "batch size per device"}
    trained = {name: state[key] for key, name in names.items() if state.get(key) is not None}
    trained |= {name: value for name, value in values.items() if name not in measured}
    link = f"[{dataset}](https://huggingface.co/datasets/{dataset})" if dataset else None
    return ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        title=title,
        kind=kind,
        name=row.name,
        paper=row.paper,
        citation=row.citation,
        prediction_limits=row.prediction_limits,
        picture=picture,
        picture_text=PICTURES.get(str(picture)),
        model_id=model_id,
        has_code="auto_map" in read_json(folder / "config.json"),
        model=describe_model(config, architecture, kind),
        base_model=base_model,
        data=" ".join(filter(None, (link, data))),
        uses_labels="labels" in objective,
        recipe={**objective, **(recipe or {}), **trained},
        results=measured,
        format_value=format_value,
    )
