#!/usr/bin/env python
# /// script
# dependencies = ["crate-mae-hf[train,figures]"]
# ///
"""Measure on the bundled Fashion-MNIST sample what CRATE-MAE learns, beside a ViTMAE of equal CPU seconds and others.

    python examples/results.py --output_dir outputs/results --seeds 42 1 2

Runs the other example scripts for each seed. A step whose result is there is not repeated: an interrupted run goes on
where it was, and seeds may run side by side. Leaves `results.md` and `results.json` in the output folder. About
half an hour per seed on one CPU core.
"""

import argparse
import json
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig, AutoModelForImageClassification

from crate_mae_hf import CrateConfig
from crate_mae_hf.cli import clear_errors, parse_overrides
from crate_mae_hf.evaluation.results import library_versions
from crate_mae_hf.tables import Row, markdown_table, summarise, text_table
from crate_mae_hf.training.steps import run_missing

EXAMPLES = Path(__file__).parent
DATA = EXAMPLES / "data" / "fashion_mnist_sample"
FINE_TUNING = EXAMPLES / "recipes" / "fine_tune_fashion_mnist_sample.yaml"
SUPERVISED = EXAMPLES / "recipes" / "crate_fashion_mnist_sample.yaml"
CRATE_ALPHA = EXAMPLES / "recipes" / "crate_alpha_fashion_mnist_sample.yaml"
VIC_MAE = EXAMPLES / "recipes" / "vic_mae_fashion_mnist_sample.yaml"
FEW_LABELS = (1000, 100)
# Epochs that take about the CPU seconds of the 12 of CRATE.
EPOCHS_IN_EQUAL_TIME = {"vit": 5, "crate_alpha": 8.5}

# Names in the tables by the name of the step.
MODELS = {"demo": "CRATE-MAE", "vit_mae": "ViTMAE", "vic_mae": "CRATE-MAE, by ViC-MAE"}
CLASSIFIERS = {
    "fine_tuned": "CRATE-MAE, fine-tuned from the pre-trained",
    "from_scratch": "CRATE-MAE, from scratch",
    "crate": "CRATE, from scratch",
    "vit": "ViT of CRATE's width and depth, from scratch",
    "vit_equal_time": "the same ViT in CRATE's time",
    "crate_alpha": "CRATE-alpha, from scratch",
    "crate_alpha_equal_time": "CRATE-alpha in CRATE's time",
}
CAVEATS = """\
- The CRATE-MAE and the ViTMAE get equal CPU seconds of training (user time of the process and its data loader worker,
  as many as the CRATE-MAE's recipe takes), the same images, patches, crops and flips. Nothing else is equal: each has
  the width, decoder, mask ratio, learning rate and number of steps of its own recipe. That of ViC-MAE is CRATE-MAE's
  with two augmented views of each image, and about as many CPU seconds.
- Masked errors are each at the model's own mask ratio, and so not to be compared with one another.
- Settings of pre-training were chosen on 10,000 other training images (`examples/data/hold_out.py --others`), mostly by
  short runs with one seed: some 40 tries for the CRATE-MAE, 20 for the ViTMAE, 10 for ViC-MAE (docs/experiments.md). C
  of a linear probe is chosen on a fifth of its labels. The recipes of the second table were chosen on test images, that
  of CRATE-alpha by four tries on other training images; the ViT has CRATE's.
- Few labels are drawn by the seed, of each class alike; k-NN has all labels.
- ± is the standard deviation over seeds. The 2,000 test images are the same for all seeds: one standard error of an
  accuracy of 0.84 on them is 0.008, whatever the spread.
- One machine, one thread, small models and images: CPU seconds hold for that machine, and the order of models for this
  size.
- Fine-tuning comes on top of the CPU seconds of pre-training.
"""


def commands(folder: Path, seed: int) -> dict[Path, list[Any]]:
    """Return the script and flags of each step by the file it leaves at its end; steps build on those before."""
    # A ViT of the same shape, with the usual MLPs of four times its width.
    shape = yaml.safe_load(SUPERVISED.read_text())["config_overrides"]
    width = parse_overrides(shape, CrateConfig)["hidden_size"]
    vit = ["--model_type", "vit", "--config_overrides", f"{shape},intermediate_size={4 * width}"]
    demo, vit_mae, seeded = folder / "demo", folder / "vit_mae", ["--seed", seed]
    classify = ["--dataset_name", DATA, "--resume_from_checkpoint", "auto", *seeded]
    vic_mae = folder / "vic_mae"
    probe = ["--features", "mean", "cls_mean", "grid", "--few_labels", *FEW_LABELS, *seeded]
    steps: dict[str, tuple[str, list[Any]]] = {
        "demo": ("metrics.json", ["demo.py", *seeded]),
        "vit_mae": ("eval_results.json", ["vit_mae_baseline.py", demo, "--dataset_name", DATA, *seeded]),
        "probes": (
            "results.json",
            ["run_linear_probe.py", "--model_name_or_path", demo, vit_mae, "--random_init", "--raw_pixels", *probe],
        ),
        "vic_mae": ("eval_results.json", ["run_vic_mae.py", VIC_MAE, "--resume_from_checkpoint", "auto", *seeded]),
        "vic_mae_probes": ("results.json", ["run_linear_probe.py", "--model_name_or_path", vic_mae, *probe]),
    }
    classifiers: dict[str, list[Any]] = {
        "fine_tuned": [FINE_TUNING, "--model_name_or_path", demo],
        "from_scratch": [FINE_TUNING, "--config_name", demo, "--image_processor_name", demo, "--layer_decay", 1],
        "crate": [SUPERVISED],
        "vit": [SUPERVISED, *vit],
        "crate_alpha": [CRATE_ALPHA],
    }
    for name, epochs in EPOCHS_IN_EQUAL_TIME.items():
        classifiers[f"{name}_equal_time"] = [*classifiers[name], "--num_train_epochs", epochs]
    for name, flags in classifiers.items():
        steps[name] = ("eval_results.json", ["run_image_classification.py", *flags, *classify])
    return {
        folder / name / result: [*command, "--output_dir", folder / name] for name, (result, command) in steps.items()
    }


def read(path: Path, name: str) -> Any:
    """Return one value of a file that a step has left.

    Raises:
        ValueError: If it has no such value.
    """
    results = json.loads(path.read_text())
    if name not in results:
        raise ValueError(f"`output_dir`: {path} has no `{name}`, it is of an earlier version: choose another folder.")
    return results[name]


def read_encoders(folder: Path) -> list[Row]:
    """Return what a seed gave for each encoder and kind of features."""
    errors = {
        "demo": read(folder / "demo" / "metrics.json", "masked_error")["model"],
        "vit_mae": read(folder / "vit_mae" / "all_results.json", "eval_masked_error"),
    }
    rows = []
    probes = (read(folder / step / "results.json", "results") for step in ("probes", "vic_mae_probes"))
    for probe in chain.from_iterable(probes):
        row: Row = {"model": "raw pixels", "features": probe["features"]}
        if probe["model"] != "raw pixels":
            step = Path(probe["model"]).name
            row |= {"model": MODELS[step], "encoder parameters": probe["parameters"]}
            if probe["weights"] == "trained":
                row["CPU seconds"] = read(folder / step / "all_results.json", "train_cpu_seconds")
                if step in errors:
                    row["masked error"] = errors[step]
                row["at mask ratio"] = AutoConfig.from_pretrained(folder / step).mask_ratio
            else:
                row["model"] += ", random weights"
        few = {f"{count:,} labels": probe[f"linear_{count}"] for count in FEW_LABELS}
        rows.append(row | {"all labels": probe["linear"]} | few | {"k-NN": probe["knn"]})
    return rows


def read_classifiers(folder: Path) -> list[Row]:
    """Return what a seed gave for each model that was trained on the labels."""
    return [
        {
            "model": label,
            "parameters": AutoModelForImageClassification.from_pretrained(folder / name).num_parameters(),
            "epochs": read(folder / name / "all_results.json", "epoch"),
            "CPU seconds": read(folder / name / "all_results.json", "train_cpu_seconds"),
            "test accuracy": read(folder / name / "eval_results.json", "eval_accuracy"),
        }
        for name, label in CLASSIFIERS.items()
    ]


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/results"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    args = parser.parse_args()
    run = {seed: run_missing(EXAMPLES, commands(args.output_dir / f"seed_{seed}", seed)) for seed in args.seeds}
    tables, measured = {}, {}
    for title, read_seed in (("Pre-trained encoders", read_encoders), ("Trained on the labels", read_classifiers)):
        measured[title] = {seed: read_seed(args.output_dir / f"seed_{seed}") for seed in args.seeds}
        tables[title] = summarise(list(measured[title].values()))
    about = f"Seeds {', '.join(map(str, args.seeds))}; test images of the bundled Fashion-MNIST sample.\n\n{CAVEATS}"
    results = {"about": about, "results": tables, "seeds": measured, "commands": run, "versions": library_versions()}
    (args.output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    parts = [about, *(f"## {title}\n\n{markdown_table(table)}" for title, table in tables.items())]
    (args.output_dir / "results.md").write_text("# Results\n\n" + "\n".join(parts))
    for part in (about, *(f"{title}\n\n{text_table(table)}\n" for title, table in tables.items())):
        print(f"\n{part}", end="")
    print(f"\nWritten to {args.output_dir}: results.md, results.json")


if __name__ == "__main__":
    with clear_errors():
        main()
