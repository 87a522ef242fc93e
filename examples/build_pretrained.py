#!/usr/bin/env python
# /// script
# dependencies = ["crate-mae-hf[train,figures]"]
# ///
"""Make the checkpoint that ships, `crate_mae_hf.pretrained.path("fashion_mnist")`.

    apt-get install dataset-fashion-mnist
    python examples/data/fashion_mnist.py --source /usr/share/datasets/fashion-mnist --output_dir outputs/fashion_mnist
    python examples/build_pretrained.py --output_dir outputs/build_pretrained

Trains by examples/recipes/fashion_mnist.yaml, for more than an hour of one CPU core; after an interruption the same
command goes on. Then the weights are rounded to bfloat16, and what is measured is measured on those. Leaves in the
subfolder `checkpoint` what belongs into `src/crate_mae_hf/pretrained/fashion_mnist`. The test images are the bundled
ones: the recipe does not train on them.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import datasets
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForPreTraining

from crate_mae_hf.analysis.figures import reconstruction_grid
from crate_mae_hf.cli import clear_errors
from crate_mae_hf.data.images import decode
from crate_mae_hf.evaluation.autoencoder import measure_autoencoder, reconstruct_some
from crate_mae_hf.evaluation.results import library_versions
from crate_mae_hf.hub import create_model_card
from crate_mae_hf.training.steps import run_script

EXAMPLES = Path(__file__).parent
DATA = EXAMPLES / "data" / "fashion_mnist_sample"
RECIPE = EXAMPLES / "recipes" / "fashion_mnist.yaml"
SHIPPED = "src/crate_mae_hf/pretrained/fashion_mnist"
DESCRIPTION = (
    "The 60,000 training images of Fashion-MNIST (github.com/zalandoresearch/fashion-mnist, (c) 2017 Zalando SE, MIT "
    "licence), without their labels. Masked errors and probes are measured on the sample that comes with the package: "
    "10,000 of the training images to learn from, with labels, and 2,000 test images."
)
NUM_IMAGES = 8
SEED = 42


def export(trained: Path, folder: Path) -> None:
    """Save model and image processor without code, the weights in bfloat16; they load in float32."""
    AutoModelForPreTraining.from_pretrained(trained).save_pretrained(folder)
    AutoImageProcessor.from_pretrained(trained).save_pretrained(folder)
    weights = folder / "model.safetensors"
    rounded = {name: weight.bfloat16() for name, weight in load_file(weights).items()}
    save_file(rounded, weights, metadata={"format": "pt"})
    # The package is there where this folder is: its code is not repeated, and not asked for.
    for path in folder.glob("*.py"):
        path.unlink()
    for name in ("config.json", "preprocessor_config.json"):
        settings = json.loads((folder / name).read_text())
        del settings["auto_map"]
        (folder / name).write_text(json.dumps(settings, indent=2) + "\n")


def measure(folder: Path, training: dict[str, Any]) -> None:
    """Measure the checkpoint on the bundled images; write figures, a picture, and some images to try it on."""
    model, processor = AutoModelForPreTraining.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    splits = datasets.load_dataset(str(DATA))
    splits = splits.cast_column("image", datasets.Image(decode=False))
    measured = measure_autoencoder(model, processor, splits["train"], splits["test"], [1000, 100], SEED)
    metrics = {"training": training, **measured, "versions": library_versions()}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    reconstruction = reconstruct_some(model, processor, splits["test"], NUM_IMAGES, SEED)
    grid = reconstruction_grid(reconstruction, processor.image_mean, processor.image_std)
    grid.savefig(folder / "reconstruction.png", dpi=150)
    (folder / "images").mkdir(exist_ok=True)
    for index in range(NUM_IMAGES):
        image = decode(splits["test"][index]["image"], (1, 1), f"number {index}")
        image.save(folder / "images" / f"{index}.png")


def write_card(folder: Path, recipe: dict[str, Any]) -> None:
    """Write the card, with the settings of the recipe that say how it was trained."""
    names = ("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta2")
    create_model_card(
        folder,
        model_id=SHIPPED,
        data=DESCRIPTION,
        license="mit",
        recipe={name: recipe[name] for name in names},
    ).save(folder / "README.md")


def main() -> None:
    """Train what is left to train, export, measure, write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset_name", type=Path, default=Path("outputs/fashion_mnist"), help="of data/fashion_mnist.py"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/build_pretrained"))
    args = parser.parse_args()
    trained, folder = args.output_dir / "trained", args.output_dir / "checkpoint"
    if not (trained / "eval_results.json").is_file():
        flags = ["--dataset_name", args.dataset_name, "--output_dir", trained, "--seed", SEED]
        run_script(EXAMPLES / "run_mae.py", RECIPE, *flags, "--resume_from_checkpoint", "auto")
    export(trained, folder)
    results = json.loads((trained / "all_results.json").read_text())
    training = {name: results[name] for name in ("epoch", "train_runtime", "train_cpu_seconds")}
    measure(folder, training)
    write_card(folder, yaml.safe_load(RECIPE.read_text()))
    print(f"\nThe checkpoint is in {folder}; move its files to {SHIPPED}.")


if __name__ == "__main__":
    with clear_errors():
        main()
