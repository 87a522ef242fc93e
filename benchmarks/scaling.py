"""Cost of a CRATE-MAE training step against tokens, width, depth and batch: `python -m benchmarks.scaling`."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from benchmarks.measure import describe_machine, interleave, keep_freed_memory, summarize
from benchmarks.models import Size, Step
from benchmarks.run import count_operations
from crate_mae_hf.tables import markdown_table

BASE = Size(hidden_size=384, num_layers=6, num_heads=6, image_size=128, patch_size=8)
BATCH_SIZE = 4


def variants(base: Size, batch_size: int) -> dict[str, list[tuple[float, Size, int]]]:
    """What is varied, each time from half to four times the base: (value, size, batch size)."""
    factors = (0.5, 1, 2, 4)

    def scaled(**changes: int) -> Size:
        return dataclasses.replace(base, **changes)

    sides = [round(base.image_size * factor**0.5 / base.patch_size) * base.patch_size for factor in factors]
    return {
        "tokens": [((side // base.patch_size) ** 2 + 1, scaled(image_size=side), batch_size) for side in sides],
        "width": [
            (width, scaled(hidden_size=width, num_heads=max(1, round(base.num_heads * factor))), batch_size)
            for factor in factors
            for width in [round(base.hidden_size * factor)]
        ],
        "depth": [
            (depth, scaled(num_layers=depth), batch_size)
            for factor in factors
            for depth in [max(1, round(base.num_layers * factor))]
        ],
        "batch": [(batch, base, batch) for factor in factors for batch in [max(1, round(batch_size * factor))]],
    }


def exponent(values: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of the straight line through the points on a log-log plot."""
    return float(np.polyfit(np.log(values), np.log(costs), 1)[0])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch_size", type=int, default=BATCH_SIZE)
    for field in dataclasses.fields(Size):
        parser.add_argument(f"--{field.name}", type=int, default=getattr(BASE, field.name))
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/scaling"))
    args = parser.parse_args(arguments)
    if args.rounds < 1 or args.batch_size < 1:
        parser.error("`--rounds` and `--batch_size` must be at least 1.")
    if (args.output_dir / "scaling.json").exists():
        parser.error(f"`--output_dir`: {args.output_dir} holds results already.")
    keep_freed_memory()
    base = Size(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Size)})

    results: dict[str, dict[str, Any]] = {}
    for name, cases in variants(base, args.batch_size).items():
        steps, operations = {}, []
        for value, size, batch_size in cases:
            step = steps[str(value)] = Step("crate_mae", "train", size, torch.float32, args.device)
            step.set_batch_size(batch_size)
            operations.append(count_operations(step))
        candidates = {key: step.forward_backward for key, step in steps.items()}
        times = interleave(candidates, args.rounds, args.device, name)
        seconds = [summarize(times[key])["median"] for key in steps]
        values = [value for value, _, _ in cases]
        results[name] = {
            "values": values,
            "seconds": seconds,
            "operations": operations,
            "exponent": exponent(values, seconds),
            "expected_exponent": exponent(values, operations),
        }

    text = markdown_table(
        [
            {
                "varied": name,
                "from-to": f"{result['values'][0]:g}-{result['values'][-1]:g}",
                "exponent of time": f"{result['exponent']:.2f}",
                "of operations": f"{result['expected_exponent']:.2f}",
            }
            for name, result in results.items()
        ]
    )
    args.output_dir.mkdir(parents=True, exist_ok=True)
    record = {"machine": describe_machine(args.device), "base": dataclasses.asdict(base), "results": results}
    (args.output_dir / "scaling.json").write_text(json.dumps(record, indent=2) + "\n")
    (args.output_dir / "scaling.md").write_text(text)
    plot(results, args.output_dir / "scaling.png")
    print(f"\n{text}\nWritten to {args.output_dir}: scaling.json, scaling.md, scaling.png")


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw time and, through its middle, the slope of the counted operations."""
    figure, axes = plt.subplots(1, len(results), figsize=(3.5 * len(results), 3.5), layout="constrained")
    for ax, (name, result) in zip(axes, results.items(), strict=True):
        values, seconds = np.array(result["values"]), np.array(result["seconds"])
        operations = np.array(result["operations"])
        ax.loglog(values, seconds, "o-", label=f"time, exponent {result['exponent']:.2f}")
        scale = np.exp(np.mean(np.log(seconds / operations)))
        ax.loglog(values, scale * operations, "--", label=f"operations, {result['expected_exponent']:.2f}")
        ax.minorticks_off()
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.set_yticks(seconds, [f"{value:.2g}" for value in seconds])
        ax.set(xlabel=name, ylabel="seconds, forward and backward")
        ax.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
