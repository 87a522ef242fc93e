#!/usr/bin/env python
"""Pre-train CRATE-MAE on the bundled Fashion-MNIST sample, and show what it learned.

    python examples/demo.py [--output_dir outputs/demo] [--seed 42] [--quick]

Leaves in the output folder: the model and its image processor, `metrics.json`, `loss_curve.png` and
`reconstruction.png`. `--quick` trains for a few steps only, to see that everything runs.
"""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import sklearn
import torch
import transformers
from transformers import AutoImageProcessor, AutoModelForPreTraining, set_seed

from crate_mae_hf import CrateMaeForPreTraining, CrateMaeImageProcessor
from crate_mae_hf import __version__ as version
from crate_mae_hf.analysis.figures import reconstruction_grid
from crate_mae_hf.analysis.reconstruction import reconstruct
from crate_mae_hf.cli import clear_errors
from crate_mae_hf.data.augmentation import build_eval_transform
from crate_mae_hf.data.images import select_image_column
from crate_mae_hf.data.masks import MaskingDataset
from crate_mae_hf.evaluation.features import available_features, extract_features, image_batches, select_features
from crate_mae_hf.evaluation.probes import linear_probe
from crate_mae_hf.evaluation.reconstruction import reconstruction_errors
from crate_mae_hf.training.curves import loss_curve

EXAMPLES = Path(__file__).parent
DATA = EXAMPLES / "data" / "fashion_mnist_sample"
QUICK = {"max_steps": 10, "max_train_samples": 600, "max_eval_samples": 200}
NUM_PICTURES = 8


def pre_train(output_dir: Path, seed: int, quick: bool) -> None:
    """Run examples/run_mae.py with the recipe of the bundled sample."""
    command = [sys.executable, str(EXAMPLES / "run_mae.py"), str(EXAMPLES / "recipes" / "fashion_mnist_sample.yaml")]
    flags = {"dataset_name": DATA, "output_dir": output_dir, "seed": seed, **(QUICK if quick else {})}
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    if code := subprocess.run(command).returncode:
        sys.exit(code)


def probe_table(
    models: dict[str, CrateMaeForPreTraining], splits: dict, processor: CrateMaeImageProcessor, seed: int
) -> dict:
    """Probe each model's features and the raw pixels; {what: {features: accuracy}}."""
    pixels = {
        name: torch.cat(list(image_batches(split["image"], processor, processor.num_channels)))
        for name, split in splits.items()
    }
    labels = {name: np.array(split["label"]) for name, split in splits.items()}
    features = {
        what: {
            name: extract_features(model.crate_mae, values.split(250), description=f"Features, {what}, {name}")
            for name, values in pixels.items()
        }
        for what, model in models.items()
    }
    features["raw pixels"] = {name: {"pixels": values.flatten(1).numpy()} for name, values in pixels.items()}
    table: dict[str, dict[str, float]] = {}
    for what, extracted in features.items():
        table[what] = {}
        for kind in available_features(extracted["train"]):
            print(f"Linear probe: {what}, {kind}", flush=True)
            train, test = (select_features(extracted[name], kind) for name in ("train", "test"))
            result = linear_probe(train, labels["train"], test, labels["test"], seed)
            table[what][kind] = result.accuracy
    return table


def main() -> None:
    """Train, measure, draw, and say where everything is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo"), help="a new or empty folder")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--quick", action="store_true", help="a few steps and images only")
    args = parser.parse_args()
    pre_train(args.output_dir, args.seed, args.quick)

    model = AutoModelForPreTraining.from_pretrained(args.output_dir)
    processor = AutoImageProcessor.from_pretrained(args.output_dir)
    set_seed(args.seed)
    random_model = CrateMaeForPreTraining(model.config).eval()
    splits = dict(datasets.load_dataset(str(DATA)))
    if args.quick:
        sizes = {"train": QUICK["max_train_samples"], "test": QUICK["max_eval_samples"]}
        splits = {name: split.select(range(sizes[name])) for name, split in splits.items()}

    transform = build_eval_transform(processor)
    masked = {
        name: MaskingDataset(select_image_column(split, "image"), transform, model.config, args.seed)
        for name, split in splits.items()
    }
    errors = reconstruction_errors(model, masked["train"], masked["test"])
    probes = probe_table({"pre-trained": model, "random weights": random_model}, splits, processor, args.seed)

    items = [masked["test"][index] for index in range(NUM_PICTURES)]
    pixel_values, noise = (torch.stack([item[key] for item in items]) for key in ("pixel_values", "noise"))
    reconstruction = reconstruct(
        model,
        pixel_values,
        bool_masked_pos=model.sample_mask(noise),
        statistics="visible" if model.config.norm_pix_loss else "none",
    )
    grid = reconstruction_grid(reconstruction, processor.image_mean, processor.image_std)
    grid.savefig(args.output_dir / "reconstruction.png", dpi=150)
    state = json.loads((args.output_dir / "trainer_state.json").read_text())
    loss_curve(state["log_history"]).savefig(args.output_dir / "loss_curve.png", dpi=150)

    training = json.loads((args.output_dir / "all_results.json").read_text())
    better = min(errors["mean_patch"], errors["inpainting"])
    metrics = {
        "seed": args.seed,
        "quick": args.quick,
        "parameters": model.num_parameters(only_trainable=True),
        "training_seconds": training["train_runtime"],
        "epochs": training["epoch"],
        "masked_error": errors,
        "masked_error_below_better_baseline": 1 - errors["model"] / better,
        "linear_probe_accuracy": probes,
        "versions": {
            "python": platform.python_version(),
            "crate_mae_hf": version,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "scikit-learn": sklearn.__version__,
        },
    }
    (args.output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")

    print(f"\nHeld-out error over masked patches ({len(masked['test'])} images)")
    for name, error in errors.items():
        print(f"  {name.replace('_', ' '):<16}{error:8.4f}")
    print(f"  {-metrics['masked_error_below_better_baseline']:+.1%} against the better baseline")
    print("\nLinear probe, test accuracy")
    for what, accuracies in probes.items():
        print(f"  {what:<16}" + "   ".join(f"{kind} {accuracy:.4f}" for kind, accuracy in accuracies.items()))
    print("\nWritten")
    for name in ("model.safetensors", "config.json", "preprocessor_config.json", "metrics.json"):
        print(f"  {args.output_dir / name}")
    for name in ("loss_curve.png", "reconstruction.png"):
        print(f"  {args.output_dir / name}")
    print("\nLoad it\n  import crate_mae_hf\n  from transformers import AutoModel")
    print(f'  model = AutoModel.from_pretrained("{args.output_dir}")')


if __name__ == "__main__":
    with clear_errors():
        main()
