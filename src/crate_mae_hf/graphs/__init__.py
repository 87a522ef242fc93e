"""GiGaMAE: masked autoencoding of graphs, with the paper's encoder and with white-box layers. Extra `graphs`."""

import warnings

with warnings.catch_warnings():
    # PyTorch Geometric scripts some of its functions on import, which PyTorch has come to warn of.
    warnings.filterwarnings("ignore", message=".torch.jit.script. is deprecated", category=FutureWarning)
    try:
        import torch_geometric  # noqa: F401
    except ModuleNotFoundError as error:
        message = 'Graphs need PyTorch Geometric: pip install "crate-mae-hf[graphs]".'
        raise ModuleNotFoundError(message, name=error.name) from error

from torch_geometric.data import Data

from .encoders import CrateGraphConfig, CrateGraphEncoder, GraphAttentionConfig, GraphAttentionEncoder
from .giga_mae import GigaMae, GigaMaeOutput, GraphMasks, draw_masks, semi_loss
from .targets import attribute_target, node2vec_target, topology_target

__all__ = [
    "CrateGraphConfig",
    "CrateGraphEncoder",
    "Data",
    "GigaMae",
    "GigaMaeOutput",
    "GraphAttentionConfig",
    "GraphAttentionEncoder",
    "GraphMasks",
    "attribute_target",
    "draw_masks",
    "node2vec_target",
    "semi_loss",
    "topology_target",
]
