"""Checkpoints that come with the package."""

from pathlib import Path

FOLDER = Path(__file__).parent


def path(name: str) -> Path:
    """Return the folder of a checkpoint that comes with the package, for `from_pretrained`.

    Args:
        name: "fashion_mnist", a small CRATE-MAE that was pre-trained on the 60,000 training images of Fashion-MNIST
            (grey, 28 x 28). Its `README.md` says how, and what was measured.

    Raises:
        ValueError: If there is none of that name.

    Example:

    ```python
    >>> from transformers import AutoModel
    >>> import crate_mae_hf

    >>> model = AutoModel.from_pretrained(crate_mae_hf.pretrained.path("fashion_mnist"))
    >>> model.config.image_size
    28
    ```
    """
    names = sorted(config.parent.name for config in FOLDER.glob("*/config.json"))
    if name not in names:
        raise ValueError(f"`name` must be one of the checkpoints that come along, {', '.join(names)}; got {name!r}.")
    return FOLDER / name


__all__ = ["path"]
