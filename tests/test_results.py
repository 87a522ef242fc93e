"""The scripts behind the README's table of results, without the hours of training."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from crate_mae_hf import CrateMaeConfig, CrateMaeForImageClassification

EXAMPLES = Path(__file__).parents[1] / "examples"
SHAPE = {"image_size": 28, "patch_size": 7, "num_channels": 1, "hidden_size": 16, "num_attention_heads": 2}


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config() -> CrateMaeConfig:
    return CrateMaeConfig(**SHAPE, num_hidden_layers=2, decoder_num_hidden_layers=1, mask_ratio=0.5, num_labels=10)


def write_seed(folder: Path, config: CrateMaeConfig, accuracy: float) -> None:
    """Write what the steps of a seed leave, as far as it is read."""
    for name in ("demo", "vit_mae", "fine_tuned", "from_scratch", "crate", "vit"):
        (folder / name).mkdir(parents=True)
        results = {"train_runtime": 100.0, "eval_accuracy": accuracy}
        for file in ("all_results.json", "eval_results.json"):
            (folder / name / file).write_text(json.dumps(results))
        history = [{"step": 1, "loss": 1.0}, {"step": 1, "eval_runtime": 2.5}, {"step": 2, "eval_runtime": 7.5}]
        (folder / name / "trainer_state.json").write_text(json.dumps({"log_history": history}))
        if name not in ("demo", "vit_mae"):
            CrateMaeForImageClassification(config).save_pretrained(folder / name)
    (folder / "demo" / "metrics.json").write_text("{}")
    (folder / "probes").mkdir()
    rows = [
        {"model": str(folder / model), "weights": weights, "linear": accuracy, "parameters": 7}
        for model in ("demo", "vit_mae")
        for weights in ("trained", "random")
    ]
    rows.append({"model": "raw pixels", "linear": accuracy / 2})
    (folder / "probes" / "results.json").write_text(json.dumps({"results": rows}))


def test_table_of_results(config, tmp_path, monkeypatch, capsys):
    results = load_script("results")
    for seed, accuracy in ((1, 0.8), (2, 0.9)):
        write_seed(tmp_path / f"seed_{seed}", config, accuracy)
    monkeypatch.setattr(results, "run_script", lambda *args: pytest.fail("a finished step was repeated"))
    monkeypatch.setattr(sys, "argv", ["results.py", "--output_dir", str(tmp_path), "--seeds", "1", "2"])
    results.main()
    written = json.loads((tmp_path / "results.json").read_text())
    table = {row["model"]: row for row in written["results"]}
    assert len(table) == 9
    tuned = table["CRATE-MAE, fine-tuned from the pre-trained"]
    assert tuned["test accuracy"] == pytest.approx(0.85)
    assert tuned["spread"] == pytest.approx(0.05 * 2**0.5)
    assert tuned["training seconds"] == 90  # evaluations do not count
    assert tuned["parameters"] == CrateMaeForImageClassification(config).num_parameters()
    assert table["raw pixels, linear probe"]["test accuracy"] == pytest.approx(0.425)
    assert "training seconds" not in table["CRATE-MAE, random weights, linear probe"]
    assert any("run_linear_probe.py" in command and "--seed 2" in command for command in written["commands"]["2"])
    lines = [re.sub(" +", " ", line) for line in (tmp_path / "results.md").read_text().splitlines()]
    assert "| raw pixels, linear probe | 0.425 | 0.03536 | | |" in lines
    assert "Written to" in capsys.readouterr().out


def test_a_missing_step_is_run_and_its_failure_ends_the_script(config, tmp_path, monkeypatch):
    results = load_script("results")
    write_seed(tmp_path / "seed_1", config, 0.8)
    (tmp_path / "seed_1" / "vit" / "eval_results.json").unlink()
    commands = []

    def run_script(*command):
        commands.append(list(map(str, command)))
        sys.exit(3)

    monkeypatch.setattr(results, "run_script", run_script)
    monkeypatch.setattr(sys, "argv", ["results.py", "--output_dir", str(tmp_path), "--seeds", "1"])
    with pytest.raises(SystemExit) as stopped:
        results.main()
    assert stopped.value.code == 3
    assert len(commands) == 1
    assert commands[0][0].endswith("run_image_classification.py")
    assert commands[0][commands[0].index("--model_type") + 1] == "vit"
