#!/usr/bin/env python
# /// script
# dependencies = ["crate-mae-hf[train,figures]"]
# ///
"""Measure on the bundled Fashion-MNIST sample what learned masks are good for, beside random ones.

    python examples/mlo_mae_results.py --output_dir outputs/mlo_mae_results --seeds 42 1 2

Runs the other example scripts for each seed, each kind of mask for as many steps of the autoencoder. A step whose
result is there is not repeated: an interrupted run goes on where it was. Leaves `results.md` and `results.json` in the
output folder. About three minutes per seed on one CPU core.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from crate_mae_hf.cli import clear_errors
from crate_mae_hf.evaluation.results import library_versions
from crate_mae_hf.tables import Row, markdown_table, summarise, text_table
from crate_mae_hf.training.steps import run_missing

EXAMPLES = Path(__file__).parent
DATA = EXAMPLES / "data" / "fashion_mnist_sample"
PRETRAINING = EXAMPLES / "recipes" / "mlo_mae_fashion_mnist_sample.yaml"
FINE_TUNING = EXAMPLES / "recipes" / "fine_tune_fashion_mnist_sample.yaml"
STEPS, LABELS, FINE_TUNING_EPOCHS = 120, 2000, 3

# Names in the table, and what tells the runs apart.
MODELS: dict[str, tuple[str, list[Any]]] = {
    "random": ("random masks", ["--masks", "random"]),
    "frozen": ("T as drawn", ["--masks", "frozen"]),
    "learned": ("T learned", ["--masks", "learned"]),
    "learned_noise": (
        "T learned, `freeze_ranking`, `score_noise` 0.1",
        ["--masks", "learned", "--freeze_ranking", "true", "--score_noise", 0.1],
    ),
}
CAVEATS = f"""\
- Equal are the steps of the autoencoder ({STEPS}, of 64 images), not the seconds: learning T takes steps of its own.
- Learning T uses the labels of all training images. Probes and fine-tuning have those of {LABELS:,} for every row.
- So short a training says nothing about a long one, and so small a model nothing about a ViT-Base.
- No setting was tuned, for no row.
- ± is the standard deviation over seeds. The 2,000 test images are the same for all seeds: one standard error of an
  accuracy of 0.6 on them is 0.011, whatever the spread.
- Entropy is that of masking at each position over batches of 250 test images, as a share of what it can be: 0 where all
  images have one mask.
- CPU seconds are those of pre-training, on a busy machine.
"""


def commands(folder: Path, seed: int) -> dict[Path, list[Any]]:
    """Return the script and flags of each step by the file it leaves at its end; steps build on those before."""
    steps: dict[Path, list[Any]] = {}
    for name, (_, flags) in MODELS.items():
        common = ["--max_steps", STEPS, "--eval_strategy", "no", "--save_strategy", "no", "--resume_from_checkpoint"]
        output = ["auto", "--seed", seed, "--output_dir", folder / name]
        steps[folder / name / "eval_results.json"] = ["run_mlo_mae.py", PRETRAINING, *flags, *common, *output]
        tuned = folder / f"{name}_tuned"
        common = ["--model_name_or_path", folder / name, "--dataset_name", DATA, "--max_train_samples", LABELS]
        common += ["--num_train_epochs", FINE_TUNING_EPOCHS, "--eval_strategy", "no", "--save_strategy", "no"]
        output = ["--resume_from_checkpoint", "auto", "--seed", seed, "--output_dir", tuned]
        steps[tuned / "eval_results.json"] = ["run_image_classification.py", FINE_TUNING, *common, *output]
    models = [folder / name for name in MODELS]
    probe = ["--features", "mean", "--max_train_samples", LABELS, "--seed", seed, "--random_init"]
    probe += ["--output_dir", folder / "probes"]
    steps[folder / "probes" / "results.json"] = ["run_linear_probe.py", "--model_name_or_path", *models, *probe]
    return steps


def read_seed(folder: Path) -> list[Row]:
    """Return what a seed gave for each kind of mask."""
    probes = json.loads((folder / "probes" / "results.json").read_text())["results"]
    rows = []
    for name, (label, _) in MODELS.items():
        pretrained = json.loads((folder / name / "all_results.json").read_text())
        tuned = json.loads((folder / f"{name}_tuned" / "eval_results.json").read_text())
        (probe,) = (p for p in probes if Path(p["model"]).name == name and p["weights"] == "trained")
        row: Row = {"masks": label, "linear probe": probe["linear"], "fine-tuned": tuned["eval_accuracy"]}
        row["mask entropy"] = pretrained["eval_mask_entropy"]
        rows.append(row | {"CPU seconds": pretrained["train_cpu_seconds"]})
    (probe,) = (p for p in probes if Path(p["model"]).name == "random" and p["weights"] == "random")
    missing = {"fine-tuned": "", "mask entropy": "", "CPU seconds": ""}
    return [*rows, {"masks": "no training", "linear probe": probe["linear"], **missing}]


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/mlo_mae_results"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    args = parser.parse_args()
    run = {seed: run_missing(EXAMPLES, commands(args.output_dir / f"seed_{seed}", seed)) for seed in args.seeds}
    measured = {seed: read_seed(args.output_dir / f"seed_{seed}") for seed in args.seeds}
    table = summarise(list(measured.values()))
    about = f"Seeds {', '.join(map(str, args.seeds))}; test images of the bundled Fashion-MNIST sample.\n\n{CAVEATS}"
    results = {"about": about, "results": table, "seeds": measured, "commands": run, "versions": library_versions()}
    (args.output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (args.output_dir / "results.md").write_text(f"# Learned masks\n\n{about}\n{markdown_table(table)}")
    print(f"\n{about}\n{text_table(table)}\n\nWritten to {args.output_dir}: results.md, results.json")


if __name__ == "__main__":
    with clear_errors():
        main()
