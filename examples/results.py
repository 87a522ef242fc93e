#!/usr/bin/env python
# /// script
# dependencies = ["crate-mae-hf[train,figures]"]
# ///
"""Measure what the README's table of results says about the bundled Fashion-MNIST sample.

    python examples/results.py --output_dir outputs/results --seeds 42 1 2

Runs the other example scripts for each seed. A step whose result is there is not repeated: an interrupted run goes on
where it was, and seeds may run side by side. Leaves `results.md` and `results.json` in the output folder. About
half an hour per seed on one CPU core.
"""

import argparse
import json
import shlex
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoModelForImageClassification

from crate_mae_hf import CrateConfig
from crate_mae_hf.cli import clear_errors, parse_overrides
from crate_mae_hf.evaluation.results import library_versions
from crate_mae_hf.tables import Row, markdown_table, text_table
from crate_mae_hf.training.steps import run_script

EXAMPLES = Path(__file__).parent
DATA = EXAMPLES / "data" / "fashion_mnist_sample"
FINE_TUNING = EXAMPLES / "recipes" / "fine_tune_fashion_mnist_sample.yaml"
SUPERVISED = EXAMPLES / "recipes" / "crate_fashion_mnist_sample.yaml"


# Rows of the table by the name of the step.
MODELS = {"demo": "CRATE-MAE", "vit_mae": "ViTMAE of equal width and depth"}
CLASSIFIERS = {
    "fine_tuned": "CRATE-MAE, fine-tuned from the pre-trained",
    "from_scratch": "CRATE-MAE, trained from scratch",
    "crate": "CRATE, trained from scratch",
    "vit": "ViT of CRATE's width and depth, trained from scratch",
}


@dataclass
class Measurement:
    """What one step of one seed gave; `seconds` of training, without evaluations in between."""

    accuracy: float
    parameters: int | None = None
    seconds: float | None = None


def commands(folder: Path, seed: int) -> dict[Path, list[Any]]:
    """Return the script and flags of each step by the file it leaves at its end; steps build on those before."""
    # A ViT of the same shape, with the usual MLPs of four times its width.
    shape = yaml.safe_load(SUPERVISED.read_text())["config_overrides"]
    width = parse_overrides(shape, CrateConfig)["hidden_size"]
    vit = ["--model_type", "vit", "--config_overrides", f"{shape},intermediate_size={4 * width}"]
    demo, vit_mae, seeded = folder / "demo", folder / "vit_mae", ["--seed", seed]
    classify = ["--dataset_name", DATA, "--resume_from_checkpoint", "auto", *seeded]
    probe = ["--random_init", "--raw_pixels", "--features", "cls_mean"]
    steps: dict[str, tuple[str, list[Any]]] = {
        "demo": ("metrics.json", ["demo.py", *seeded]),
        "vit_mae": ("trainer_state.json", ["vit_mae_baseline.py", demo, *seeded]),
        "probes": (
            "results.json",
            ["run_linear_probe.py", "--model_name_or_path", demo, vit_mae, *probe, *seeded],
        ),
    }
    classifiers: dict[str, list[Any]] = {
        "fine_tuned": [FINE_TUNING, "--model_name_or_path", demo],
        "from_scratch": [FINE_TUNING, "--config_name", demo, "--image_processor_name", demo, "--layer_decay", 1],
        "crate": [SUPERVISED],
        "vit": [SUPERVISED, *vit],
    }
    for name, flags in classifiers.items():
        steps[name] = ("eval_results.json", ["run_image_classification.py", *flags, *classify])
    return {
        folder / name / result: [*command, "--output_dir", folder / name] for name, (result, command) in steps.items()
    }


def training_seconds(folder: Path) -> float:
    """Return how long a run trained, without its evaluations."""
    runtime = json.loads((folder / "all_results.json").read_text())["train_runtime"]
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return runtime - sum(entry.get("eval_runtime", 0.0) for entry in history if entry["step"] > 0)


def read_seed(folder: Path) -> dict[str, Measurement]:
    """Return what the steps of a seed gave, by row of the table."""
    seconds = {name: training_seconds(folder / name) for name in ("demo", "vit_mae")}
    probes = json.loads((folder / "probes" / "results.json").read_text())["results"]
    rows = {}
    for row in probes:
        if row["model"] == "raw pixels":
            rows["raw pixels, linear probe"] = Measurement(row["linear"])
            continue
        name, trained = Path(row["model"]).name, row["weights"] == "trained"
        label = f"{MODELS[name]}, {'pre-trained' if trained else 'random weights'}, linear probe"
        rows[label] = Measurement(row["linear"], row["parameters"], seconds[name] if trained else None)
    for name, label in CLASSIFIERS.items():
        accuracy = json.loads((folder / name / "eval_results.json").read_text())["eval_accuracy"]
        model = AutoModelForImageClassification.from_pretrained(folder / name)
        rows[label] = Measurement(accuracy, model.num_parameters(), training_seconds(folder / name))
    return rows


def summarise(seeds: dict[int, dict[str, Measurement]]) -> list[Row]:
    """Return the table: accuracy as mean and standard deviation over seeds, and the shortest time."""
    first, *_ = seeds.values()
    table = []
    for label, measurement in first.items():
        accuracies = [rows[label].accuracy for rows in seeds.values()]
        times = [seconds for rows in seeds.values() if (seconds := rows[label].seconds) is not None]
        row: Row = {"model": label, "test accuracy": statistics.mean(accuracies)}
        if len(accuracies) > 1:
            row["spread"] = statistics.stdev(accuracies)
        if measurement.parameters is not None:
            row["parameters"] = measurement.parameters
        if times:
            row["training seconds"] = round(min(times))  # the run that the machine disturbed least
        table.append(row)
    return table


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/results"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    args = parser.parse_args()
    run: dict[int, list[str]] = {}
    for seed in args.seeds:
        run[seed] = []
        for result, (script, *flags) in commands(args.output_dir / f"seed_{seed}", seed).items():
            command = ["python", f"examples/{script}", *map(str, flags)]
            run[seed].append(shlex.join(command))
            if not result.exists():
                print(f"\n{run[seed][-1]}", flush=True)
                run_script(EXAMPLES / script, *flags)

    measured = {seed: read_seed(args.output_dir / f"seed_{seed}") for seed in args.seeds}
    table = summarise(measured)
    results = {
        "results": table,
        "seeds": {seed: {label: asdict(one) for label, one in rows.items()} for seed, rows in measured.items()},
        "commands": run,
        "versions": library_versions(),
    }
    (args.output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (args.output_dir / "results.md").write_text(markdown_table(table))
    print(f"\n{text_table(table)}\n\nWritten to {args.output_dir}: results.md, results.json")


if __name__ == "__main__":
    with clear_errors():
        main()
