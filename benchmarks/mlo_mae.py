"""CPU seconds and memory of a cycle of MLO-MAE beside two steps of plain MAE: `python -m benchmarks.mlo_mae`."""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.measure import describe_machine, keep_freed_memory, resident_memory
from crate_mae_hf import CrateMaeConfig, CrateMaeForPreTraining
from crate_mae_hf.objectives.mlo_mae import MloMae
from crate_mae_hf.tables import markdown_table

PLAIN, CYCLE = "two steps of MAE", "a cycle of MLO-MAE"
NUM_LABELS = 10


def build(name: str, args: argparse.Namespace) -> Callable[[], None]:
    """Return a function that makes two steps of the autoencoder and, in a cycle, one of the head and one of T."""
    torch.manual_seed(0)
    size = {"image_size": args.image_size, "patch_size": args.patch_size, "norm_pix_loss": True}
    config = CrateMaeConfig.from_size(args.model_size, **size)
    autoencoder = CrateMaeForPreTraining(config)
    objective = MloMae(autoencoder, NUM_LABELS, masks="random" if name == PLAIN else "learned")
    objective.requires_grad_(False)
    levels: dict[str, nn.Module] = {"autoencoder": autoencoder, "head": objective.head, "masking": objective.masking}
    names = list(levels) if name == CYCLE else ["autoencoder"]
    optimizers = {each: torch.optim.AdamW(levels[each].requires_grad_(True).parameters()) for each in names}
    images = torch.randn(args.batch_size, config.num_channels, *[args.image_size] * 2)
    labelled = {"pixel_values": images, "labels": torch.randint(NUM_LABELS, (args.batch_size,))}

    def descend(level: str, gradients: tuple[torch.Tensor, ...] | list[torch.Tensor]) -> None:
        for weight, gradient in zip(levels[level].parameters(), gradients, strict=True):
            weight.grad = gradient
        optimizers[level].step()
        optimizers[level].zero_grad()

    def run() -> None:
        objective.masking.requires_grad_(False)
        for _ in range(2):
            loss = objective(images).loss
            descend("autoencoder", torch.autograd.grad(loss, list(autoencoder.parameters())))
        if name == CYCLE:
            objective.masking.requires_grad_(True)
            with torch.no_grad():
                features = objective.features(images)
            loss = objective.head_loss(features, labelled["labels"])
            descend("head", torch.autograd.grad(loss, list(objective.head.parameters())))
            gradients, _ = objective.mask_gradient({"pixel_values": images}, labelled, labelled)
            descend("masking", gradients)

    return run


def peak_memory(name: str, args: argparse.Namespace) -> float:
    """Highest memory in MiB, weights and optimizers included; to be called in a process of its own."""
    torch.set_num_threads(args.threads)
    before = resident_memory()
    run = build(name, args)
    for _ in range(2):
        run()
    return resident_memory("VmHWM") - before


def main(arguments: list[str] | None = None) -> None:
    """Measure in turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model_size", choices=list(CrateMaeConfig.sizes), default="tiny")
    for name, value in {"image_size": 224, "patch_size": 16, "batch_size": 8, "rounds": 3, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args(arguments)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {name: pool.apply(peak_memory, (name, args)) for name in (PLAIN, CYCLE)}
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    candidates = {name: build(name, args) for name in (PLAIN, CYCLE)}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(args.rounds + 1):  # the first is a warm-up
        for name, run in candidates.items():
            start = time.process_time()
            run()
            if number:
                seconds[name].append(time.process_time() - start)
    print(", ".join(f"{name} {value}" for name, value in {**vars(args), **describe_machine("cpu")}.items()))
    rows = [
        {
            "": name,
            "CPU seconds": statistics.median(times),
            "range": f"{min(times):.2f}-{max(times):.2f}",
            "peak MiB": round(memory[name]),
        }
        for name, times in seconds.items()
    ]
    print("\n" + markdown_table(rows))


if __name__ == "__main__":
    main()
