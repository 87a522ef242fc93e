"""The list of models against the package's public names and Transformers' Auto classes."""

import transformers
from saving import rows_with
from transformers import AutoConfig, PreTrainedModel

import crate_mae_hf
from crate_mae_hf.registry import MODELS


@rows_with("AutoModel")
def test_every_class_of_a_row_is_public(row):
    for public_class in (row.config_class, *row.model_classes.values()):
        assert public_class.__name__ in crate_mae_hf.__all__
        assert getattr(crate_mae_hf, public_class.__name__) is public_class


def test_every_public_model_is_in_a_row():
    public = {getattr(crate_mae_hf, name) for name in crate_mae_hf.__all__ if not name.endswith("PreTrainedModel")}
    models = {found for found in public if isinstance(found, type) and issubclass(found, PreTrainedModel)}
    assert models == {model_class for row in MODELS.values() for model_class in row.model_classes.values()}


@rows_with("AutoModel")
def test_a_row_is_registered(row):
    config = AutoConfig.for_model(row.config_class.model_type, hidden_size=32, num_attention_heads=4)
    assert type(config) is row.config_class
    assert row.config_class._auto_class == "AutoConfig"
    for auto_class, model_class in row.model_classes.items():
        assert type(getattr(transformers, auto_class).from_config(config)) is model_class
        assert model_class._auto_class == auto_class
        assert model_class.config_class is row.config_class


@rows_with("AutoModel")
def test_what_a_card_says_of_a_row(row):
    assert row.name in row.paper
    assert "https://arxiv.org/abs/" in row.paper
    assert row.citation.startswith("@")
    assert "crate" in row.tags
