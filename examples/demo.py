#!/usr/bin/env python
"""Pre-train CRATE-MAE on the bundled Fashion-MNIST sample, and show what it learned.

    python examples/demo.py [--output_dir outputs/demo] [--seed 42] [--quick]

Leaves in the output folder: the model and its image processor, `metrics.json`, `loss_curve.png` and
`reconstruction.png`. `--quick` trains for a few steps only, to see that everything runs. After an interruption the same
command goes on; what is finished is shown again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoImageProcessor, AutoModelForPreTraining

from crate_mae_hf import pretrained
from crate_mae_hf.analysis.figures import reconstruction_grid
from crate_mae_hf.cli import clear_errors
from crate_mae_hf.evaluation.autoencoder import measure_autoencoder, reconstruct_some
from crate_mae_hf.evaluation.results import library_versions
from crate_mae_hf.tables import text_table
from crate_mae_hf.training.checkpoints import last_complete_checkpoint, read_state
from crate_mae_hf.training.curves import loss_curve
from crate_mae_hf.training.record import read_settings
from crate_mae_hf.training.steps import run_script

EXAMPLES = Path(__file__).parent
DATA = EXAMPLES / "data" / "fashion_mnist_sample"
QUICK = {"max_steps": 10, "max_train_samples": 320, "max_eval_samples": 200}
NUM_PICTURES = 8
FEW_LABELS = [1000, 100]
SHIPPED = pretrained.path("fashion_mnist")


def check_same_run(output_dir: Path, found: tuple[Any, bool], seed: int, quick: bool) -> None:
    """Make sure that a run found in the output folder is the one asked for.

    Raises:
        ValueError: If it has another seed or length.
    """
    if found != (seed, quick):
        raise ValueError(
            f"`output_dir` {output_dir} holds a demo with seed {found[0]}, {'with' if found[1] else 'without'} "
            "`--quick`: choose another folder, or delete this one."
        )


def pre_train(output_dir: Path, seed: int, quick: bool) -> None:
    """Run examples/run_mae.py with the recipe of the bundled sample, or what is left of such a run."""
    folder = output_dir if read_state(output_dir) else last_complete_checkpoint(output_dir)
    if folder is not None:
        state = read_state(folder)
        found = read_settings(state).get("seed"), state["max_steps"] == QUICK["max_steps"]
        check_same_run(output_dir, found, seed, quick)
        if (output_dir / "eval_results.json").is_file():
            print(f"The model in {output_dir} is trained.", flush=True)
            return
        print(
            f"Going on with the run in {output_dir}, step {state['global_step']} of {state['max_steps']}.", flush=True
        )
    flags = {"dataset_name": DATA, "output_dir": output_dir, "seed": seed, **(QUICK if quick else {})}
    flags |= {"resume_from_checkpoint": "auto"}
    pairs = [part for name, value in flags.items() for part in (f"--{name}", value)]
    run_script(EXAMPLES / "run_mae.py", EXAMPLES / "recipes" / "fashion_mnist_sample.yaml", *pairs)


def load_images(quick: bool) -> dict[str, datasets.Dataset]:
    """Return the bundled images, undecoded, by split."""
    splits = {
        name: split.cast_column("image", datasets.Image(decode=False))
        for name, split in datasets.load_dataset(str(DATA)).items()
    }
    if quick:
        sizes = {"train": QUICK["max_train_samples"], "test": QUICK["max_eval_samples"]}
        splits = {name: split.select(range(sizes[name])) for name, split in splits.items()}
    return splits


def report(output_dir: Path, metrics: dict[str, Any], num_images: int) -> None:
    """Print what was measured beside the same of the checkpoint that ships, and where everything is."""
    shipped = json.loads((SHIPPED / "metrics.json").read_text())
    errors = {"the checkpoint that ships": shipped["masked_error"]["model"], **metrics["masked_error"]}
    print(f"\nHeld-out error over masked patches ({num_images} images)\n")
    print(text_table([{"prediction": name.replace("_", " "), "error": f"{e:.4f}"} for name, e in errors.items()]))
    print(f"\n{-metrics['masked_error_below_better_baseline']:+.1%} against the better baseline")
    accuracies = {"the checkpoint that ships": shipped["probe_accuracy"]["pre-trained"], **metrics["probe_accuracy"]}
    print("\nTest accuracy of linear probes, with all labels and with few, and of nearest neighbours\n")
    print(
        text_table(
            [
                {"features of": what, "features": kind, **{name: f"{value:.4f}" for name, value in probes.items()}}
                for what, kinds in accuracies.items()
                for kind, probes in kinds.items()
            ]
        )
    )
    print(f"\nThe checkpoint that ships was trained on all 60,000 training images, and longer: {SHIPPED / 'README.md'}")
    print("\nWritten")
    for name in (
        "model.safetensors",
        "config.json",
        "preprocessor_config.json",
        "metrics.json",
        "loss_curve.png",
        "reconstruction.png",
    ):
        print(f"  {output_dir / name}")
    print("\nLoad it\n  import crate_mae_hf\n  from transformers import AutoModel")
    print(f'  model = AutoModel.from_pretrained("{output_dir}")')


def measure(output_dir: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Measure the model in the output folder, and draw what it does."""
    model = AutoModelForPreTraining.from_pretrained(output_dir)
    processor = AutoImageProcessor.from_pretrained(output_dir)
    splits = load_images(quick)
    measured = measure_autoencoder(
        model, processor, splits["train"], splits["test"], FEW_LABELS[1:] if quick else FEW_LABELS, seed
    )
    reconstruction = reconstruct_some(model, processor, splits["test"], NUM_PICTURES, seed)
    grid = reconstruction_grid(reconstruction, processor.image_mean, processor.image_std)
    grid.savefig(output_dir / "reconstruction.png", dpi=150)
    state = read_state(output_dir)
    loss_curve(state["log_history"]).savefig(output_dir / "loss_curve.png", dpi=150)
    training = json.loads((output_dir / "all_results.json").read_text())
    return {
        "seed": seed,
        "quick": quick,
        "parameters": model.num_parameters(only_trainable=True),
        "training_seconds": training["train_runtime"],
        "epochs": training["epoch"],
        **measured,
        "versions": library_versions(),
    }


def main() -> None:
    """Train, measure, draw, and say where everything is; or what of that is left to do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo"), help="a new or empty folder")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--quick", action="store_true", help="a few steps and images only")
    args = parser.parse_args()
    path = args.output_dir / "metrics.json"
    is_finished = path.is_file()
    if is_finished:
        metrics = json.loads(path.read_text())
        check_same_run(args.output_dir, (metrics["seed"], metrics["quick"]), args.seed, args.quick)
    else:
        pre_train(args.output_dir, args.seed, args.quick)
        metrics = measure(args.output_dir, args.seed, args.quick)
        path.write_text(json.dumps(metrics, indent=2) + "\n")
    report(args.output_dir, metrics, len(load_images(args.quick)["test"]))
    if is_finished:
        print("\nAll of this was there already: for a new run choose another `--output_dir`, or delete this folder.")


if __name__ == "__main__":
    with clear_errors():
        main()
