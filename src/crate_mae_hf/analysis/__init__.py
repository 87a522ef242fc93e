"""Numbers on what every layer of CRATE-MAE does; torch only. The pictures are in `crate_mae_hf.analysis.figures`."""

from .reconstruction import Reconstruction, random_masks, reconstruct, reconstruct_whole

__all__ = ["Reconstruction", "random_masks", "reconstruct", "reconstruct_whole"]
