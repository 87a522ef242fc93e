"""Numbers on what every layer of CRATE-MAE does; torch only. The pictures are in `crate_mae_hf.analysis.figures`."""

from .attention import attention_maps, upsample
from .coding_rate import (
    coding_rate,
    nonzero_share,
    orthogonality_defect,
    sparsity,
    subspace_coding_rate,
    subspace_coherence,
)
from .colors import color_pictures, lab_to_rgb
from .layers import LayerReport, layer_report, observe_layers
from .masks import block_masks, painted_masks, random_masks
from .pca import PcaMaps, patch_codes, pca_maps
from .reconstruction import Reconstruction, reconstruct, reconstruct_whole

__all__ = [
    "LayerReport",
    "PcaMaps",
    "Reconstruction",
    "attention_maps",
    "block_masks",
    "coding_rate",
    "color_pictures",
    "lab_to_rgb",
    "layer_report",
    "nonzero_share",
    "observe_layers",
    "orthogonality_defect",
    "painted_masks",
    "patch_codes",
    "pca_maps",
    "random_masks",
    "reconstruct",
    "reconstruct_whole",
    "sparsity",
    "subspace_coding_rate",
    "subspace_coherence",
    "upsample",
]
