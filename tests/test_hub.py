"""Folders that load everywhere, model cards and pushing; nothing here talks to the Hub."""

import json
import os
import subprocess
import sys
from collections import namedtuple
from concurrent.futures import Future
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import filter_repo_objects
from load_everything import load_everything
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForPreTraining, Trainer, TrainingArguments

import crate_mae_hf
from crate_mae_hf import (
    CrateConfig,
    CrateForImageClassification,
    CrateMaeConfig,
    CrateMaeForImageClassification,
    CrateMaeForPreTraining,
    CrateMaeImageProcessor,
    hub,
)

CODE = {
    "configuration_crate.py",
    "configuration_crate_mae.py",
    "crate_heads.py",
    "crate_layers.py",
    "crate_ops.py",
    "crate_patches.py",
    "modeling_crate.py",
    "modeling_crate_mae.py",
    "image_processing_crate_mae.py",
}
COMPLETE = CODE | {"config.json", "model.safetensors", "preprocessor_config.json"}


class FakeApi:
    """Records what would go to the Hub."""

    def __init__(self, token=None):
        self.token = token
        self.uploads: list[set[str]] = []
        self.calls: list[str] = []
        self.role = "write"
        self.error: Exception | None = None

    def whoami(self):
        self.calls.append("whoami")
        if self.error:
            raise self.error
        return {"name": "somebody", "auth": {"accessToken": {"role": self.role}}}

    def create_repo(self, repo_id, **kwargs):
        self.calls.append("create_repo")
        return RepoUrl(repo_id)

    def upload_folder(self, folder_path, ignore_patterns, **kwargs):
        self.calls.append("upload_folder")
        files = [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()]
        self.uploads.append(set(filter_repo_objects(files, ignore_patterns=ignore_patterns)))
        future: Future = Future()
        future.set_result(None)
        return future

    def create_commit(self, operations, **kwargs):
        self.calls.append("create_commit")
        self.uploads.append({operation.path_in_repo for operation in operations})


class RepoUrl(namedtuple("RepoUrl", "repo_id")):
    def __str__(self):
        return f"https://huggingface.co/{self.repo_id}"


@pytest.fixture
def api(monkeypatch) -> FakeApi:
    api = FakeApi()
    monkeypatch.setattr("crate_mae_hf.hub.HfApi", lambda token: api)
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: api)
    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: api)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *args, **kwargs: ModelCard("# Card"))
    return api


@pytest.fixture
def processor() -> CrateMaeImageProcessor:
    return CrateMaeImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})


@pytest.fixture
def pretrained(config, processor, tmp_path) -> Path:
    folder = tmp_path / "pretrained"
    CrateMaeForPreTraining(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def classifier(config, processor, tmp_path) -> Path:
    folder = tmp_path / "classifier"
    config.id2label = {0: "cat", 1: "dog", 2: "fish"}
    config.label2id = {name: number for number, name in config.id2label.items()}
    CrateMaeForImageClassification(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def crate(processor, tmp_path) -> Path:
    """A supervised CRATE."""
    config = CrateConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8, num_labels=3
    )
    CrateForImageClassification(config).save_pretrained(tmp_path / "crate")
    processor.save_pretrained(tmp_path / "crate")
    return tmp_path / "crate"


@pytest.fixture
def run(config, processor, api, tmp_path) -> Path:
    """The folder of a Trainer that pushes while it trains."""
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=2,
        push_to_hub=True,
        hub_model_id="somebody/run",
        disable_tqdm=True,
        use_cpu=True,
    )
    images = [{"pixel_values": torch.randn(3, 32, 32)} for _ in range(4)]
    model = CrateMaeForPreTraining(config)
    Trainer(model, arguments, train_dataset=images, processing_class=processor).train()
    return tmp_path / "run"


def test_folders_load_without_the_package(pretrained, classifier, crate, run, tmp_path):
    folders = [str(folder) for folder in (pretrained, classifier, crate, run / "checkpoint-2")]
    script = Path(__file__).parent / "load_everything.py"
    subprocess.run(
        [sys.executable, "-I", str(script), *folders, str(tmp_path / "results.pt")],
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_MODULES_CACHE": str(tmp_path / "code")},
    )
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    for folder in folders:
        for here in (folder, f"{folder}-again"):
            expected = load_everything(here)
            for name, value in expected.items():
                there = results[folder][name]
                assert torch.equal(there, value) if isinstance(value, torch.Tensor) else there == value, (here, name)
        assert {path.name for path in Path(f"{folder}-again").iterdir()} == COMPLETE


@pytest.mark.parametrize(("name", "config_class"), [("classifier", CrateMaeConfig), ("crate", CrateConfig)])
def test_auto_map_is_complete_and_true(name, config_class, request):
    folder = request.getfixturevalue(name)
    saved = json.loads((folder / "config.json").read_text())["auto_map"]
    assert saved == config_class.auto_classes
    for auto_class, reference in saved.items():
        name = reference.split(".")[1]
        assert getattr(crate_mae_hf, name)._auto_class == auto_class
    saved = json.loads((folder / "preprocessor_config.json").read_text())["auto_map"]
    assert saved == {"AutoImageProcessor": f"image_processing_crate_mae.{CrateMaeImageProcessor.__name__}"}


def test_a_derived_model_points_into_its_own_folder(pretrained, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(pretrained)
    # What Transformers makes of the map when it loads from the Hub.
    model.config.auto_map = {
        name: f"somebody/pretrained--{reference}" for name, reference in CrateMaeConfig.auto_classes.items()
    }
    model.save_pretrained(tmp_path / "derived")
    assert json.loads((tmp_path / "derived" / "config.json").read_text())["auto_map"] == CrateMaeConfig.auto_classes


def test_a_subclass_of_the_user_keeps_its_entry(config, tmp_path):
    config.auto_map = {"AutoModelForPreTraining": "modeling_mine.Mine"}
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert saved == {**CrateMaeConfig.auto_classes, "AutoModelForPreTraining": "modeling_mine.Mine"}


def test_trainer_pushes_complete_repositories(run, api):
    # Pushes while training take weights and configuration out of the checkpoint, and the code along with the processor.
    assert len(api.uploads) >= 2
    for files in api.uploads:
        assert files >= COMPLETE
    assert {path.name for path in (run / "checkpoint-1").iterdir()} >= COMPLETE


def test_push_to_hub_of_the_classes(config, processor, api):
    CrateMaeForPreTraining(config).push_to_hub("somebody/model")
    processor.push_to_hub("somebody/model")
    assert set().union(*api.uploads) == COMPLETE | {"README.md"}


def test_everything_of_a_crate_is_pushed(crate, api):
    hub.push_folder(crate, "somebody/crate")
    assert api.uploads == [COMPLETE | {"README.md"}]


def test_push_folder(pretrained, api):
    (pretrained / "checkpoint-5").mkdir()
    for name in ("checkpoint-5/model.safetensors", "training_args.bin", "metrics.json"):
        (pretrained / name).write_text("{}")
    assert hub.push_folder(pretrained, "somebody/model") == "https://huggingface.co/somebody/model"
    assert api.calls == ["whoami", "create_repo", "upload_folder"]
    assert api.uploads == [COMPLETE | {"README.md", "metrics.json"}]
    assert "somebody/model" in (pretrained / "README.md").read_text()


def http_error(status: int) -> HfHubHTTPError:
    return HfHubHTTPError("refused", response=Mock(status_code=status, headers={}))


@pytest.mark.parametrize(
    ("error", "role", "message"),
    [
        (LocalTokenNotFoundError("none"), "write", "`token` is needed to push, found none"),
        (http_error(401), "write", "`token` was rejected"),
        (None, "read", "`token` of somebody may only read"),
    ],
)
def test_a_bad_token_stops_before_anything_is_uploaded(error, role, message, pretrained, api):
    api.error, api.role = error, role
    before = sorted(pretrained.iterdir())
    with pytest.raises(ValueError, match=f"{message}.*nothing was uploaded"):
        hub.push_folder(pretrained, "somebody/model")
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        hub.main([str(pretrained), "somebody/model"])
    assert set(api.calls) == {"whoami"}
    assert sorted(pretrained.iterdir()) == before


def test_a_hub_that_is_down_is_no_bad_token(pretrained, api):
    api.error = http_error(503)
    with pytest.raises(HfHubHTTPError):
        hub.push_folder(pretrained, "somebody/model")
    api.error = HTTPError("Name or service not known")
    with pytest.raises(ConnectionError, match=r"cannot be reached \(Name or service not known\)"):
        hub.push_folder(pretrained, "somebody/model")
    assert set(api.calls) == {"whoami"}


@pytest.mark.parametrize("name", sorted(COMPLETE))
def test_an_incomplete_folder_is_not_pushed(name, pretrained, api):
    (pretrained / name).unlink()
    with pytest.raises(ValueError, match=r"`folder`.*save_pretrained") as raised:
        hub.push_folder(pretrained, "somebody/model")
    assert name in str(raised.value)
    assert api.calls == []


def test_push_by_command(pretrained, api, capsys):
    hub.main([str(pretrained), "somebody/model", "--dataset", "zalando-datasets/fashion_mnist", "--license", "mit"])
    assert capsys.readouterr().out == "https://huggingface.co/somebody/model\n"
    card = ModelCard.load(pretrained / "README.md")
    assert card.data.license == "mit"
    (pretrained / "README.md").write_text("mine")
    with pytest.raises(SystemExit, match="is there already"):
        hub.main([str(pretrained), "somebody/model", "--license", "mit"])
    hub.main([str(pretrained), "somebody/model"])
    assert (pretrained / "README.md").read_text() == "mine"


def test_card_of_a_pre_trained_model(pretrained):
    trainer_metrics = {"eval_loss": 0.4321, "eval_runtime": 1.5, "train_samples_per_second": 9.0, "train_loss": 0.4}
    (pretrained / "all_results.json").write_text(json.dumps(trainer_metrics))
    metrics = {"probe_accuracy": 0.5, "baselines": {"probe_accuracy": 0.3}, "seed": 7, "versions": {"torch": "2.14"}}
    (pretrained / "metrics.json").write_text(json.dumps(metrics))
    (pretrained / "trainer_state.json").write_text('{"global_step": 240, "epoch": 3.0, "train_batch_size": 64}')
    Image.new("RGB", (8, 8)).save(pretrained / "reconstruction.png")
    card = hub.create_model_card(
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
    card = hub.create_model_card(classifier)
    assert card.data.pipeline_tag == "image-classification"
    assert 'pipeline("image-classification", model="classifier"' in card.text
    assert "| `num_labels` | 3 |" in card.text
    assert "Nothing was measured." in card.text
    assert card.data.to_dict().keys() == {"library_name", "pipeline_tag", "tags", "model_name"}
    assert "](reconstruction.png)" not in card.text


def test_card_of_a_crate(crate):
    card = hub.create_model_card(crate)
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.tags == ["crate", "white-box", "vision"]
    assert "A CRATE image classifier." in card.text
    assert "| `ista_lambda` | 0.1 |" in card.text
    assert "yu2023white" in card.text
    for absent in ("MAE", "Reconstructions", "pai2024"):
        assert absent not in card.text, absent


def test_card_with_metrics_of_the_caller(classifier):
    (classifier / "metrics.json").write_text('{"eval_loss": 9.0}')
    card = hub.create_model_card(classifier, data="Pictures of pets.", metrics={"eval_accuracy": 0.75})
    assert "| eval_accuracy | 0.75 |" in card.text
    assert "eval_loss" not in card.text
    (result,) = card.data.to_dict()["model-index"][0]["results"]
    assert result["dataset"] == {"name": "Pictures of pets.", "type": "custom"}
    assert card.data.datasets is None


def test_card_needs_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        hub.create_model_card(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="holds a model of type 'vit'"):
        hub.create_model_card(tmp_path)


def test_card_of_the_project():
    card = ModelCard.load(Path(__file__).parents[1] / "model_card.md")
    assert card.data.library_name == "transformers"
    assert card.data.license == "mit"
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert card.data.eval_results is None
    assert "More Information Needed" not in card.content


def test_snippet_of_the_card_runs(pretrained, monkeypatch):
    card = hub.create_model_card(pretrained, model_id=str(pretrained))
    snippet = card.text.split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(snippet, names)
    assert torch.tensor(names["features"](Image.new("RGB", (40, 40)))).shape == (1, 17, 32)
    assert type(names["autoencoder"]) is CrateMaeForPreTraining


def test_sharded_checkpoint(config, pixel_values, tmp_path):
    model = CrateMaeForPreTraining(config).eval()
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    CrateMaeImageProcessor().save_pretrained(tmp_path)
    hub.check_folder(tmp_path)
    noise = torch.rand(2, 16)
    again = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(again(pixel_values, noise=noise).logits, model(pixel_values, noise=noise).logits)


def test_bfloat16_checkpoint(config, pixel_values, tmp_path):
    model = CrateMaeForPreTraining(config).eval().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    again = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    noise = torch.rand(2, 16)
    outputs = again(pixel_values, noise=noise)
    assert outputs.logits.dtype == torch.bfloat16
    torch.testing.assert_close(outputs.logits, model(pixel_values, noise=noise).logits)
    full = AutoModelForPreTraining.from_pretrained(tmp_path, dtype=torch.float32)
    assert full.dtype == torch.float32
    torch.testing.assert_close(full(pixel_values, noise=noise).loss, outputs.loss, rtol=0.05, atol=0.05)


def test_another_image_size_has_its_table_rebuilt(pretrained, config):
    model = AutoModel.from_pretrained(pretrained, image_size=[48, 64], ignore_mismatched_sizes=True)
    expected = crate_mae_hf.CrateMaeModel(crate_mae_hf.CrateMaeConfig(**{**config.to_dict(), "image_size": [48, 64]}))
    assert torch.equal(model.embeddings.position_embeddings, expected.embeddings.position_embeddings)
    trained = AutoModel.from_pretrained(pretrained)
    assert torch.equal(model.layers[0].ista.dictionary, trained.layers[0].ista.dictionary)
    assert model(torch.randn(1, 3, 48, 64)).last_hidden_state.shape == (1, 49, 32)


def test_another_number_of_labels(classifier):
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForImageClassification.from_pretrained(classifier, num_labels=7)
    model = AutoModelForImageClassification.from_pretrained(classifier, num_labels=7, ignore_mismatched_sizes=True)
    assert model(torch.randn(1, 3, 32, 32)).logits.shape == (1, 7)
    assert model.classifier.weight.std() > 0
    trained = AutoModelForImageClassification.from_pretrained(classifier)
    assert torch.equal(model.crate_mae.layers[0].ista.dictionary, trained.crate_mae.layers[0].ista.dictionary)


@pytest.mark.parametrize("name", ["CrateMaeModel", "CrateMaeBackbone"])
def test_an_encoder_loads_quietly_from_a_pre_training_checkpoint(name, pretrained, caplog):
    transformers.utils.logging.enable_propagation()
    try:
        encoder, info = getattr(crate_mae_hf, name).from_pretrained(pretrained, output_loading_info=True)
    finally:
        transformers.utils.logging.disable_propagation()
    assert not any(info.values())
    assert caplog.text == ""
    trained = CrateMaeForPreTraining.from_pretrained(pretrained)
    assert torch.equal(encoder.layernorm.weight, trained.crate_mae.layernorm.weight)
    assert torch.equal(encoder.layers[2].ista.dictionary, trained.crate_mae.layers[2].ista.dictionary)
