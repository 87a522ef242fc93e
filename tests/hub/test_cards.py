"""What the cards of saved models say."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from saving import every_saved_class, save

from crate_mae_hf import CrateMaeForPreTraining
from crate_mae_hf.hub import create_model_card
from crate_mae_hf.registry import MODELS


@every_saved_class
def test_card_of_every_model(row, auto_class, tmp_path):
    model = save(row, auto_class, tmp_path / "saved")
    card = create_model_card(tmp_path / "saved")
    assert card.data.tags == [*row.tags, "white-box", "vision"]
    for text in (
        row.name,
        row.paper,
        row.citation,
        type(model).__name__,
        f"| parameters | {model.num_parameters():,} |",
    ):
        assert text in card.text, text
    assert "{" not in card.text.replace(row.citation, "")
    kind = "classifier" if auto_class == "AutoModelForImageClassification" else "The encoder of"
    assert ("pre-trained without labels" if "Pre" in auto_class or "Masked" in auto_class else kind) in card.text


def test_card_of_a_pre_trained_model(pretrained):
    trainer_metrics = {"eval_loss": 0.4321, "eval_runtime": 1.5, "train_samples_per_second": 9.0, "train_loss": 0.4}
    (pretrained / "all_results.json").write_text(json.dumps(trainer_metrics))
    metrics = {"probe_accuracy": 0.5, "baselines": {"probe_accuracy": 0.3}, "seed": 7, "versions": {"torch": "2.14"}}
    (pretrained / "metrics.json").write_text(json.dumps(metrics))
    (pretrained / "trainer_state.json").write_text('{"global_step": 240, "epoch": 3.0, "train_batch_size": 64}')
    Image.new("RGB", (8, 8)).save(pretrained / "reconstruction.png")
    card = create_model_card(
        pretrained,
        model_id="somebody/crate-mae-micro",
        dataset="zalando-datasets/fashion_mnist",
        data="10,000 of its images.",
        license="mit",
        recipe={"learning_rate": 3e-5, "lr_scheduler_type": "cosine"},
    )
    metadata = card.data.to_dict()
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "image-feature-extraction"
    assert metadata["license"] == "mit"
    assert metadata["datasets"] == ["zalando-datasets/fashion_mnist"]
    assert "masked-autoencoder" in metadata["tags"]
    (entry,) = metadata["model-index"]
    assert entry["name"] == "crate-mae-micro"
    values = {m["name"]: (m["type"], m["value"]) for result in entry["results"] for m in result["metrics"]}
    assert values == {"eval_loss": ("loss", 0.4321), "probe_accuracy": ("accuracy", 0.5)}
    for text in (
        "| eval_loss | 0.4321 |",
        "| baselines/probe_accuracy | 0.3 |",
        "| train_loss | 0.4 |",
        "| seed | 7 |",
        "| versions/torch | 2.14 |",
        "| learning_rate | 3e-05 |",
        "| steps | 240 |",
        "| batch size per device | 64 |",
        "| `ista_lambda` | 0.5 |",
        "](reconstruction.png)",
        "10,000 of its images.",
        'AutoModelForPreTraining.from_pretrained("somebody/crate-mae-micro", trust_remote_code=True)',
    ):
        assert text in card.text, text
    assert "eval_runtime" not in card.content
    assert "per_second" not in card.content
    # The card goes through the file unchanged.
    card.save(pretrained / "README.md")
    assert ModelCard.load(pretrained / "README.md").data.to_dict() == metadata


def test_card_of_a_classifier_that_nobody_measured(classifier):
    card = create_model_card(classifier)
    assert card.data.pipeline_tag == "image-classification"
    assert 'pipeline("image-classification", model="classifier"' in card.text
    assert "| `num_labels` | 3 |" in card.text
    assert "Nothing was measured." in card.text
    assert card.data.to_dict().keys() == {"library_name", "pipeline_tag", "tags", "model_name"}
    assert "](reconstruction.png)" not in card.text


def test_card_of_a_crate(crate):
    card = create_model_card(crate)
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.tags == ["crate", "white-box", "vision"]
    assert "A CRATE image classifier." in card.text
    assert "| `ista_lambda` | 0.1 |" in card.text
    assert "yu2023white" in card.text
    for absent in ("MAE", "Reconstructions", "pai2024"):
        assert absent not in card.text, absent


def test_card_of_an_alpha(tmp_path):
    save(MODELS["crate_alpha"], "AutoModel", tmp_path / "alpha")
    card = create_model_card(tmp_path / "alpha")
    for text in (
        "The encoder of a CRATE-alpha.",
        "yang2024scaling",
        "| `overcomplete_ratio` | 4 |",
        "| `ista_residual` |",
    ):
        assert text in card.text, text
    assert "MAE" not in card.text.replace("CrateMae", "")


def test_card_of_a_folder_without_code(pretrained):
    config = json.loads((pretrained / "config.json").read_text())
    del config["auto_map"]
    (pretrained / "config.json").write_text(json.dumps(config))
    card = create_model_card(pretrained, model_id="somebody/crate-mae-micro")
    assert "trust_remote_code" not in card.text
    assert "import crate_mae_hf  # registers the Auto classes\nfrom transformers import" in card.text
    assert 'AutoModelForPreTraining.from_pretrained("somebody/crate-mae-micro")' in card.text


def test_card_with_metrics_of_the_caller(classifier):
    (classifier / "metrics.json").write_text('{"eval_loss": 9.0}')
    card = create_model_card(classifier, data="Pictures of pets.", metrics={"eval_accuracy": 0.75})
    assert "| eval_accuracy | 0.75 |" in card.text
    assert "eval_loss" not in card.text
    (result,) = card.data.to_dict()["model-index"][0]["results"]
    assert result["dataset"] == {"name": "Pictures of pets.", "type": "custom"}
    assert card.data.datasets is None


def test_card_needs_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        create_model_card(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="holds a model of type 'vit'"):
        create_model_card(tmp_path)


def test_card_of_the_project():
    card = ModelCard.load(Path(__file__).parents[2] / "model_card.md")
    assert card.data.library_name == "transformers"
    assert card.data.license == "mit"
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert card.data.eval_results is None
    assert "More Information Needed" not in card.content


def test_snippet_of_the_card_runs(pretrained, monkeypatch):
    card = create_model_card(pretrained, model_id=str(pretrained))
    snippet = card.text.split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(snippet, names)
    assert torch.tensor(names["features"](Image.new("RGB", (40, 40)))).shape == (1, 17, 32)
    assert type(names["autoencoder"]) is CrateMaeForPreTraining
