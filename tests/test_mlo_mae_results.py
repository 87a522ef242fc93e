"""The script behind the table of learned masks, without the minutes of training."""

import json
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def script(monkeypatch) -> dict:
    monkeypatch.syspath_prepend(EXAMPLES)  # where Python looks when it runs the script
    return runpy.run_path(str(EXAMPLES / "mlo_mae_results.py"))


def write_seed(folder: Path, names: list[str], accuracy: float) -> None:
    """Write what the steps of a seed leave, as far as it is read."""
    for name in names:
        for step in (folder / name, folder / f"{name}_tuned"):
            step.mkdir(parents=True)
            results = {
                "eval_accuracy": accuracy,
                "eval_mask_entropy": accuracy / 2,
                "train_cpu_seconds": 100 * accuracy,
            }
            for file in ("all_results.json", "eval_results.json"):
                (step / file).write_text(json.dumps(results))
    probes = [
        {"model": str(folder / name), "weights": weights, "linear": accuracy - 0.1}
        for name in names
        for weights in ("trained", "random")
    ]
    (folder / "probes").mkdir()
    (folder / "probes" / "results.json").write_text(json.dumps({"results": probes}))


def test_steps_come_in_order_and_differ_in_masks_alone(script, tmp_path):
    steps = script["commands"](tmp_path, 7)
    assert list(steps)[-1] == tmp_path / "probes" / "results.json"
    flags = {name: list(map(str, steps[tmp_path / name / "eval_results.json"])) for name in script["MODELS"]}
    for name, (_, own) in script["MODELS"].items():
        rest = [flag for flag in flags[name] if flag not in map(str, own) and not flag.endswith(f"/{name}")]
        others = [
            flag for flag in flags["random"] if flag not in ("--masks", "random") and not flag.endswith("/random")
        ]
        assert rest == others
        assert ["--max_steps", str(script["STEPS"])] == rest[rest.index("--max_steps") :][:2]


def test_a_finished_run_is_read_and_not_repeated(script, tmp_path, monkeypatch, capsys):
    for seed, accuracy in ((1, 0.5), (2, 0.6)):
        write_seed(tmp_path / f"seed_{seed}", list(script["MODELS"]), accuracy)
    main = script["main"]
    monkeypatch.setitem(
        main.__globals__["run_missing"].__globals__,
        "run_script",
        lambda *args: pytest.fail("a finished step was repeated"),
    )
    monkeypatch.setattr("sys.argv", ["mlo_mae_results.py", "--output_dir", str(tmp_path), "--seeds", "1", "2"])
    main()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["results"][0]["masks"] == "random masks"
    assert results["results"][0]["fine-tuned"] == "0.5500 ± 0.0707"
    assert results["results"][0]["linear probe"] == "0.4500 ± 0.0707"
    assert results["results"][-1]["masks"] == "no training"
    assert "No setting was tuned" in (tmp_path / "results.md").read_text()
    assert "python examples/run_mlo_mae.py" in results["commands"]["1"][0]
    assert "0.5500 ± 0.0707" in capsys.readouterr().out
