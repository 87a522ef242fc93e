"""Command line: official checkpoints to folders that the Auto classes load, and back.

python -m crate_mae_hf.conversion CHECKPOINT OUT_DIR --size base
python -m crate_mae_hf.conversion FOLDER CHECKPOINT --reverse
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ..cli import clear_errors
from ..evaluation.lambda_study import compare_lambda, find_images
from ..tables import text_table
from .checkpoints import read_checkpoint
from .convert import convert_checkpoint, format_report, revert_checkpoint
from .layouts import LAYOUTS, find_layout


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m crate_mae_hf.conversion", description="Convert checkpoints of the official CRATE code."
    )
    sizes = list(dict.fromkeys(size for layout in LAYOUTS for size in layout.config_class.sizes))
    parser.add_argument(
        "checkpoint", type=Path, help="official .pth, .npz or .safetensors file; with --reverse our folder"
    )
    parser.add_argument("output", type=Path, help="folder to write; with --reverse the file to write")
    parser.add_argument("--reverse", action="store_true", help="write the official layout")
    options = parser.add_argument_group("what a checkpoint does not hold").add_argument
    options("--size", choices=sizes, help="published size, gives the numbers of heads")
    options("--num_attention_heads", type=int, help="heads of the encoder, for other sizes")
    options("--ista_lambda", type=float, help="sparsity weight; CRATE-MAE: 0.5, but see --compare_lambda; others: 0.1")
    options = parser.add_argument_group("CRATE-MAE").add_argument
    options("--decoder_num_attention_heads", type=int, help="heads of the decoder, if they differ")
    options("--mask_ratio", type=float, help="share of masked patches; 0.75 when left out")
    options("--norm_pix_loss", action="store_true", default=None, help="trained on normalised patches")
    options("--compare_lambda", type=float, nargs="+", metavar="LAMBDA", help="report the masked loss of each")
    options("--images", type=Path, metavar="DIR", help="images for --compare_lambda")
    options = parser.add_argument_group("supervised CRATE, CRATE-alpha").add_argument
    options("--image_size", type=int, help="image size to convert to, by interpolating the positions")
    options("--num_channels", type=int, help="image channels of a CRATE; 3 when left out")
    parsed = parser.parse_args(arguments)
    given = {name for name, value in vars(parsed).items() if value is not None} - {"checkpoint", "output", "reverse"}
    if parsed.reverse and given:
        parser.error(f"--reverse goes without --{' --'.join(sorted(given))}")
    if (parsed.compare_lambda is None) != (parsed.images is None):
        parser.error("--compare_lambda and --images go together")
    if parsed.compare_lambda and min(parsed.compare_lambda) < 0:
        parser.error(f"--compare_lambda must not be negative, got {min(parsed.compare_lambda)}")
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; see `--help`."""
    settings = vars(parse_arguments(arguments))
    checkpoint, output, reverse = (settings.pop(name) for name in ("checkpoint", "output", "reverse"))
    candidates, image_dir = settings.pop("compare_lambda"), settings.pop("images")
    with clear_errors():
        if reverse:
            revert_checkpoint(checkpoint, output)
            print(f"Wrote {output} in the official layout.")
            return
        images = find_images(image_dir) if candidates else []
        if candidates:
            layout = find_layout(read_checkpoint(checkpoint))
            if "AutoModelForPreTraining" not in layout.config_class.auto_classes:
                raise ValueError(
                    f"`compare_lambda` needs a masked loss, which {layout.name} has not; its lambda is "
                    f"{layout.config_class.ista_lambda}."
                )
        report = convert_checkpoint(checkpoint, output, **{k: v for k, v in settings.items() if v is not None})
        print(format_report(report))
        ista_lambda = json.loads((output / "config.json").read_text())["ista_lambda"]
        print(f"\nWrote {output} with ista_lambda={ista_lambda}, which no checkpoint holds.")
        if candidates:
            losses = compare_lambda(output, candidates, images)
            rows = [{"ista_lambda": str(value), "masked loss": f"{loss:.6f}"} for value, loss in losses.items()]
            print(text_table(rows))
            print("\nThe lowest loss is the likeliest; set it with --ista_lambda, or `ista_lambda` in config.json.")


if __name__ == "__main__":
    main()
