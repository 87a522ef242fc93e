"""Checkpoints of the official code (github.com/Ma-Lab-Berkeley/CRATE) to this package's layout, and back.

CRATE-MAE or supervised CRATE: a checkpoint's keys tell which.
"""

from .convert import convert_checkpoint, revert_checkpoint
from .layouts import CRATE, CRATE_MAE, convert_key

__all__ = ["CRATE", "CRATE_MAE", "convert_checkpoint", "convert_key", "revert_checkpoint"]
