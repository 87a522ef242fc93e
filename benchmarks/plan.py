"""What 800 epochs of ImageNet cost on 8 GPUs, by formulas that tests check: `python -m benchmarks.plan`.

N is the number of tokens of an image (patches and the cls token), d their width, K the number of heads, m the number of
masked patches, P the values of a patch, L_e and L_d the numbers of encoder and decoder layers, B the images of a GPU in
a step, G the number of GPUs. Encoder and decoder have the same number of heads, as in every published size.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any, cast

import torch

from crate_mae_hf import CrateMaeConfig, CrateMaeForPreTraining
from crate_mae_hf.configuration_crate import to_pair
from crate_mae_hf.tables import Row, markdown_table

# Products of bfloat16 without sparsity in operations per second, from NVIDIA's data sheets of the A100 80GB SXM,
# H100 SXM and H200 SXM. The last two give the rate with sparsity, 1,979e12: half of it.
PEAKS = {"a100": 312e12, "h100": 989e12, "h200": 989e12}

# Share of that rate which a training step reaches: assumed, not measured.
UTILIZATIONS = (0.3, 0.4, 0.5)

IMAGENET_IMAGES = 1_281_167

# JPEGs of 375 x 500 that a core prepares in a second: the table of README.md in this folder, "as it is", no workers.
IMAGES_PER_CORE = 377


def lengths(config: CrateMaeConfig) -> tuple[int, int, int]:
    """Return N, m and P."""
    rows, columns = config.grid_size
    num_patches = rows * columns
    patch_height, patch_width = to_pair(config.patch_size)
    masked = num_patches - int(num_patches * (1 - config.mask_ratio))
    return num_patches + 1, masked, patch_height * patch_width * config.num_channels


def image_operations(config: CrateMaeConfig, checkpointing: bool = False) -> int:
    r"""Floating-point operations of products and attention that an image adds to a training step.

    18 N d² + 14 N² d                each layer: three products (U, O, folded ISTA or D), forward and twice backward;
                                     attention, two products of N x N forward and five backward
    - (N - m) (6 d² + 14 N d)        the last one: attention from the masked patches alone, and their O
    4 (N - 1) P d                    embedding: forward and the weight's gradient
    6 m d P                          prediction of the masked patches
    + 6 N d² + 4 N² d                each encoder layer again with activation checkpointing
    + 4 N d² + 4 N² d                each decoder layer again: it stops before O, whose output no gradient needs
    - 4 (N - m) N d                  the last one
    """
    tokens, masked, values = lengths(config)
    width, encoder, decoder = config.hidden_size, config.num_hidden_layers, cast(int, config.decoder_num_hidden_layers)
    product, attention = 2 * tokens * width**2, 2 * tokens**2 * width
    operations = (encoder + decoder) * (9 * product + 7 * attention)
    operations -= (tokens - masked) * (6 * width**2 + 14 * tokens * width)
    operations += 4 * (tokens - 1) * values * width + 6 * masked * width * values
    if checkpointing:
        operations += encoder * (3 * product + 2 * attention) + decoder * (2 * product + 2 * attention)
        operations -= 4 * (tokens - masked) * tokens * width
    return operations


def step_operations(config: CrateMaeConfig, checkpointing: bool = False) -> int:
    r"""Operations of a training step on a GPU whatever the batch: folding each encoder layer's dictionary to M.

    2 d³ forward, 2 d³ backward, 2 d³ again with activation checkpointing
    """
    return config.num_hidden_layers * (6 if checkpointing else 4) * config.hidden_size**3


def image_rate(peak: float, utilization: float, operations: float) -> float:
    """Images per second of one GPU: peak rate x utilisation / operations per image."""
    return peak * utilization / operations


def gpu_hours(epochs: float, rate: float, num_images: int = IMAGENET_IMAGES) -> float:
    """Hours of one GPU: epochs x images / (3600 x images per second of a GPU)."""
    return epochs * num_images / (3600 * rate)


def reached_utilization(peak: float, rate: float, operations: float) -> float:
    """Share of the peak rate that images per second stand for: images per second x operations per image / peak rate.

    With the images that a GPU's workers prepare it is the utilisation from which on the GPU waits for them.
    """
    return rate * operations / peak


def state_bytes(config: CrateMaeConfig, num_gpus: int = 1) -> int:
    r"""Bytes of weights, gradients and AdamW's two moments on the fullest GPU, all in float32.

        16 sum over weights of ceil(rows / G) x columns

    FSDP2 cuts each weight along its first dimension. Without sharding G is 1.
    """
    with torch.device("meta"):
        weights = [p for p in CrateMaeForPreTraining(config).parameters() if p.requires_grad]
    return 16 * sum(math.ceil(len(weight) / num_gpus) * weight[0].numel() for weight in weights)


def image_bytes(config: CrateMaeConfig, checkpointing: bool = False) -> int:
    r"""Bytes that an image adds to what the forward keeps for the backward, computed in bfloat16.

        10 N d + 4 N (K + 4)             each layer: input, its norm, codes U, attention's output and z_half or y_half;
                                         in float32 attention's log-sums and the two numbers of two norms
        2 m d - (N - m) (2 d + 4 K)      the last one: queries of their own, no output for visible patches
        2 N d + 4 m d + 2 x the image    encoder's last output, decoder's last masked tokens and their norm, the image
        4 m P                            errors of the masked patches in float32

    With activation checkpointing 2 N d for each layer's input, and while the backward computes an encoder layer again,
    its 10 N d + 4 N (K + 4): its output is another copy.
    """
    tokens, masked, values = lengths(config)
    width, layers = config.hidden_size, config.num_hidden_layers + cast(int, config.decoder_num_hidden_layers)
    layer = 10 * tokens * width + 4 * tokens * (config.num_attention_heads + 4)
    rest = 2 * tokens * width + 4 * masked * width + 2 * (tokens - 1) * values + 4 * masked * values
    last = 2 * masked * width - (tokens - masked) * (2 * width + 4 * config.num_attention_heads)
    return rest + (layers * 2 * tokens * width + layer if checkpointing else layers * layer + last)


def step_bytes(config: CrateMaeConfig, checkpointing: bool = False) -> int:
    r"""Bytes in bfloat16 that a step keeps whatever the batch.

        2 L_e d² + 2 d P

    The folded dictionary M of each encoder layer (with activation checkpointing of one), and the prediction head, which
    FSDP2 leaves gathered between forward and backward, as all that is in no layer.
    """
    _, _, values = lengths(config)
    folded = 1 if checkpointing else config.num_hidden_layers
    return 2 * folded * config.hidden_size**2 + 2 * config.hidden_size * values


def gpu_bytes(config: CrateMaeConfig, batch_size: int, num_gpus: int, checkpointing: bool = False) -> int:
    """Bytes on the fullest GPU with FSDP2: `state_bytes` + `step_bytes` + B `image_bytes`."""
    kept = step_bytes(config, checkpointing) + batch_size * image_bytes(config, checkpointing)
    return state_bytes(config, num_gpus) + kept


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=list(CrateMaeConfig.sizes), default=["small", "base", "large"])
    parser.add_argument("--gpu", nargs="+", choices=list(PEAKS), default=["a100", "h100"])
    parser.add_argument("--num_gpus", type=int, default=8)
    parser.add_argument("--batch_size", nargs="+", type=int, default=[128, 256, 512], help="images of a GPU in a step")
    parser.add_argument("--epochs", type=int, default=800)
    parser.add_argument("--workers", type=int, default=12, help="cores of a GPU that prepare images")
    parser.add_argument("--images_per_core", type=float, default=IMAGES_PER_CORE, help="images a second")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/plan"))
    args = parser.parse_args(arguments)
    for name in ("num_gpus", "epochs", "workers", "images_per_core"):
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"`--{name}` must be positive and finite, got {getattr(args, name)}.")
    if min(args.batch_size) < 1:
        parser.error(f"`--batch_size` must be at least 1, got {min(args.batch_size)}.")
    if (args.output_dir / "plan.json").exists():
        parser.error(f"`--output_dir`: {args.output_dir} holds results already.")
    return args


def tables(args: argparse.Namespace) -> dict[str, list[Row]]:
    """Return the tables by name: what an image takes, the time, the input, the memory."""
    prepared = args.workers * args.images_per_core
    result: dict[str, list[Row]] = {"image": [], "time": [], "input": [], "memory": []}
    for size in args.size:
        config = CrateMaeConfig.from_size(size)
        operations = image_operations(config)
        result["image"].append(
            {
                "size": size,
                "M parameters": state_bytes(config) / 16e6,
                "GFLOP per image": operations / 1e9,
                "with checkpointing": image_operations(config, checkpointing=True) / 1e9,
                "MB kept per image": image_bytes(config) / 1e6,
                "with checkpointing, MB": image_bytes(config, checkpointing=True) / 1e6,
            }
        )
        for gpu in args.gpu:
            peak = PEAKS[gpu]
            for utilization in UTILIZATIONS:
                rate = image_rate(peak, utilization, operations)
                hours = gpu_hours(args.epochs, rate)
                result["time"].append(
                    {
                        "size": size,
                        "GPU": gpu,
                        "utilisation": utilization,
                        "images/s per GPU": round(rate),
                        "GPU hours": hours,
                        f"hours on {args.num_gpus}": hours / args.num_gpus,
                        "cores per GPU": math.ceil(rate / args.images_per_core),
                    }
                )
            result["input"].append(
                {
                    "size": size,
                    "GPU": gpu,
                    "workers per GPU": args.workers,
                    "images/s they prepare": round(prepared),
                    "input-bound above utilisation": reached_utilization(peak, prepared, operations),
                    f"hours on {args.num_gpus} then": gpu_hours(args.epochs, prepared) / args.num_gpus,
                }
            )
        for batch_size in args.batch_size:
            result["memory"].append(
                {
                    "size": size,
                    "images per GPU": batch_size,
                    "states, GB": state_bytes(config) / 1e9,
                    f"on {args.num_gpus} GPUs": state_bytes(config, args.num_gpus) / 1e9,
                    "GB per GPU": gpu_bytes(config, batch_size, args.num_gpus) / 1e9,
                    "with checkpointing": gpu_bytes(config, batch_size, args.num_gpus, checkpointing=True) / 1e9,
                }
            )
    return result


def shorten(row: Row) -> Row:
    """Return a row with three significant digits: an estimate has no more."""
    return {name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in row.items()}


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    result = tables(args)
    text = "\n".join(markdown_table([shorten(row) for row in rows]) for rows in result.values())
    settings: dict[str, Any] = {name: value for name, value in vars(args).items() if name != "output_dir"}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "plan.json").write_text(json.dumps({"settings": settings, **result}, indent=2) + "\n")
    (args.output_dir / "plan.md").write_text(text)
    print(f"{text}\nWritten to {args.output_dir}: plan.json, plan.md")


if __name__ == "__main__":
    main()
