import json
import os
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainingArguments, ViTMAEConfig, ViTMAEForPreTraining

from crate_mae_hf import CrateMaeForPreTraining
from crate_mae_hf.training import record
from crate_mae_hf.training.trainer import MaskedAutoencoderTrainer, NonFiniteLossError, SeedCallback, SeededTrainer


class Images(torch.utils.data.Dataset):
    """Sixteen images, with masks that are fixed or left to the model."""

    def __init__(self, with_noise: bool = True, broken: int | None = None):
        generator = torch.Generator().manual_seed(0)
        self.items = [{"pixel_values": torch.randn(3, 32, 32, generator=generator)} for _ in range(16)]
        for item in self.items if with_noise else []:
            item["noise"] = torch.rand(16, generator=generator)
        if broken is not None:
            self.items[broken]["pixel_values"].fill_(torch.inf)

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.items[index]


@pytest.fixture
def train(config, tmp_path):
    """Train a fresh model; return the trainer."""

    def train(dataset, resume=None, name="run", **arguments):
        torch.manual_seed(0)
        settings = {
            "output_dir": str(tmp_path / name),
            "per_device_train_batch_size": 4,
            "num_train_epochs": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        trainer = MaskedAutoencoderTrainer(
            CrateMaeForPreTraining(config),
            TrainingArguments(**{**settings, **arguments}),
            train_dataset=dataset,
            eval_dataset=dataset,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return train


def losses(trainer) -> list[float]:
    return [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def weights(trainer) -> dict[str, torch.Tensor]:
    return trainer.model.state_dict()


def test_evaluation_gives_the_same_loss_each_time(train):
    trainer = train(Images())
    first = trainer.evaluate()["eval_loss"]
    assert first == trainer.evaluate()["eval_loss"]
    expected = trainer.model.eval()(**torch.utils.data.default_collate(Images().items)).loss
    assert first == pytest.approx(expected.item(), rel=1e-5)


def test_training_asks_for_the_loss_alone_and_evaluation_for_everything(train):
    trainer = train(Images(), num_train_epochs=1)
    (batch,) = torch.utils.data.DataLoader(Images(), batch_size=16)
    sizes = []
    trainer.model.decoder.prediction_head.register_forward_hook(lambda *args: sizes.append(args[2][..., 0].numel()))
    trainer.training_step(trainer.model, batch)
    trainer.prediction_step(trainer.model, batch, prediction_loss_only=False)
    assert sizes == [16 * 12, 16 * 16]


@pytest.mark.parametrize("with_noise", [True, False])
def test_runs_repeat_by_seed(train, with_noise):
    runs = [losses(train(Images(with_noise), name=str(number), seed=seed)) for number, seed in enumerate((1, 1, 2))]
    assert runs[0] == runs[1] != runs[2]


def test_gradient_accumulation_equals_a_larger_batch(train):
    accumulated = train(Images(), per_device_train_batch_size=4, gradient_accumulation_steps=4, name="accumulated")
    at_once = train(Images(), per_device_train_batch_size=16, name="at_once")
    torch.testing.assert_close(weights(accumulated), weights(at_once), atol=1e-6, rtol=1e-5)
    assert losses(accumulated) == pytest.approx(losses(at_once), rel=1e-3)  # the log rounds


def test_activation_checkpointing_changes_nothing(train):
    plain = train(Images(), name="plain")
    checkpointed = train(Images(), activation_checkpointing=True, name="checkpointed")
    torch.testing.assert_close(weights(checkpointed), weights(plain), atol=0, rtol=0)


def test_bf16_trains(train):
    trainer = train(Images(), bf16=True, num_train_epochs=8)
    assert losses(trainer)[-1] < losses(trainer)[0]
    assert trainer.model.dtype == torch.float32


@pytest.mark.parametrize("with_noise", [True, False])
def test_resuming_gives_the_unbroken_run(train, with_noise, tmp_path):
    whole = train(Images(with_noise), name="whole", save_strategy="steps", save_steps=3)
    resumed = train(Images(with_noise), name="resumed", resume=str(tmp_path / "whole" / "checkpoint-3"))
    torch.testing.assert_close(weights(resumed), weights(whole), atol=0, rtol=0)
    assert losses(resumed) == losses(whole)


@pytest.mark.parametrize("best", [False, True])
def test_a_vit_mae_is_resumed_and_its_best_weights_are_loaded(tmp_path, best):
    """Transformers saves it under names that are not those of its modules."""
    vit_mae = ViTMAEConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8,
        decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )  # fmt: skip
    states = []
    for resume in (None, str(tmp_path / "0" / "checkpoint-4")):
        torch.manual_seed(len(states))
        model = ViTMAEForPreTraining(vit_mae)
        settings = (
            {"eval_strategy": "steps", "metric_for_best_model": "loss", "greater_is_better": True} if best else {}
        )
        arguments = TrainingArguments(
            str(tmp_path / str(len(states))), per_device_train_batch_size=4, max_steps=8, use_cpu=True,
            save_steps=4, eval_steps=4, disable_tqdm=True, dataloader_pin_memory=False, label_names=["pixel_values"],
            learning_rate=1e-3, load_best_model_at_end=best, **settings,
        )  # fmt: skip
        images = Images()
        SeededTrainer(model, arguments, train_dataset=images, eval_dataset=images).train(resume_from_checkpoint=resume)
        states.append(model.state_dict())
    middle = ViTMAEForPreTraining.from_pretrained(tmp_path / "0" / "checkpoint-4").state_dict()
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())
    assert best == all(torch.equal(middle[name], value) for name, value in states[0].items())


@pytest.mark.parametrize("save", [{"save_strategy": "epoch"}, {"save_strategy": "steps", "save_steps": 3}])
@pytest.mark.parametrize("logging_steps", [1, 2, 50])
def test_a_resumed_run_reports_the_whole_run(train, tmp_path, save, logging_steps):
    settings = {"logging_steps": logging_steps, **save}
    whole = train(Images(), name="whole", **settings)
    history = whole.state.log_history
    (summary,) = [entry for entry in history if "train_loss" in entry]
    if logging_steps == 1:
        assert summary["train_loss"] == pytest.approx(sum(losses(whole)) / 8)
    for checkpoint in sorted((tmp_path / "whole").glob("checkpoint-*")):  # the last one is the end of the run
        resumed = train(Images(), name=f"from_{checkpoint.name}", resume=str(checkpoint), **settings)
        assert losses(resumed) == losses(whole)
        (again,) = [entry for entry in resumed.state.log_history if "train_loss" in entry]
        assert again["train_loss"] == summary["train_loss"]
        saved = json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]["RunRecord"]
        assert again["train_runtime"] >= saved["attributes"]["seconds"] > 0


def test_cpu_seconds_are_those_of_all_training_steps_and_of_no_evaluation(train, tmp_path, monkeypatch):
    seconds = 0.0  # every batch takes one

    def compute_loss(*args, **kwargs):
        nonlocal seconds
        seconds += 1
        return original(*args, **kwargs)

    original = MaskedAutoencoderTrainer.compute_loss
    monkeypatch.setattr(MaskedAutoencoderTrainer, "compute_loss", compute_loss)
    monkeypatch.setattr(record, "user_cpu_seconds", lambda: seconds)
    settings = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 2}
    for name, checkpoint in (("whole", None), ("middle", "checkpoint-3"), ("end", "checkpoint-8")):
        resume = checkpoint and str(tmp_path / "whole" / checkpoint)
        (summary,) = [e for e in train(Images(), resume, name, **settings).state.log_history if "train_loss" in e]
        assert summary["train_cpu_seconds"] == 8


def test_the_data_loaders_workers_count(train):
    class SlowImages(Images):
        def __getitem__(self, index):
            start = os.times().user
            while os.times().user < start + 0.02:
                sum(range(10**4))
            return super().__getitem__(index)

    trainer = train(SlowImages(), dataloader_num_workers=1, num_train_epochs=3)
    (summary,) = [entry for entry in trainer.state.log_history if "train_loss" in entry]
    assert summary["train_cpu_seconds"] > 3 * 16 * 0.02 * 0.9


def test_a_run_of_steps_stops_there_when_it_is_resumed_at_its_end(train, tmp_path):
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 6}  # within the second epoch
    whole = train(Images(), name="whole", **settings)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "whole" / "checkpoint-6").iterdir()}
    resumed = train(Images(), name="whole", resume=str(tmp_path / "whole" / "checkpoint-6"), **settings)
    assert resumed.state.global_step == 6
    torch.testing.assert_close(weights(resumed), weights(whole), atol=0, rtol=0)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "whole" / "checkpoint-6").iterdir()}


def test_another_seed_is_named_in_resuming(train, tmp_path, caplog):
    train(Images(), name="whole", save_strategy="steps", save_steps=3)
    train(Images(), name="resumed", resume=str(tmp_path / "whole" / "checkpoint-3"))
    assert "draws are not those" not in caplog.text
    train(Images(), name="other", resume=str(tmp_path / "whole" / "checkpoint-3"), seed=7)
    assert "`seed` is 7, and was 42 when the checkpoint was made" in caplog.text


def test_checkpoints_of_other_trainers_can_be_resumed(train, tmp_path):
    train(Images(), name="whole", save_strategy="steps", save_steps=3)
    path = tmp_path / "whole" / "checkpoint-3" / "trainer_state.json"
    state = json.loads(path.read_text())
    del state["stateful_callbacks"]["RunRecord"]
    path.write_text(json.dumps(state))
    resumed = train(Images(), name="resumed", resume=str(path.parent), save_strategy="steps", save_steps=3)
    assert resumed.state.global_step == 8


def test_the_best_checkpoint_is_loaded_and_old_ones_go(train, tmp_path):
    trainer = train(
        Images(),
        save_strategy="epoch",
        eval_strategy="epoch",
        num_train_epochs=4,
        learning_rate=0.05,
        save_total_limit=2,
        load_best_model_at_end=True,
    )
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == 2
    assert trainer.state.best_metric == min(e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-6)


def test_a_non_finite_loss_stops_the_run(train, tmp_path):
    with pytest.raises(
        NonFiniteLossError, match=r"The loss became (inf|nan) in step [1-8]\. The images themselves are not finite"
    ):
        train(Images(broken=3), save_strategy="steps", save_steps=1, seed=3)
    checkpoints = sorted((tmp_path / "run").glob("checkpoint-*"))
    assert checkpoints, "the seed was to put the broken image behind a checkpoint"
    loaded = CrateMaeForPreTraining.from_pretrained(checkpoints[-1])
    assert all(torch.isfinite(parameter).all() for parameter in loaded.parameters())


def test_advice_fits_the_cause_of_a_loss_that_is_not_finite(config, train, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"in step [2-8]\. Try a lower learning rate"):
        train(Images(), learning_rate=1e30, max_grad_norm=0.0, name="steep")
    model = CrateMaeForPreTraining(config)
    with torch.no_grad():
        model.decoder.layers[1].dictionary[0, 0] = torch.nan
    arguments = TrainingArguments(output_dir=str(tmp_path / "damaged"), max_steps=1, use_cpu=True, disable_tqdm=True)
    trainer = MaskedAutoencoderTrainer(model, arguments, train_dataset=Images())
    with pytest.raises(NonFiniteLossError, match=r"not finite from the start: 1 of .* decoder\.layers\.1\.dictionary"):
        trainer.train()


def test_ranks_draw_different_masks(config, pixel_values):
    model = CrateMaeForPreTraining(config)
    masks = []
    for rank in (0, 1, 0):
        torch.manual_seed(42)  # as Transformers does on every rank
        SeedCallback(None).on_train_begin(SimpleNamespace(seed=42, process_index=rank), None, None)
        masks.append(model(pixel_values).mask)
    assert torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[1])
