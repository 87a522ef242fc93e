"""Whole runs as a user starts them, beside ViTMAE and a loop without Trainer: `python -m benchmarks.runs`."""

import argparse
import json
import statistics
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.data import make_photos
from benchmarks.measure import describe_machine, summarize
from benchmarks.models import Size, build
from benchmarks.timed_run import BARE_LOOP, time_program
from crate_mae_hf import CrateMaeConfig, CrateMaeImageProcessor
from crate_mae_hf.tables import markdown_table

OURS, BARE, VIT_MAE = "run_mae.py", "bare loop", "vit_mae_baseline.py"
PROGRAMS = {OURS: "run_mae.py", BARE: BARE_LOOP, VIT_MAE: "vit_mae_baseline.py"}
DEFAULT, KEPT = "given back", "kept"  # what becomes of freed memory
TRAIN_SHARE = 0.8  # of the photos; the scripts hold out 0.15 of them
CRATE_MAE_SHAPE = (
    "image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "decoder_num_hidden_layers",
)  # fmt: skip
VIT_MAE_SHAPE = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "decoder_hidden_size",
    "decoder_num_hidden_layers", "decoder_num_attention_heads", "decoder_intermediate_size",
)  # fmt: skip


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--batch_size", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--num_workers", nargs="+", type=int, default=[2, 0])
    parser.add_argument("--programs", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument("--freed_memory", nargs="+", choices=[DEFAULT, KEPT], default=[DEFAULT, KEPT])
    parser.add_argument("--first_steps", type=int, default=5, help="steps that do not count")
    parser.add_argument("--steps", type=int, default=20, help="steps that count")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each program")
    parser.add_argument("--photo_size", nargs=2, type=int, default=[375, 500], help="height and width of the JPEGs")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    for name in ("hidden_size", "num_layers", "num_heads", "image_size", "patch_size"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Size, name))
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/runs"))
    args = parser.parse_args(arguments)
    if min(args.rounds, args.first_steps, args.steps, *args.batch_size) < 1 or min(args.num_workers) < 0:
        parser.error("`--rounds`, `--first_steps`, `--steps`, `--batch_size` must be at least 1, `--num_workers` 0.")
    if min(args.photo_size) < 32:
        parser.error("`--photo_size` must be at least 32 x 32.")
    if args.device == "cuda":
        if not torch.cuda.is_available():
            parser.error("`--device` cuda: there is no CUDA device.")
        args.freed_memory = [DEFAULT]  # the CPU's allocator has no part in it
    if (args.output_dir / "results.json").exists():
        parser.error(f"`--output_dir`: {args.output_dir} holds results already.")
    return args


def write_inputs(folder: Path, args: argparse.Namespace, size: Size) -> None:
    """Write the photos, and the folder of a CRATE-MAE of which the ViTMAE takes images and patches."""
    # One epoch is longer than the run, also for workers that read ahead.
    batches = args.first_steps + args.steps + 2 * max(args.num_workers) + 1
    (folder / "photos").mkdir()
    for number, record in enumerate(make_photos(int(max(args.batch_size) * batches / TRAIN_SHARE), *args.photo_size)):
        (folder / "photos" / f"{number}.jpg").write_bytes(record["image"]["bytes"])
    config = CrateMaeConfig(image_size=size.image_size, patch_size=size.patch_size)
    config.save_pretrained(folder / "crate_mae")
    CrateMaeImageProcessor.from_config(config).save_pretrained(folder / "crate_mae")
    # The script asks for it; `--max_steps` sets the length.
    (folder / "crate_mae" / "all_results.json").write_text('{"train_cpu_seconds": 1.0}')


def build_flags(
    program: str, folder: Path, args: argparse.Namespace, size: Size, batch_size: int, num_workers: int
) -> list[str]:
    """Return the command line of a program but for the output folder."""
    name, shape = ("vit_mae", VIT_MAE_SHAPE) if program == VIT_MAE else ("crate_mae", CRATE_MAE_SHAPE)
    with torch.device("meta"):
        config: Any = build(name, "train", size).config
    settings = {
        "config_overrides": ",".join(f"{field}={getattr(config, field)}" for field in shape),
        "train_dir": folder / "photos",
        "cache_dir": folder / "cache",
        "max_eval_samples": 1,
        "min_crop_scale": 0.2,
        "horizontal_flip": True,
        "do_train": True,
        "max_steps": args.first_steps + args.steps,
        "per_device_train_batch_size": batch_size,
        "dataloader_num_workers": num_workers,
        "dataloader_pin_memory": args.device == "cuda",
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": args.device == "cpu",
        "resume_from_checkpoint": "",
    }
    flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    return [str(folder / "crate_mae"), *flags] if program == VIT_MAE else flags


def measure(folder: Path, args: argparse.Namespace, size: Size, batch_size: int, num_workers: int) -> dict[str, Any]:
    """Run every program in turns, each round from another one on."""
    candidates = list(product(args.programs, args.freed_memory))
    first, last = args.first_steps, args.first_steps + args.steps
    records: dict[tuple[str, str], list[dict[str, float]]] = {candidate: [] for candidate in candidates}
    with tqdm(total=args.rounds * len(candidates), desc=f"batch {batch_size}, {num_workers} workers") as progress:
        for number in range(args.rounds):
            shift = number % len(candidates)
            for program, freed_memory in candidates[shift:] + candidates[:shift]:
                flags = build_flags(program, folder, args, size, batch_size, num_workers)
                with TemporaryDirectory(dir=folder) as output:
                    flags += ["--output_dir", output]
                    record = time_program(PROGRAMS[program], flags, first, last, args.device, freed_memory == KEPT)
                records[program, freed_memory].append(record)
                progress.write(f"{program}, freed memory {freed_memory}: {json.dumps(record)}")
                progress.update()
    return {
        "batch_size": batch_size,
        "num_workers": num_workers,
        "runs": [
            {"program": program, "freed_memory": freed_memory, "rounds": rounds}
            for (program, freed_memory), rounds in records.items()
        ],
    }


def compare(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Ratios in each round: of ours to the other programs, and of each with freed memory kept to given back."""
    runs = {(run["program"], run["freed_memory"]): run["rounds"] for run in result["runs"]}
    pairs = [((OURS, memory), (other, memory)) for memory in (DEFAULT, KEPT) for other in (BARE, VIT_MAE)]
    pairs += [((program, KEPT), (program, DEFAULT)) for program in PROGRAMS]
    return [
        {
            "of": of,
            "to": to,
            **{
                field: summarize([a[field] / b[field] for a, b in zip(runs[of], runs[to], strict=True)])
                for field in ("cpu_seconds", "seconds", "peak_memory_mib")
            },
        }
        for of, to in pairs
        if of in runs and to in runs
    ]


def tables(result: dict[str, Any], steps: int) -> str:
    """Rates of all programs, and their ratios."""
    rows = []
    for run in result["runs"]:
        median = {field: statistics.median(each[field] for each in run["rounds"]) for field in run["rounds"][0]}
        images = steps * result["batch_size"]
        rows.append(
            {
                "run": run["program"],
                "freed memory": run["freed_memory"],
                "images/s": f"{images / median['seconds']:.2f}",
                "images per CPU second": f"{images / median['cpu_seconds']:.2f}",
                "system's share": f"{median['system_seconds'] / median['cpu_seconds']:.3f}",
                "page faults a step": f"{median['page_faults'] / steps:.0f}",
                "peak MiB": f"{median['peak_memory_mib']:.0f}",
            }
        )
    ratios = []
    for pair in result["ratios"]:
        (program, memory), (other, other_memory) = pair["of"], pair["to"]
        kept = f"{program}, {memory} / {other_memory}"
        cpu = pair["cpu_seconds"]
        ratios.append(
            {
                "ratio": kept if program == other else f"{program} / {other}, {memory}",
                "CPU seconds": f"{cpu['median']:.3f}",
                "range": f"{cpu['min']:.3f}-{cpu['max']:.3f}",
                "time": f"{pair['seconds']['median']:.3f}",
                "peak memory": f"{pair['peak_memory_mib']['median']:.2f}",
            }
        )
    return f"{markdown_table(rows)}\n{markdown_table(ratios)}" if ratios else markdown_table(rows)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    size = Size(args.hidden_size, args.num_layers, args.num_heads, args.image_size, args.patch_size)
    results = []
    with TemporaryDirectory() as name:
        write_inputs(Path(name), args, size)
        for batch_size, num_workers in product(args.batch_size, args.num_workers):
            result = measure(Path(name), args, size, batch_size, num_workers)
            results.append({**result, "ratios": compare(result)})

    machine = describe_machine(args.device)
    text = ", ".join(f"{key} {value}" for key, value in machine.items()) + "\n"
    text += f"{args.steps} steps after {args.first_steps}, {args.rounds} rounds, interleaved; {size}\n"
    for result in results:
        text += f"\n**batch {result['batch_size']}, {result['num_workers']} workers**\n\n{tables(result, args.steps)}"
    args.output_dir.mkdir(parents=True, exist_ok=True)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    record = {"machine": machine, "settings": settings, "results": results}
    (args.output_dir / "results.json").write_text(json.dumps(record, indent=2) + "\n")
    (args.output_dir / "results.md").write_text(text)
    print(f"\n{text}\nWritten to {args.output_dir}: results.json, results.md")


if __name__ == "__main__":
    main()
