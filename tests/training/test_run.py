"""The whole run, with a Trainer that is real but for the Hub."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainingArguments

from crate_mae_hf import CrateMaeForPreTraining
from crate_mae_hf.data.images import ImageArguments
from crate_mae_hf.training import run
from crate_mae_hf.training.run import run_trainer


@pytest.fixture
def build_trainer(config, tmp_path):
    def build_trainer(name, **arguments):
        torch.manual_seed(0)
        images = [{"pixel_values": torch.full((3, 32, 32), float(i)), "noise": torch.rand(16)} for i in range(4)]
        settings = {
            "output_dir": str(tmp_path / name),
            "max_steps": 2,
            "save_strategy": "steps",
            "save_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        args = TrainingArguments(**settings, **arguments)
        return Trainer(CrateMaeForPreTraining(config), args, train_dataset=images, eval_dataset=images)

    return build_trainer


def written(folder) -> set[str]:
    return {path.name for path in folder.glob("*.json")} - {"config.json"}


def test_training_and_evaluation_are_done_where_asked_for(build_trainer, tmp_path):
    run_trainer(build_trainer("both", do_train=True, do_eval=True), None, ImageArguments())
    assert written(tmp_path / "both") == {
        "all_results.json",
        "eval_results.json",
        "train_results.json",
        "trainer_state.json",
    }
    assert {"train_runtime", "eval_loss"} <= set(json.loads((tmp_path / "both" / "all_results.json").read_text()))
    assert (tmp_path / "both" / "model.safetensors").is_file()
    run_trainer(build_trainer("train", do_train=True), None, ImageArguments())
    assert written(tmp_path / "train") == {"all_results.json", "train_results.json", "trainer_state.json"}
    run_trainer(build_trainer("eval", do_eval=True), None, ImageArguments())
    assert written(tmp_path / "eval") == {"all_results.json", "eval_results.json"}


def test_a_run_is_resumed(build_trainer, tmp_path):
    run_trainer(build_trainer("first", do_train=True), None, ImageArguments())
    trainer, seen = build_trainer("second", do_train=True), []
    trainer.model.register_forward_hook(lambda *args: seen.append(trainer.state.global_step))
    run_trainer(trainer, str(tmp_path / "first" / "checkpoint-1"), ImageArguments())
    assert seen == [1]


def test_the_end_is_pushed(build_trainer, monkeypatch):
    pushed = []
    monkeypatch.setattr(run, "push_run", lambda *arguments: pushed.append(arguments))
    trainer, images = build_trainer("out", do_eval=True), ImageArguments()
    run_trainer(trainer, None, images, ("layer_decay",))
    assert pushed == []
    ended = []
    trainer.args.push_to_hub = True
    trainer.accelerator = SimpleNamespace(end_training=lambda: ended.append(len(pushed)))
    monkeypatch.setattr(trainer, "evaluate", lambda: {"eval_loss": 1.0})
    run_trainer(trainer, None, images, ("layer_decay",))
    assert pushed == [(trainer, images, ("layer_decay",))]
    assert ended == [1]  # the end comes last
