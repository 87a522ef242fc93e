"""examples/vit_mae_baseline.py as a user runs it, on a few of the bundled images."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModel, ViTMAEForPreTraining

from crate_mae_hf import CrateMaeConfig, CrateMaeForPreTraining, CrateMaeImageProcessor
from crate_mae_hf.cli import read_recipe

EXAMPLES = Path(__file__).parents[1] / "examples"
SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
FLAGS = {
    "config_overrides": ",".join(
        f"{prefix}{name}={value}" for prefix in ("", "decoder_") for name, value in SHAPE.items()
    ),
    "dataset_name": EXAMPLES / "data" / "fashion_mnist_sample",
    "max_train_samples": 8,
    "max_eval_samples": 4,
    "per_device_train_batch_size": 4,
    "dataloader_num_workers": 0,
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture
def crate_mae(tmp_path) -> Path:
    """Folder of a CRATE-MAE whose training took a tenth of a second."""
    config = CrateMaeConfig(
        image_size=28, patch_size=7, num_channels=1, hidden_size=16, num_attention_heads=2, num_hidden_layers=1,
        decoder_num_hidden_layers=1,
    )  # fmt: skip
    CrateMaeForPreTraining(config).save_pretrained(tmp_path / "crate_mae")
    CrateMaeImageProcessor.from_config(config, [0.3]).save_pretrained(tmp_path / "crate_mae")
    (tmp_path / "crate_mae" / "all_results.json").write_text('{"train_cpu_seconds": 0.1}')
    return tmp_path / "crate_mae"


@pytest.fixture
def baseline() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vit_mae_baseline", EXAMPLES / "vit_mae_baseline.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(baseline, crate_mae, tmp_path, monkeypatch):
    """Run the script in this process, and return the folder it writes to."""

    def run(name: str, **flags) -> Path:
        pairs = {**FLAGS, "output_dir": tmp_path / name, "seed": 1, **flags}
        arguments = [part for key, value in pairs.items() for part in (f"--{key}", str(value))]
        monkeypatch.setattr(sys, "argv", ["vit_mae_baseline.py", str(crate_mae), *arguments])
        baseline.main()
        return tmp_path / name

    return run


def test_steps_are_those_that_the_cpu_seconds_of_the_crate_mae_pay_for(run, baseline, monkeypatch, capsys):
    ticks = iter(range(10**6))
    monkeypatch.setattr(baseline, "user_cpu_seconds", lambda: next(ticks) * 0.03)
    folder = run("out")
    assert json.loads((folder / "trainer_state.json").read_text())["max_steps"] == 3
    printed = capsys.readouterr().out
    assert "trained for 0.1 CPU seconds; at 0.0300 each these are 3 steps" in printed
    results = json.loads((folder / "all_results.json").read_text())
    assert f"{results['train_cpu_seconds']:.1f} of the ViTMAE" in printed
    assert results["eval_mask_ratio"] == 0.75
    assert 0.1 < results["eval_masked_error"] < 10
    model = ViTMAEForPreTraining.from_pretrained(folder)
    assert model.config.to_dict().items() >= {**SHAPE, "patch_size": 7, "norm_pix_loss": True}.items()
    assert all(parameter.any() for name, parameter in model.named_parameters() if "pos" in name or "token" in name)
    assert CrateMaeImageProcessor.from_pretrained(folder).image_mean == (0.3,)
    AutoModel.from_pretrained(folder)
    with pytest.raises(ValueError, match="holds a finished run"):
        run("out")


def test_a_resumed_run_has_the_length_of_its_first_start(run, baseline, monkeypatch):
    def interrupt(trainer, *args):
        if trainer.state.global_step == 3:
            raise KeyboardInterrupt
        return training_step(trainer, *args)

    training_step = baseline.SeededTrainer.training_step
    monkeypatch.setattr(baseline, "affordable_steps", lambda *args: 5)
    whole = run("whole", save_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(baseline.SeededTrainer, "training_step", interrupt)
        with pytest.raises(SystemExit):
            run("resumed", save_steps=2)
    monkeypatch.setattr(baseline, "affordable_steps", lambda *args: pytest.fail("was measured again"))
    resumed = run("resumed", save_steps=2)
    assert json.loads((resumed / "trainer_state.json").read_text())["global_step"] == 5
    models = [ViTMAEForPreTraining.from_pretrained(folder).state_dict() for folder in (whole, resumed)]
    assert all(torch.equal(models[1][name], value) for name, value in models[0].items())
    assert "eval_masked_error" in json.loads((resumed / "all_results.json").read_text())


def test_a_given_number_of_steps_needs_no_trial(run, baseline, monkeypatch):
    monkeypatch.setattr(baseline, "affordable_steps", lambda *args: pytest.fail("was measured"))
    folder = run("out", max_steps=1, mask_ratio=0.5)
    assert json.loads((folder / "all_results.json").read_text())["eval_mask_ratio"] == 0.5


def test_bad_input_is_named(run, crate_mae):
    with pytest.raises(ValueError, match="`config_overrides` sets patch_size, which must be that of the CRATE-MAE"):
        run("shape", config_overrides="patch_size=4")
    (crate_mae / "all_results.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no finished training in .*crate_mae that says its `train_cpu_seconds`"):
        run("unfinished")
    (crate_mae / "config.json").unlink()
    with pytest.raises(ValueError, match="`crate_mae`: there is no model in"):
        run("missing")


def test_the_recipe_is_one_of_the_bundled_images_and_leaves_the_length_open():
    recipe = read_recipe(EXAMPLES / "recipes" / "vit_mae_fashion_mnist_sample.yaml")
    ours = read_recipe(EXAMPLES / "recipes" / "fashion_mnist_sample.yaml")
    same = ("dataset_name", "validation_split_name", "min_crop_scale", "horizontal_flip", "dataloader_num_workers")
    assert {name: recipe[name] for name in same} == {name: ours[name] for name in same}
    assert not {"max_steps", "num_train_epochs"} & recipe.keys()
