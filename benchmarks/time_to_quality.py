"""Time to quality: held-out error and probes against CPU seconds of training: `python -m benchmarks.time_to_quality`.

CRATE-MAE by its recipe for the bundled sample, in several lengths, and for each a ViTMAE of equal CPU seconds by its
own. First, on a machine without other work, it measures what a step of each takes, and keeps that in `rates.json`. Then
it runs the example scripts; a step whose result is there is not repeated: an interrupted run goes on where it was, and
once the rates are there seeds may run side by side. Half an hour to an hour of CPU time per seed.
"""

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from tqdm.auto import trange
from transformers import AutoImageProcessor, AutoModelForPreTraining

from benchmarks.measure import describe_machine, summarize
from benchmarks.timed_run import time_program
from crate_mae_hf.cli import clear_errors, read_recipe
from crate_mae_hf.data.augmentation import build_eval_transform
from crate_mae_hf.data.masks import MaskingDataset
from crate_mae_hf.evaluation.reconstruction import masked_error
from crate_mae_hf.tables import Row, markdown_table, summarise
from crate_mae_hf.training.checkpoints import read_state
from crate_mae_hf.training.steps import run_missing

EXAMPLES = Path(__file__).parents[1] / "examples"
DATA = EXAMPLES / "data" / "fashion_mnist_sample"
RECIPES = {
    "CRATE-MAE": EXAMPLES / "recipes" / "fashion_mnist_sample.yaml",
    "ViTMAE": EXAMPLES / "recipes" / "vit_mae_fashion_mnist_sample.yaml",
}
FOLDERS = {"crate_mae": "CRATE-MAE", "vit_mae": "ViTMAE"}
COLORS = {"CRATE-MAE": "tab:blue", "ViTMAE": "tab:orange"}
MASK_RATIOS = {model: read_recipe(recipe)["mask_ratio"] for model, recipe in RECIPES.items()}
TRAINED_AT = ", ".join(f"{model} {ratio}" for model, ratio in MASK_RATIOS.items())
ERRORS = {ratio: f"error at {ratio}" for ratio in MASK_RATIOS.values()}
FEW_LABELS = 1000
TIMED_STEPS = {"CRATE-MAE": 50, "ViTMAE": 250}  # in each round; about as long as one another
FIRST_STEPS, ROUNDS = 10, 7  # steps of each round that do not count, and rounds
ALL, FEW = "all labels", f"{FEW_LABELS:,} labels"
CAVEATS = f"""\
- Each row is a run of its own, with warm-up and cosine of its own length; none is a point on the way of a longer one.
- The ViTMAE of each length gets as many steps as take the CPU seconds of the CRATE-MAE's, and CPU seconds are steps by
  what a step takes: the median of short runs of both in turns, with the data loader worker's and the system's. What
  the whole runs took depends on what else the machine did in their hours, so no length of either is taken from it.
  Evaluation counts for neither. Images and patches are the same, no crops, no flips. Nothing else is equal: each has
  the width, decoder, mask ratio, batch and learning rate of its own recipe.
- Both recipes were chosen on 10,000 other training images by runs of 45 to 60 and of 320 to 390 CPU seconds, some 40
  tries for the CRATE-MAE and 20 for the ViTMAE (docs/experiments.md). They are the same for every length here.
- Errors are over masked patches of the test images, whose pixels are normalised patch by patch, with the same masks for
  both. Mask ratios of training: {TRAINED_AT}. So each error favours one model, and finds the
  other off the ratio that it trains at.
- Probes are linear, on the mean of the patch tokens; C is chosen on a fifth of the labels, few labels are drawn by the
  seed, of each class alike.
- ± is the standard deviation over seeds. The 2,000 test images are the same for all seeds: one standard error of an
  accuracy of 0.84 on them is 0.008, whatever the spread.
- One machine, one thread, small models and images: CPU seconds hold for that machine and are the higher the busier it
  is; the order of models is one for this size.
"""


def training_steps(shares: Sequence[float], rates: Mapping[str, float]) -> dict[float, dict[str, int]]:
    """Return the training steps of both models by the share of the CRATE-MAE's recipe, of equal CPU seconds."""
    recipe, images = read_recipe(RECIPES["CRATE-MAE"]), datasets.load_dataset(str(DATA), split="train").num_rows
    epoch = math.ceil(images / recipe["per_device_train_batch_size"])
    ours = {share: math.ceil(share * recipe["num_train_epochs"] * epoch) for share in shares}
    ratio = rates["CRATE-MAE"] / rates["ViTMAE"]
    return {share: {"CRATE-MAE": steps, "ViTMAE": max(1, round(steps * ratio))} for share, steps in ours.items()}


def run_folder(folder: Path, share: float) -> Path:
    """Return where the runs of a length stand in the folder of a seed."""
    return folder / f"share_{share:g}"


def measure_rates(folder: Path) -> dict[str, list[float]]:
    """Return the CPU seconds of a step of both recipes, by runs in turns, from disk where they are."""
    path = folder / "rates.json"
    if path.exists():
        return json.loads(path.read_text())
    rates: dict[str, list[float]] = {model: [] for model in RECIPES}
    for _ in trange(ROUNDS, desc="seconds per step"):
        with TemporaryDirectory() as name:
            crate_mae, vit_mae = (Path(name) / each for each in FOLDERS)
            recipe = [RECIPES["CRATE-MAE"], "--eval_strategy", "no", "--do_eval", "false"]
            for model, program, flags in (
                ("CRATE-MAE", "run_mae.py", [*recipe, "--output_dir", crate_mae]),
                ("ViTMAE", "vit_mae_baseline.py", [crate_mae, "--output_dir", vit_mae]),
            ):
                last = FIRST_STEPS + TIMED_STEPS[model]
                flags += ["--dataset_name", DATA, "--save_strategy", "no", "--max_steps", last]
                took = time_program(program, flags, FIRST_STEPS, last)
                rates[model].append(took["cpu_seconds"] / TIMED_STEPS[model])
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, rates)
    return rates


def write_json(path: Path, value: object) -> None:
    """Write a file that is whole as soon as it is there."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(value, indent=2) + "\n")
    unfinished.replace(path)


def commands(folder: Path, seed: int, steps: Mapping[float, Mapping[str, int]]) -> dict[Path, list[Any]]:
    """Return the script and flags of each step of a seed by the file it leaves at its end; they build on one another.

    Args:
        folder: Folder of the seed.
        seed: Seed of everything.
        steps: Training steps of each model by the share of the recipe.
    """
    run: dict[Path, list[Any]] = {}
    seeded = ["--dataset_name", DATA, "--seed", seed]
    probe = ["--features", "mean", "--few_labels", FEW_LABELS, "--no_feature_cache", *seeded]
    models: list[Path] = []
    for share, counts in steps.items():
        models = [run_folder(folder, share) / name for name in FOLDERS]
        crate_mae, vit_mae = models
        ours, theirs = (["--max_steps", counts[model], *seeded] for model in RECIPES)
        ours += ["--eval_strategy", "no", "--resume_from_checkpoint", "auto"]
        run[crate_mae / "eval_results.json"] = ["run_mae.py", RECIPES["CRATE-MAE"], *ours]
        run[vit_mae / "eval_results.json"] = ["vit_mae_baseline.py", crate_mae, *theirs]
        probes = crate_mae.parent / "probes" / "results.json"
        run[probes] = ["run_linear_probe.py", "--model_name_or_path", *models, *probe]
    untrained = ["--random_init", "--raw_pixels"]  # of the same shapes
    run[folder / "untrained" / "results.json"] = [
        "run_linear_probe.py", "--model_name_or_path", *models, *untrained, *probe,
    ]  # fmt: skip
    return {result: [*command, "--output_dir", result.parent] for result, command in run.items()}


def measure_errors(run: Path, seed: int) -> dict[str, dict[str, float]]:
    """Return the held-out errors of both models at the mask ratios of both, from disk where they are."""
    path = run / "errors.json"
    if not path.exists():
        images = datasets.load_dataset(str(DATA), split="test").cast_column("image", datasets.Image(decode=False))
        errors: dict[str, dict[str, float]] = {}
        for folder, name in FOLDERS.items():
            model = AutoModelForPreTraining.from_pretrained(run / folder)
            transform = build_eval_transform(AutoImageProcessor.from_pretrained(run / folder))
            masked = MaskingDataset(images, transform, model.config, seed)
            errors[name] = {}
            for ratio, column in ERRORS.items():
                model.config.mask_ratio = ratio
                errors[name][column] = masked_error(model, masked)
        write_json(path, errors)
    return json.loads(path.read_text())


def read_probes(path: Path) -> dict[tuple[str, str], Row]:
    """Return the accuracies that a comparison has left by the model's folder and kind of weights."""
    return {
        (Path(row["model"]).name, row.get("weights", "")): {ALL: row["linear"], FEW: row[f"linear_{FEW_LABELS}"]}
        for row in json.loads(path.read_text())["results"]
    }


def read_seed(folder: Path, seed: int, shares: Sequence[float], rates: Mapping[str, float]) -> list[Row]:
    """Return what a seed gave for each length and model, without training, and by pixels alone."""
    rows: list[Row] = []
    for share in shares:
        run = run_folder(folder, share)
        errors, probes = measure_errors(run, seed), read_probes(run / "probes" / "results.json")
        for name, model in FOLDERS.items():
            steps = read_state(run / name)["global_step"]
            row = {"model": model, "of the recipe": share, "CPU seconds": round(steps * rates[model]), "steps": steps}
            rows.append(row | errors[model] | probes[name, "trained"])
    untrained = read_probes(folder / "untrained" / "results.json")
    rows += [{"model": f"{model}, random weights", **untrained[name, "random"]} for name, model in FOLDERS.items()]
    return [*rows, {"model": "raw pixels", **untrained["raw pixels", ""]}]


def mean_curve(seeds: Sequence[Sequence[Row]], model: str, column: str) -> list[tuple[float, float]]:
    """Return for each length the mean over seeds of a model's CPU seconds and of what stands in a column."""
    lengths = zip(*([row for row in rows if row["model"] == model] for rows in seeds), strict=True)
    return [
        (statistics.mean(row["CPU seconds"] for row in rows), statistics.mean(row[column] for row in rows))
        for rows in lengths
    ]


def seconds_to_reach(curve: Sequence[tuple[float, float]], level: float) -> str:
    """Return at how many CPU seconds a curve first reaches a level, or beyond which end it does.

    Between two lengths it is taken to be straight over the logarithm of the seconds.
    """
    if curve[0][1] >= level:
        return f"<= {curve[0][0]:.0f}"
    for (before, low), (after, high) in pairwise(curve):
        if low < level <= high:
            return f"{before * (after / before) ** ((level - low) / (high - low)):.0f}"
    return f"> {curve[-1][0]:.0f}"


def compare_seconds(seeds: Sequence[Sequence[Row]]) -> list[Row]:
    """Return the CPU seconds of both models to every whole per cent of accuracy that one of them passes."""
    rows = []
    for column in (ALL, FEW):
        curves = {model: mean_curve(seeds, model, column) for model in RECIPES}
        accuracies = [accuracy for curve in curves.values() for _, accuracy in curve]
        for percent in range(math.ceil(100 * min(accuracies)), math.floor(100 * max(accuracies)) + 1):
            seconds = {model: seconds_to_reach(curve, percent / 100) for model, curve in curves.items()}
            rows.append({"probe": column, "accuracy": f"{percent / 100:.2f}", **seconds})
    return rows


def draw_panel(ax: Axes, seeds: Sequence[Sequence[Row]], column: str) -> None:
    """Draw the mean over seeds as a line and each run as a point, labelled where the two models are farthest apart."""
    curves = {model: mean_curve(seeds, model, column) for model in RECIPES}
    first, second = ([value for _, value in curve] for curve in curves.values())
    widest = max(range(len(first)), key=lambda length: abs(first[length] - second[length]))
    highest = max(curves, key=lambda model: curves[model][widest][1])
    for model, curve in curves.items():
        ax.plot(*zip(*curve, strict=True), color=COLORS[model], linewidth=1.5)
        runs = [row for rows in seeds for row in rows if row["model"] == model]
        seconds, values = ([row[name] for row in runs] for name in ("CPU seconds", column))
        ax.scatter(seconds, values, s=14, color=COLORS[model], alpha=0.6, linewidths=0)
        ax.annotate(
            model,
            curve[widest],
            xytext=(0, 14 if model == highest else -14),
            textcoords="offset points",
            color=COLORS[model],
            ha="left" if widest == 0 else "right" if widest == len(curve) - 1 else "center",
            va="center",
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )
    ax.set_xscale("log")
    ax.minorticks_off()
    ticks = [seconds for seconds, _ in curves["CRATE-MAE"]]
    ax.set_xticks(ticks, [f"{seconds:.0f}" for seconds in ticks])
    ax.grid(alpha=0.3)
    ax.margins(x=0.08, y=0.15)
    ax.set_xlabel("CPU seconds of training")


def plot(seeds: Sequence[Sequence[Row]]) -> Figure:
    """Draw errors at both mask ratios and both probes against CPU seconds."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    figure.supxlabel("Lines: means over seeds. Points: runs, each with a schedule of its own length.", fontsize=9)
    errors, probes = figure.subplots(2, 2)
    for ax, (ratio, column) in zip(errors, ERRORS.items(), strict=True):
        draw_panel(ax, seeds, column)
        trained = next(model for model in RECIPES if MASK_RATIOS[model] == ratio)
        ax.set(title=f"held-out error, {ratio:.0%} masked\n({trained} trains at this ratio)", ylabel="error")
    for ax, column in zip(probes, (ALL, FEW), strict=True):
        draw_panel(ax, seeds, column)
        for row in seeds[0]:
            if "CPU seconds" not in row:
                level = statistics.mean(
                    each[column] for rows in seeds for each in rows if each["model"] == row["model"]
                )
                color = COLORS.get(row["model"].split(",")[0], "grey")
                ax.axhline(level, color=color, linestyle=":", linewidth=1.2)
                text = row["model"].replace(", ", ",\n")
                place = {"xy": (1.02, level), "xycoords": ("axes fraction", "data")}
                ax.annotate(text, **place, color=color, fontsize=8, va="center")
        ax.set(title=f"linear probe, {column}", ylabel="test accuracy")
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2], help="42 1 2 when left out")
    parser.add_argument(
        "--shares",
        type=float,
        nargs="+",
        default=[0.125, 0.25, 0.5, 1.0],
        help="lengths of the CRATE-MAE's runs as shares of its recipe's epochs; 0.125 0.25 0.5 1 when left out",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/time_to_quality"))
    args = parser.parse_args(arguments)
    shares = sorted(set(args.shares))
    if shares[0] <= 0:
        parser.error(f"`--shares` must be positive, got {shares[0]:g}.")
    folders = {seed: args.output_dir / f"seed_{seed}" for seed in dict.fromkeys(args.seeds)}
    timed = {model: summarize(rounds) for model, rounds in measure_rates(args.output_dir).items()}
    rates = {model: rate["median"] for model, rate in timed.items()}
    steps = training_steps(shares, rates)
    run = {seed: run_missing(EXAMPLES, commands(folder, seed, steps)) for seed, folder in folders.items()}
    measured = {seed: read_seed(folder, seed, shares, rates) for seed, folder in folders.items()}
    seeds = list(measured.values())
    table, seconds = summarise(seeds), compare_seconds(seeds)
    machine = describe_machine("cpu")
    about = ", ".join(f"{key} {value}" for key, value in machine.items())
    about += f"\nSeeds {', '.join(map(str, folders))}; test images of the bundled Fashion-MNIST sample.\n"
    each = (f"{model} {rate['median']:.4f} ({rate['min']:.4f}-{rate['max']:.4f})" for model, rate in timed.items())
    about += f"CPU seconds of a step, median and range of {ROUNDS} rounds: {', '.join(each)}.\n\n{CAVEATS}"
    text = f"{about}\n{markdown_table(table)}\nCPU seconds to an accuracy, by the means over seeds, interpolated over "
    text += f"their logarithm:\n\n{markdown_table(seconds)}"
    record = {
        "machine": machine,
        "about": about,
        "seconds_per_step": timed,
        "results": table,
        "seconds": seconds,
        "seeds": measured,
    }
    (args.output_dir / "results.json").write_text(json.dumps(record | {"commands": run}, indent=2) + "\n")
    (args.output_dir / "results.md").write_text(text)
    plot(seeds).savefig(args.output_dir / "time_to_quality.png", dpi=120)
    print(f"\n{text}\nWritten to {args.output_dir}: results.json, results.md, time_to_quality.png")


if __name__ == "__main__":
    with clear_errors():
        main()
