"""Small models of every row of the list of models, saved; and what a saved folder has to hold."""

from pathlib import Path

import pytest
from transformers import PreTrainedModel

import crate_mae_hf
from crate_mae_hf import CrateMaeImageProcessor
from crate_mae_hf.configuration_crate import CrateEncoderConfig
from crate_mae_hf.registry import MODELS, ModelRow

# The files that travel: the flat ones, but for those that stay at home.
CODE = {
    path.name
    for kind in ("configuration_", "crate_", "modeling_", "image_processing_")
    for path in Path(crate_mae_hf.__file__).parent.glob(f"{kind}*.py")
}
COMPLETE = CODE | {"config.json", "model.safetensors", "preprocessor_config.json"}
# Every class of every row that can be loaded from a folder: Transformers takes a backbone from the Hub only.
SAVED = [
    (row, auto_class) for row in MODELS.values() for auto_class in row.model_classes if auto_class != "AutoBackbone"
]
every_saved_class = pytest.mark.parametrize(
    ("row", "auto_class"), SAVED, ids=[f"{row.name}-{auto_class}" for row, auto_class in SAVED]
)


def rows_with(auto_class: str) -> pytest.MarkDecorator:
    """Run a test once per `row` that has a class for an Auto class."""
    rows = [row for row in MODELS.values() if auto_class in row.model_classes]
    return pytest.mark.parametrize("row", rows, ids=[row.name for row in rows])


def small_config(row: ModelRow) -> CrateEncoderConfig:
    """Two layers on 16 patches, three named labels."""
    labels = dict(enumerate(("cat", "dog", "fish")))
    return row.config_class(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
    )


def save(row: ModelRow, auto_class: str, folder: Path) -> PreTrainedModel:
    """Save a class of a row with its image processor, and return the model."""
    model = row.model_classes[auto_class](small_config(row)).eval()
    model.save_pretrained(folder)
    CrateMaeImageProcessor.from_config(model.config).save_pretrained(folder)
    return model
