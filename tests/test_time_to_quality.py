"""benchmarks/time_to_quality.py: the table and picture of what runs have left, and a few steps of real runs."""

import json
from pathlib import Path

import datasets
import pytest

from benchmarks import time_to_quality
from crate_mae_hf.cli import read_recipe
from crate_mae_hf.training import steps


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def probe(model: object, weights: str, accuracy: float) -> dict:
    return {"model": str(model), "weights": weights, "linear": accuracy, "linear_1000": accuracy - 0.05}


def write_seed(folder: Path, better: float = 0.0) -> None:
    """Write what the steps of a seed leave: the CRATE-MAE is at 0.80 and 0.84, the ViTMAE at 0.78 and 0.82."""
    for share, accuracy in ((0.25, 0.80), (1.0, 0.84)):
        run, rows = folder / f"share_{share:g}", []
        for name, worse in (("crate_mae", 0.0), ("vit_mae", 0.02)):
            write_json(run / name / "eval_results.json", {})
            write_json(run / name / "trainer_state.json", {"global_step": int(share * (2000 if worse else 1000))})
            rows.append(probe(run / name, "trained", accuracy - worse + better))
        write_json(run / "probes" / "results.json", {"results": rows})
        errors = {"CRATE-MAE": {0.5: 0.4, 0.75: 0.6}, "ViTMAE": {0.5: 0.5, 0.75: 0.45}}
        write_json(
            run / "errors.json",
            {model: {f"error at {ratio}": e for ratio, e in each.items()} for model, each in errors.items()},
        )
    untrained = [
        probe(run / name, weights, accuracy)
        for name in ("crate_mae", "vit_mae")
        for weights, accuracy in (("trained", 0.1), ("random", 0.7))
    ]
    pixels = {"model": "raw pixels", "linear": 0.83, "linear_1000": 0.79}
    write_json(folder / "untrained" / "results.json", {"results": [*untrained, pixels]})


def write_rates(folder: Path) -> None:
    """Write what a step takes in three rounds, whose medians count."""
    write_json(folder / "rates.json", {"CRATE-MAE": [0.404, 0.4, 0.6], "ViTMAE": [0.2, 0.25, 0.1]})


def main(folder: Path, *seeds: int, shares: tuple[float, ...] = (1, 0.25)) -> dict:
    arguments = ["--output_dir", folder, "--seeds", *seeds, "--shares", *shares]
    time_to_quality.main(list(map(str, arguments)))
    return json.loads((folder / "results.json").read_text())


@pytest.fixture
def finished(monkeypatch):
    monkeypatch.setattr(steps, "run_script", lambda *command: pytest.fail(f"a finished step was repeated: {command}"))


def test_the_table_is_of_what_the_runs_have_left(finished, tmp_path, capsys):
    write_rates(tmp_path)
    for seed, better in ((1, 0.0), (2, 0.01)):
        write_seed(tmp_path / f"seed_{seed}", better)
    written = main(tmp_path, 1, 2)
    lengths = [(row["model"], row.get("of the recipe"), row.get("steps")) for row in written["results"]]
    assert lengths == [
        ("CRATE-MAE", "0.25", "250"),
        ("ViTMAE", "0.25", "500"),
        ("CRATE-MAE", "1", "1000"),
        ("ViTMAE", "1", "2000"),
        ("CRATE-MAE, random weights", None, None),
        ("ViTMAE, random weights", None, None),
        ("raw pixels", None, None),
    ]
    assert written["results"][3] == {
        "model": "ViTMAE",
        "of the recipe": "1",
        "CPU seconds": "400",
        "steps": "2000",
        "error at 0.5": "0.5",
        "error at 0.75": "0.45",
        "all labels": "0.8250 ± 0.0071",
        "1,000 labels": "0.7750 ± 0.0071",
    }
    assert written["results"][4]["all labels"] == "0.7"
    reached = [tuple(row.values()) for row in written["seconds"]]
    assert ("all labels", "0.81", "120", "238") in reached  # 101 * 4 ** (1 / 8), 100 * 4 ** (5 / 8)
    assert reached[0] == ("all labels", "0.79", "<= 101", "119")
    assert ("all labels", "0.84", "340", "> 400") in reached
    for text in ((tmp_path / "results.md").read_text(), capsys.readouterr().out):
        assert text.index("Mask ratios of training: CRATE-MAE 0.5, ViTMAE 0.75") < text.index("| model")
        assert "CRATE-MAE 0.4040 (0.4000-0.6000), ViTMAE 0.2000 (0.1000-0.2500)" in text
    assert (tmp_path / "time_to_quality.png").stat().st_size > 10_000


def test_every_point_of_the_picture_is_a_run(finished, tmp_path):
    write_rates(tmp_path)
    write_seed(tmp_path / "seed_1")
    measured = main(tmp_path, 1)["seeds"]["1"]
    figure = time_to_quality.plot([measured])
    all_labels = figure.axes[2]
    assert [line.get_ydata()[0] for line in all_labels.lines[2:]] == [0.7, 0.7, 0.83]
    crate_mae, vit_mae = ([tuple(point) for point in drawn.get_offsets()] for drawn in all_labels.collections)
    assert crate_mae == [(101, 0.80), (404, 0.84)]
    assert vit_mae == [(100, pytest.approx(0.78)), (400, pytest.approx(0.82))]
    assert ["trains at this ratio" in axes.get_title() for axes in figure.axes] == [True, True, False, False]


def test_a_missing_run_is_whole_and_the_vit_mae_gets_as_many_seconds(tmp_path, monkeypatch):
    write_rates(tmp_path)
    write_seed(tmp_path / "seed_1")
    for name in ("crate_mae", "vit_mae"):
        (tmp_path / "seed_1" / "share_0.25" / name / "eval_results.json").unlink()
    run = []
    monkeypatch.setattr(steps, "run_script", lambda *command: run.append(list(map(str, command))))
    main(tmp_path, 1)
    (ours, *flags), (theirs, crate_mae, *others) = run
    assert (Path(ours).name, Path(theirs).name) == ("run_mae.py", "vit_mae_baseline.py")
    recipe = read_recipe(time_to_quality.RECIPES["CRATE-MAE"])
    batches = -(-10_000 // recipe["per_device_train_batch_size"])
    length = int(flags[flags.index("--max_steps") + 1])
    assert length == -(-recipe["num_train_epochs"] * batches // 4)  # as Trainer rounds a quarter of the epochs
    assert int(others[others.index("--max_steps") + 1]) * 0.2 == pytest.approx(length * 0.404, abs=0.1)
    assert crate_mae == flags[flags.index("--output_dir") + 1] == str(tmp_path / "seed_1" / "share_0.25" / "crate_mae")
    for name in ("--seed", "--dataset_name"):
        assert flags[flags.index(name) + 1] == others[others.index(name) + 1]


def test_rates_are_measured_in_turns_and_once(tmp_path, monkeypatch):
    started = []

    def time_program(program: str, flags: list, first: int, last: int) -> dict[str, float]:
        assert flags[flags.index("--max_steps") + 1] == last
        started.append(program)
        return {"cpu_seconds": (0.4 if program == "run_mae.py" else 0.1) * (last - first)}

    monkeypatch.setattr(time_to_quality, "time_program", time_program)
    rounds = time_to_quality.ROUNDS
    measured = time_to_quality.measure_rates(tmp_path / "new")
    assert started == ["run_mae.py", "vit_mae_baseline.py"] * rounds
    assert measured == {"CRATE-MAE": [pytest.approx(0.4)] * rounds, "ViTMAE": [pytest.approx(0.1)] * rounds}
    assert time_to_quality.measure_rates(tmp_path / "new") == measured
    assert len(started) == 2 * rounds


def test_errors_of_the_two_are_of_the_same_targets():
    recipes = [read_recipe(path) for path in time_to_quality.RECIPES.values()]
    assert [recipe["norm_pix_loss"] for recipe in recipes] == [True, True]
    assert [recipe["mask_ratio"] for recipe in recipes] == list(time_to_quality.ERRORS)


def test_no_length_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        time_to_quality.main(["--shares", "0", "1", "--output_dir", str(tmp_path)])
    assert "`--shares` must be positive, got 0" in capsys.readouterr().err


@pytest.mark.slow
def test_real_runs(tmp_path, monkeypatch):
    """Both recipes for a few steps, in processes of their own."""
    (tmp_path / "images").mkdir()
    for split, count in (("train", 160), ("test", 60)):
        images = datasets.load_dataset(str(time_to_quality.DATA), split=split).select(range(count))
        images.to_parquet(tmp_path / "images" / f"{split}.parquet")
    monkeypatch.setattr(time_to_quality, "DATA", tmp_path / "images")
    monkeypatch.setattr(time_to_quality, "FEW_LABELS", 100)
    monkeypatch.setattr(time_to_quality, "ROUNDS", 1)
    out = tmp_path / "out"
    measured = main(out, 1, shares=(1,))["seeds"]["1"]
    ours, theirs = measured[:2]
    assert ours["steps"] == 9 * 3  # batches
    rates = {model: rounds[0] for model, rounds in json.loads((out / "rates.json").read_text()).items()}
    assert theirs["steps"] == round(ours["steps"] * rates["CRATE-MAE"] / rates["ViTMAE"]) > 0
    assert ours["CPU seconds"] == pytest.approx(ours["steps"] * rates["CRATE-MAE"], abs=0.5)
    # At its own ratio each error is the one that the model's script has measured.
    run = out / "seed_1" / "share_1"
    results = [json.loads((run / name / "all_results.json").read_text()) for name in time_to_quality.FOLDERS]
    assert ours["error at 0.5"] == pytest.approx(results[0]["eval_loss"], rel=1e-4)
    assert theirs["error at 0.75"] == pytest.approx(results[1]["eval_masked_error"], rel=1e-4)
    assert len({model[column] for model in measured[:2] for column in time_to_quality.ERRORS.values()}) == 4
    monkeypatch.setattr(steps, "run_script", lambda *command: pytest.fail(f"a finished step was repeated: {command}"))
    assert main(out, 1, shares=(1,))["seeds"]["1"] == measured
