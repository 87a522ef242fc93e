"""Command line: push a saved model to the Hub, with a card.

python -m crate_mae_hf.hub FOLDER REPO_ID --dataset ILSVRC/imagenet-1k --license mit
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..cli import clear_errors
from ..registry import MODEL_NAMES
from . import push_folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; see `--help`."""
    parser = argparse.ArgumentParser(
        prog="python -m crate_mae_hf.hub", description=f"Push a saved {MODEL_NAMES} model to the Hub, with a card."
    )
    parser.add_argument("folder", type=Path, help="folder with a model and its image processor")
    parser.add_argument("repo_id", help="repository, name or owner/name")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--dataset", help="for the card: id of the training data on the Hub")
    parser.add_argument("--data", help="for the card: the training data in words")
    parser.add_argument("--license", help="for the card: licence of the weights, as the Hub names it")
    parser.add_argument("--base_model", help="for the card: id on the Hub of the model that the training started from")
    options = parser.parse_args(arguments)
    names = ("dataset", "data", "license", "base_model")
    card = {name: value for name in names if (value := getattr(options, name)) is not None}
    with clear_errors():
        print(push_folder(options.folder, options.repo_id, private=options.private, card=card))


if __name__ == "__main__":
    main()
