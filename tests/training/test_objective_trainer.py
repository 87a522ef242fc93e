import json
from types import SimpleNamespace

import pytest
import torch
from official_vic_mae import SMALL_VIT_MAE
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForPreTraining, TrainingArguments, ViTMAEConfig, ViTMAEForPreTraining

from crate_mae_hf import CrateMaeForPreTraining, CrateMaeImageProcessor
from crate_mae_hf.adapters import fill_vit_mae
from crate_mae_hf.hub import check_folder, create_model_card
from crate_mae_hf.hub.push import NOT_PUSHED
from crate_mae_hf.objectives.objective import FILE
from crate_mae_hf.objectives.vic_mae import VicMae
from crate_mae_hf.training import contrastive_watch
from crate_mae_hf.training.contrastive_watch import ContrastiveWatch
from crate_mae_hf.training.objective_trainer import ObjectiveTrainer
from crate_mae_hf.training.trainer import MaskedAutoencoderTrainer


class Pairs(torch.utils.data.Dataset):
    """Sixteen pairs."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.items = [
            {
                "pixel_values": torch.randn(2, 3, 32, 32, generator=generator),
                "noise": torch.rand(2, 16, generator=generator),
            }
            for _ in range(16)
        ]

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.items[index]


@pytest.fixture
def build(config, tmp_path):
    def build(name="run", model_type="crate_mae", objective=None, **arguments):
        torch.manual_seed(0)
        if model_type == "crate_mae":
            autoencoder = CrateMaeForPreTraining(config)
        else:
            autoencoder = ViTMAEForPreTraining(ViTMAEConfig(**SMALL_VIT_MAE))
            fill_vit_mae(autoencoder)
        settings = {
            "output_dir": str(tmp_path / name),
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 8,
            "num_train_epochs": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        objective = {"contrastive_weight": 0.5, "projector_size": 24, "projection_size": 8, **(objective or {})}
        return ObjectiveTrainer(
            VicMae(autoencoder, **objective),
            TrainingArguments(**{**settings, **arguments}),
            train_dataset=Pairs(),
            eval_dataset=Pairs(),
            processing_class=CrateMaeImageProcessor.from_config(config),
        )

    return build


@pytest.fixture
def train(build):
    def train(*args, resume=None, **arguments):
        trainer = build(*args, **arguments)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return train


def weights(trainer) -> dict[str, torch.Tensor]:
    return trainer.model.state_dict()


def history(trainer, name: str) -> list[float]:
    return [float(entry[name]) for entry in trainer.state.log_history if name in entry]


def test_what_is_saved_is_the_autoencoder(train, config, tmp_path):
    trainer = train()
    trainer.save_model()
    plain = MaskedAutoencoderTrainer(
        CrateMaeForPreTraining(config),
        TrainingArguments(output_dir=str(tmp_path / "plain"), use_cpu=True),
        processing_class=CrateMaeImageProcessor.from_config(config),
    )
    plain.save_model()
    files = {folder: {path.name for path in (tmp_path / folder).iterdir()} for folder in ("run", "plain")}
    assert files["run"] == files["plain"] | {FILE}
    for name in files["plain"] - {"model.safetensors", "training_args.bin"}:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name
    check_folder(tmp_path / "run")
    assert FILE in NOT_PUSHED
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path / "run")
    for name, value in trainer.model.autoencoder.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    AutoModel.from_pretrained(tmp_path / "run")
    assert not any(name.startswith("autoencoder") for name in load_file(tmp_path / "run" / FILE))


def test_the_card_says_how_it_was_trained(train, config, tmp_path):
    train().save_model()
    card = str(create_model_card(tmp_path / "run"))
    assert "| objective | [ViC-MAE](https://arxiv.org/abs/2303.12001)" in card
    assert "| contrastive weight | 0.5 |" in card
    (tmp_path / "run" / FILE).unlink()
    assert "ViC-MAE" not in str(create_model_card(tmp_path / "run"))


@pytest.mark.parametrize("model_type", ["crate_mae", "vit_mae"])
def test_resuming_gives_the_unbroken_run(train, tmp_path, model_type):
    settings = {"model_type": model_type, "objective": {"contrastive_rise": 0.6}}
    whole = train("whole", **settings, save_strategy="steps", save_steps=3)
    resumed = train("resumed", **settings, resume=str(tmp_path / "whole" / "checkpoint-3"))
    torch.testing.assert_close(weights(resumed), weights(whole), atol=0, rtol=0)
    for name in ("loss", "reconstruction", "contrastive", "chance"):
        assert history(resumed, name) == history(whole, name)
        assert len(history(whole, name)) == 8


def test_the_best_checkpoint_is_loaded_whole(train, tmp_path):
    trainer = train(
        save_strategy="epoch",
        eval_strategy="epoch",
        num_train_epochs=4,
        learning_rate=0.05,
        load_best_model_at_end=True,
    )
    best = trainer.state.best_model_checkpoint
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-6)
    for name, value in load_file(f"{best}/{FILE}").items():
        assert torch.equal(value, weights(trainer)[name])


def test_a_checkpoint_of_another_run_is_refused(build, train, config, tmp_path):
    plain = MaskedAutoencoderTrainer(
        CrateMaeForPreTraining(config),
        TrainingArguments(
            output_dir=str(tmp_path / "plain"), max_steps=1, save_strategy="steps", save_steps=1, use_cpu=True
        ),
        train_dataset=[{"pixel_values": torch.randn(3, 32, 32)} for _ in range(2)],
    )
    plain.train()
    with pytest.raises(ValueError, match=f"There is no {FILE} in .*checkpoint-1"):
        build().train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-1"))
    train("other", objective={"projector_size": 12}, save_strategy="steps", save_steps=3)
    with pytest.raises(ValueError, match=f"{FILE} is not that of this VicMae"):
        build().train(resume_from_checkpoint=str(tmp_path / "other" / "checkpoint-3"))


def test_terms_are_logged_by_name(train):
    trainer = train(eval_strategy="epoch", per_device_train_batch_size=2, gradient_accumulation_steps=2)
    for prefix in ("", "eval_"):
        terms = [history(trainer, prefix + name) for name in ("contrastive", "reconstruction", "loss", "chance")]
        assert len(terms[0]) == (2 if prefix else 8)
        for contrastive, reconstruction, loss, _ in zip(*terms, strict=True):
            assert loss == pytest.approx(0.5 * contrastive + 0.97 * reconstruction, rel=1e-3)  # the log rounds
    assert history(trainer, "chance")[0] == pytest.approx(torch.tensor(3.0).log().item(), abs=1e-4)
    assert history(trainer, "eval_chance")[0] == pytest.approx(torch.tensor(15.0).log().item(), abs=1e-4)


def test_terms_of_several_steps_are_means(train):
    each = history(train("each"), "contrastive")
    assert history(train("pairs", logging_steps=2), "contrastive") == pytest.approx(
        [(first + second) / 2 for first, second in zip(each[::2], each[1::2], strict=True)], rel=1e-4
    )


def test_evaluation_is_the_same_each_time(train):
    trainer = train()
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]


def test_the_objective_knows_how_far_training_is(build):
    trainer, seen = build(), []
    trainer.model.register_forward_hook(lambda *args: seen.append(float(trainer.model.progress)))
    trainer.train()
    assert seen == pytest.approx([step / 8 for step in range(8)])
    assert trainer.model.progress == 1


def test_weights_alone_decay(build):
    trainer = build(weight_decay=0.1)
    names = trainer.get_decay_parameter_names(trainer.model)
    assert "projector.0.weight" in names
    assert "autoencoder.crate_mae.layers.0.ista.dictionary" in names
    assert "projector.1.weight" not in names


def test_activation_checkpointing_changes_nothing(train):
    plain, checkpointed = train("plain"), train("checkpointed", activation_checkpointing=True)
    assert checkpointed.model.autoencoder.is_activation_checkpointing
    torch.testing.assert_close(weights(checkpointed), weights(plain), atol=0, rtol=0)


def test_bf16_trains(train):
    assert all(map(torch.isfinite, map(torch.tensor, history(train(bf16=True), "loss"))))


@pytest.mark.parametrize("contrastive", [2.0, 1.0])
def test_a_contrastive_loss_at_chance_is_told_once(monkeypatch, contrastive):
    warnings = []
    monkeypatch.setattr(contrastive_watch.logger, "warning", warnings.append)
    watch = ContrastiveWatch()
    for step in range(0, 100, 10):
        state = SimpleNamespace(global_step=step, max_steps=100, is_world_process_zero=True)
        watch.on_log(None, state, None, logs={"contrastive": contrastive, "chance": 2.05})
        watch.on_log(None, state, None, logs={"eval_loss": 1.0})
    if contrastive == 2.0:
        (warning,) = warnings
        assert "is 2.000 after 20 of 100 steps, where guessing gives 2.050" in warning
    else:
        assert not warnings


def test_state_in_checkpoints_is_that_of_any_trainer(train, tmp_path):
    train("whole", save_strategy="steps", save_steps=3)
    state = json.loads((tmp_path / "whole" / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["RunRecord"]["attributes"]["settings"] == {"seed": 42}


def test_transformers_writes_the_card_of_a_vit_mae(train, tmp_path):
    trainer = train(model_type="vit_mae")
    trainer.create_model_card()
    assert (tmp_path / "run" / "README.md").is_file()
    assert isinstance(trainer.model, VicMae)
