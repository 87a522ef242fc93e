"""Checkpoints of the official code to this package's layout, and back.

CRATE-MAE, supervised CRATE (github.com/Ma-Lab-Berkeley/CRATE) or CRATE-alpha (github.com/UCSC-VLAA/CRATE-alpha): a
checkpoint's keys tell which.
"""

from .convert import convert_checkpoint, revert_checkpoint
from .layouts import CRATE, CRATE_ALPHA, CRATE_MAE, convert_key

__all__ = ["CRATE", "CRATE_ALPHA", "CRATE_MAE", "convert_checkpoint", "convert_key", "revert_checkpoint"]
