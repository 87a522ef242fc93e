"""Time and memory of CRATE-MAE beside a literal port, ViTMAE, ViT and DINOv2: `python -m benchmarks.run`."""

import argparse
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.measure import describe_machine, interleave, keep_freed_memory, resident_memory, summarize
from benchmarks.models import LABELS, MODELS, Size, Step
from crate_mae_hf.tables import markdown_table

PRODUCTS = 10  # products in one timing of the plain product

# PyTorch's counter knows attention on CUDA alone.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *args, **kwargs: sdpa_flop_count(query, key, value)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, query, key, value, *args, **kwargs: sdpa_backward_flop_count(gradient, query, key, value)
    ),
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--mode", nargs="+", choices=list(MODELS), default=["train", "features"])
    parser.add_argument("--models", nargs="+", choices=list(LABELS), help="those of the mode when left out")
    parser.add_argument("--batch_size", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true", help="run the models through torch.compile")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each model")
    parser.add_argument("--default_allocator", action="store_true", help="let glibc give freed memory back")
    parser.add_argument("--skip_memory", action="store_true", help="do not measure memory, in one process per model")
    for name in ("hidden_size", "num_layers", "num_heads", "image_size", "patch_size"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Size, name))
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/benchmarks"))
    args = parser.parse_args(arguments)
    if args.rounds < 1 or min(args.batch_size) < 1:
        parser.error("`--rounds` and `--batch_size` must be at least 1.")
    if args.image_size % args.patch_size:
        parser.error(f"`--image_size` {args.image_size} is no multiple of `--patch_size` {args.patch_size}.")
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("`--device` cuda: there is no CUDA device.")
    for mode in args.mode:
        if not selected(args.models, mode):
            parser.error(f"`--models`: none of {', '.join(args.models)} has the mode {mode}.")
    if (args.output_dir / "results.json").exists():
        parser.error(f"`--output_dir`: {args.output_dir} holds results already.")
    return args


def selected(models: list[str] | None, mode: str) -> list[str]:
    return [name for name in MODELS[mode] if models is None or name in models]


def count_operations(step: Step) -> int:
    """Floating-point operations of the products and attention in a forward (and backward), as they are computed."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        next(iter(step.phases.values()))()
    step.model.zero_grad()
    return counter.get_total_flops()


def peak_memory(
    name: str, mode: str, size: Size, dtype: torch.dtype, device: str, compiled: bool, batch_size: int, threads: int
) -> float:
    """Highest memory of two steps in MiB, weights and optimizer included; to be called in a process of its own."""
    torch.set_num_threads(threads)
    on_gpu = torch.device(device).type == "cuda"
    before = 0.0 if on_gpu else resident_memory()
    step = Step(name, mode, size, dtype, device, compiled)
    step.set_batch_size(batch_size)
    for _ in range(2):
        for phase in step.phases.values():
            phase()
    return torch.cuda.max_memory_allocated() / 2**20 if on_gpu else resident_memory("VmHWM") - before


def product_rate(size: Size, dtype: torch.dtype, device: str, batch_size: int) -> tuple[Any, int]:
    """Return a function that multiplies all tokens by a d x d matrix, and its operations."""
    tokens = torch.randn(batch_size * (size.num_patches + 1), size.hidden_size).to(device, dtype)
    matrix = torch.randn(size.hidden_size, size.hidden_size).to(device, dtype)
    output = torch.empty_like(tokens)

    def multiply() -> None:
        for _ in range(PRODUCTS):
            torch.mm(tokens, matrix, out=output)

    return multiply, 2 * PRODUCTS * tokens.numel() * size.hidden_size


def measure(args: argparse.Namespace, size: Size, mode: str, dtype_name: str) -> list[dict[str, Any]]:
    """Measure all models of one mode in one precision, at every batch size."""
    dtype = getattr(torch, dtype_name)
    steps = {name: Step(name, mode, size, dtype, args.device, args.compile) for name in selected(args.models, mode)}
    results = []
    for batch_size in args.batch_size:
        candidates, operations = {}, {}
        for name, step in steps.items():
            step.set_batch_size(batch_size)
            # Compiled code is opaque to the counter; what it computes is the same.
            operations[name] = 0 if args.compile else count_operations(step)
            candidates.update({f"{name}: {phase}": function for phase, function in step.phases.items()})
        candidates["product"], product_operations = product_rate(size, dtype, args.device, batch_size)
        seconds = interleave(candidates, args.rounds, args.device, f"{mode}, {dtype_name}, batch {batch_size}")
        rate = product_operations / summarize(seconds["product"])["median"]
        for name, step in steps.items():
            phases = {phase: seconds[f"{name}: {phase}"] for phase in step.phases}
            totals = [sum(times) for times in zip(*phases.values(), strict=True)]
            computing = next(iter(phases.values()))
            results.append(
                {
                    "mode": mode,
                    "dtype": dtype_name,
                    "batch_size": batch_size,
                    "model": name,
                    "parameters": step.num_parameters,
                    "seconds": summarize(totals),
                    "phases": {phase: summarize(times) for phase, times in phases.items()},
                    "images_per_second": batch_size / summarize(totals)["median"],
                    "operations": operations[name] or None,
                    "product_operations_per_second": rate,
                    "share_of_product_rate": operations[name] / summarize(computing)["median"] / rate or None,
                }
            )
        baseline = results[-len(steps)]  # the first model: ours unless it was left out
        for result in results[-len(steps) :]:
            result["relative_to"] = baseline["model"]
            result["relative_time"] = result["seconds"]["median"] / baseline["seconds"]["median"]
    return results


def add_memory(args: argparse.Namespace, size: Size, results: list[dict[str, Any]]) -> None:
    """Measure the peak memory of every result, each in a fresh process."""
    # glibc gives tensors of a MiB back at once, so that what is freed does not count as taken.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    context = multiprocessing.get_context("spawn")
    for number, result in enumerate(results, 1):
        print(f"memory {number}/{len(results)}: {result['model']}, {result['mode']}, batch {result['batch_size']}")
        dtype = getattr(torch, result["dtype"])
        settings = (result["model"], result["mode"], size, dtype, args.device, args.compile, result["batch_size"])
        with context.Pool(1) as pool:
            result["peak_memory_mib"] = pool.apply(peak_memory, (*settings, torch.get_num_threads()))


def table(results: list[dict[str, Any]]) -> str:
    """All results of one mode, precision and batch size."""
    rows = []
    for result in results:
        seconds, share = result["seconds"], result["share_of_product_rate"]
        row = {
            "model": LABELS[result["model"]],
            "M parameters": f"{result['parameters'] / 1e6:.1f}",
            "seconds": f"{seconds['median']:.3f}",
            "range": f"{seconds['min']:.3f}-{seconds['max']:.3f}",
            "images/s": f"{result['images_per_second']:.1f}",
            "time, relative": f"{result['relative_time']:.2f}",
            "without update": f"{next(iter(result['phases'].values()))['median']:.3f}",
            "of product rate": f"{share:.2f}" if share else "",
            "peak MiB": f"{result['peak_memory_mib']:.0f}" if "peak_memory_mib" in result else "",
        }
        if result["mode"] != "train":
            del row["without update"]
        rows.append(row)
    return markdown_table(rows)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Draw images per second as bars, one panel for each mode and precision."""
    panels = list(dict.fromkeys((result["mode"], result["dtype"]) for result in results))
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4), squeeze=False, layout="constrained")
    for ax, panel in zip(axes[0], panels, strict=True):
        chosen = [result for result in results if (result["mode"], result["dtype"]) == panel]
        names = list(dict.fromkeys(result["model"] for result in chosen))
        batch_sizes = list(dict.fromkeys(result["batch_size"] for result in chosen))
        for number, batch_size in enumerate(batch_sizes):
            values = [r["images_per_second"] for r in chosen if r["batch_size"] == batch_size]
            height = 0.8 / len(batch_sizes)
            positions = [i + number * height for i in range(len(names))]
            bars = ax.barh(positions, values, height, label=f"batch {batch_size}")
            ax.bar_label(bars, [f"{v:.3g}" if v < 1000 else f"{v:.0f}" for v in values], padding=2, fontsize=8)
        ax.set_yticks([i + 0.4 - 0.4 / len(batch_sizes) for i in range(len(names))], [LABELS[name] for name in names])
        ax.invert_yaxis()
        ax.margins(x=0.2)
        ax.set(title=", ".join(panel), xlabel="images per second")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(batch_sizes))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    if not args.default_allocator:
        keep_freed_memory()
    size = Size(args.hidden_size, args.num_layers, args.num_heads, args.image_size, args.patch_size)
    results = []
    for mode in args.mode:
        for dtype_name in args.dtype:
            results += measure(args, size, mode, dtype_name)
    if not args.skip_memory:
        add_memory(args, size, results)

    machine = describe_machine(args.device)
    text = ", ".join(f"{key} {value}" for key, value in machine.items()) + "\n"
    text += f"{'torch.compile' if args.compile else 'eager'}, {args.rounds} rounds, interleaved; {size}\n"
    for key in dict.fromkeys((r["mode"], r["dtype"], r["batch_size"]) for r in results):
        group = [r for r in results if (r["mode"], r["dtype"], r["batch_size"]) == key]
        rate = group[0]["product_operations_per_second"] / 1e9
        text += f"\n**{key[0]}, {key[1]}, batch {key[2]}** (products at {rate:.0f} GFLOP/s)\n\n{table(group)}"
    args.output_dir.mkdir(parents=True, exist_ok=True)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    record = {"machine": machine, "settings": settings, "results": results}
    (args.output_dir / "results.json").write_text(json.dumps(record, indent=2) + "\n")
    (args.output_dir / "results.md").write_text(text)
    plot(results, args.output_dir / "results.png")
    print(f"\n{text}\nWritten to {args.output_dir}: results.json, results.md, results.png")


if __name__ == "__main__":
    main()
