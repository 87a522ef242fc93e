"""The card and the push at the end of a run."""

import pytest
from huggingface_hub import ModelCard
from transformers import Trainer, TrainingArguments

from crate_mae_hf import CrateMaeForImageClassification, CrateMaeImageProcessor
from crate_mae_hf.data.images import ImageArguments
from crate_mae_hf.training import publishing


@pytest.fixture
def push(tmp_path, monkeypatch):
    """Push the end of a run of a model, with the Hub replaced; return the card and what was pushed."""

    def push(model) -> tuple[ModelCard, list]:
        pushed: list = []
        monkeypatch.setattr(publishing, "push_folder", lambda *args, **kwargs: pushed.append((args, kwargs)))
        folder = tmp_path / "run"
        args = TrainingArguments(output_dir=str(folder), hub_model_id="somebody/run", use_cpu=True)
        trainer = Trainer(model, args, processing_class=CrateMaeImageProcessor.from_config(model.config))
        trainer.hub_model_id = args.hub_model_id
        trainer.save_model()
        publishing.push_run(trainer, ImageArguments(dataset_name="somebody/images"))
        return ModelCard.load(folder / "README.md"), pushed

    return push


def test_a_fine_tuned_model_names_what_it_started_from(pretrained, push):
    model = CrateMaeForImageClassification.from_pretrained(pretrained, num_labels=3)
    model.name_or_path = "org/crate-mae-base"
    card, pushed = push(model)
    assert card.data.base_model == "org/crate-mae-base"
    assert "Started from [org/crate-mae-base](https://huggingface.co/org/crate-mae-base)." in card.text
    assert card.data.datasets == ["somebody/images"]
    ((arguments, _),) = pushed
    assert arguments[1] == "somebody/run"


@pytest.mark.parametrize("source", ["new", "folder"])
def test_a_folder_of_ones_own_is_nothing_to_name(source, config, pretrained, push):
    model = CrateMaeForImageClassification(config)
    if source == "folder":
        model = CrateMaeForImageClassification.from_pretrained(pretrained, num_labels=3)
    card, _ = push(model)
    assert card.data.base_model is None
    assert "Started from" not in card.text
