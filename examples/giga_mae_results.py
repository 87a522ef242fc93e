#!/usr/bin/env python
# /// script
# dependencies = ["crate-mae-hf[train,graphs,figures]"]
# ///
"""Measure GiGaMAE with both encoders beside what it has to beat: its targets, fresh weights, masked features.

    python examples/giga_mae_results.py --output_dir outputs/giga_mae_results --seeds 42 1 2

Runs `run_giga_mae.py` with its recipe for each graph, encoder and seed; what is there is not run again. Leaves
`results.md` and `results.json` in the output folder. Half a minute to two minutes a run on one CPU core.
"""

import argparse
import json
import statistics
from pathlib import Path

from crate_mae_hf.cli import clear_errors
from crate_mae_hf.tables import Row, markdown_table
from crate_mae_hf.training.steps import run_script

EXAMPLES = Path(__file__).parent
GRAPHS, ENCODERS = ("sbm", "karate"), ("attention", "crate")
FIGURES = {"accuracy": "accuracy", "nmi": "NMI", "ari": "ARI", "auc": "link AUC", "ap": "link AP"}
# Embeddings that do not depend on the encoder.
COMMON = ("features", "topology target", "attribute target", "both targets")


def run_missing(folder: Path, graph: str, encoder: str, seed: int) -> list[Row]:
    """Return what a run gave, and run it first where it is not there."""
    output_dir = folder / f"{graph}_{encoder}_{seed}"
    if not (output_dir / "metrics.json").exists():
        recipe = EXAMPLES / "recipes" / f"giga_mae_{graph}_{encoder}.yaml"
        flags = ["--seed", seed, "--baseline", "true", "--output_dir", output_dir, "--overwrite_output_dir", "true"]
        run_script(EXAMPLES / "run_giga_mae.py", recipe, *flags)
    return json.loads((output_dir / "metrics.json").read_text())["results"]


def summarise(runs: dict[str, list[list[Row]]]) -> list[Row]:
    """Return mean and standard deviation over seeds, for runs by encoder."""
    table = []
    for encoder, seeds in runs.items():
        for same in zip(*seeds, strict=True):
            name = same[0]["embeddings"]
            if name in COMMON and encoder != ENCODERS[0]:
                continue
            row: Row = {"encoder": "" if name in COMMON else encoder, "embeddings": name}
            for key, title in FIGURES.items():
                values = [measured[key] for measured in same]
                spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
                row[title] = f"{statistics.mean(values):.3f}{spread}"
            table.append(row)
    return table


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/giga_mae_results"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    args = parser.parse_args()
    tables = {}
    for graph in GRAPHS:
        runs = {name: [run_missing(args.output_dir, graph, name, seed) for seed in args.seeds] for name in ENCODERS}
        tables[graph] = summarise(runs)
        print(f"\n{graph}\n\n{markdown_table(tables[graph])}", flush=True)
    (args.output_dir / "results.json").write_text(json.dumps({"seeds": args.seeds, **tables}, indent=2) + "\n")
    parts = [f"## {graph}\n\n{markdown_table(table)}" for graph, table in tables.items()]
    (args.output_dir / "results.md").write_text("# GiGaMAE\n\n" + "\n".join(parts))
    print(f"Written to {args.output_dir}: results.md, results.json")


if __name__ == "__main__":
    with clear_errors():
        main()
