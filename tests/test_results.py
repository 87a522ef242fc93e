"""The scripts behind the README's table of results, without the hours of training."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from transformers import ViTMAEConfig

from crate_mae_hf import CrateMaeConfig, CrateMaeForImageClassification
from crate_mae_hf.training import steps

EXAMPLES = Path(__file__).parents[1] / "examples"
SHAPE = {"image_size": 28, "patch_size": 7, "num_channels": 1, "hidden_size": 16, "num_attention_heads": 2}

ENCODERS = ("demo", "vit_mae", "vic_mae")
CLASSIFIERS = ("fine_tuned", "from_scratch", "crate", "vit", "vit_equal_time", "crate_alpha", "crate_alpha_equal_time")


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
    for name in (*ENCODERS, *CLASSIFIERS):
        (folder / name).mkdir(parents=True)
        results = {"train_cpu_seconds": 100 * accuracy, "eval_accuracy": accuracy, "epoch": 5.0}
        for file in ("all_results.json", "eval_results.json"):
            (folder / name / file).write_text(json.dumps(results | {"eval_masked_error": 0.6}))
        if name in CLASSIFIERS:
            CrateMaeForImageClassification(config).save_pretrained(folder / name)
    for name in ("demo", "vic_mae"):
        config.save_pretrained(folder / name)
    ViTMAEConfig(mask_ratio=0.75).save_pretrained(folder / "vit_mae")
    (folder / "demo" / "metrics.json").write_text(json.dumps({"masked_error": {"model": accuracy / 2}}))
    probes = {"linear": accuracy, "linear_1000": accuracy - 0.1, "linear_100": accuracy - 0.2, "knn": 0.7}
    for step, models in (("probes", ("demo", "vit_mae")), ("vic_mae_probes", ("vic_mae",))):
        rows = [
            {"model": str(folder / model), "weights": weights, "features": features, "parameters": 7, **probes}
            for model in models
            for weights in (("trained", "random") if step == "probes" else ("trained",))
            for features in ("mean", "cls_mean", "grid")
        ]
        if step == "probes":
            rows.append({"model": "raw pixels", "features": "pixels", **probes})
        (folder / step).mkdir()
        (folder / step / "results.json").write_text(json.dumps({"results": rows}))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the script in this process, for seeds of which all is there, and return what it wrote."""

    def run(*seeds: int) -> dict:
        results = load_script("results")
        monkeypatch.setattr(steps, "run_script", lambda *args: pytest.fail("a finished step was repeated"))
        monkeypatch.setattr(sys, "argv", ["results.py", "--output_dir", str(tmp_path), "--seeds", *map(str, seeds)])
        results.main()
        return json.loads((tmp_path / "results.json").read_text())

    return run


def test_tables_of_results(run, config, tmp_path, capsys):
    for seed, accuracy in ((1, 0.8), (2, 0.9)):
        write_seed(tmp_path / f"seed_{seed}", config, accuracy)
    written = run(1, 2)
    encoders = {(row["model"], row["features"]): row for row in written["results"]["Pre-trained encoders"]}
    names = [f"{model}{weights}" for model in ("CRATE-MAE", "ViTMAE") for weights in ("", ", random weights")]
    features = [(name, kind) for name in names for kind in ("mean", "cls_mean", "grid")]
    vic_mae = [("CRATE-MAE, by ViC-MAE", kind) for kind in ("mean", "cls_mean", "grid")]
    assert list(encoders) == [*features, ("raw pixels", "pixels"), *vic_mae]
    probed = {"all labels": "0.8500 ± 0.0707", "1,000 labels": "0.7500 ± 0.0707", "100 labels": "0.6500 ± 0.0707"}
    assert encoders["CRATE-MAE", "mean"] == {
        "model": "CRATE-MAE",
        "features": "mean",
        "encoder parameters": "7",
        "CPU seconds": "85 ± 7",
        "masked error": "0.4250 ± 0.0354",
        "at mask ratio": "0.5",
        **probed,
        "k-NN": "0.7",
    }
    assert encoders["ViTMAE", "cls_mean"].items() >= {"masked error": "0.6", "at mask ratio": "0.75", **probed}.items()
    assert not {"CPU seconds", "masked error"} & encoders["ViTMAE, random weights", "mean"].keys()
    assert encoders["raw pixels", "pixels"] == {"model": "raw pixels", "features": "pixels", **probed, "k-NN": "0.7"}

    tuned, *others = written["results"]["Trained on the labels"]
    assert len(others) == 6
    assert tuned == {
        "model": "CRATE-MAE, fine-tuned from the pre-trained",
        "parameters": str(CrateMaeForImageClassification(config).num_parameters()),
        "epochs": "5",
        "CPU seconds": "85 ± 7",
        "test accuracy": "0.8500 ± 0.0707",
    }
    assert [written["seeds"]["Trained on the labels"][seed][0]["test accuracy"] for seed in ("1", "2")] == [0.8, 0.9]
    probing = [command for command in written["commands"]["2"] if "run_linear_probe.py" in command]
    assert ["--random_init --raw_pixels" in command for command in probing] == [True, False]
    assert all("--features mean cls_mean grid --few_labels 1000 100 --seed 2" in command for command in probing)

    for text in ((tmp_path / "results.md").read_text(), capsys.readouterr().out):
        assert text.index("standard deviation over seeds") < text.index("encoder parameters")
        assert text.index("encoder parameters") < text.index("test accuracy")
        assert "**" not in text


def test_one_seed_has_no_spread(run, config, tmp_path):
    write_seed(tmp_path / "seed_1", config, 0.8)
    row = run(1)["results"]["Pre-trained encoders"][0]
    assert (row["all labels"], row["CPU seconds"]) == ("0.8", "80")


def test_results_of_an_earlier_version_are_pointed_out(run, config, tmp_path):
    write_seed(tmp_path / "seed_1", config, 0.8)
    (tmp_path / "seed_1" / "vit_mae" / "all_results.json").write_text("{}")
    with pytest.raises(ValueError, match=r"all_results.json has no `eval_masked_error`, it is of an earlier version"):
        run(1)


def test_a_missing_step_is_run_and_its_failure_ends_the_script(config, tmp_path, monkeypatch):
    results = load_script("results")
    write_seed(tmp_path / "seed_1", config, 0.8)
    (tmp_path / "seed_1" / "vit" / "eval_results.json").unlink()
    commands = []

    def run_script(*command):
        commands.append(list(map(str, command)))
        sys.exit(3)

    monkeypatch.setattr(steps, "run_script", run_script)
    monkeypatch.setattr(sys, "argv", ["results.py", "--output_dir", str(tmp_path), "--seeds", "1"])
    with pytest.raises(SystemExit) as stopped:
        results.main()
    assert stopped.value.code == 3
    assert len(commands) == 1
    assert commands[0][0].endswith("run_image_classification.py")
    assert commands[0][commands[0].index("--model_type") + 1] == "vit"
