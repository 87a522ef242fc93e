"""The golden values of GiGaMAE, and what the official code does otherwise than the paper."""

import json
import re

import torch
from golden import read_golden
from torch_geometric.data import Data

from crate_mae_hf.graphs import GigaMae, GraphAttentionConfig, GraphAttentionEncoder, GraphMasks

# Names of the official code -> ours.
NAMES = (
    (r"^conv", "encoder.conv"),
    (r"^bn1\.module\.", "encoder.norm."),
    (r"^p_1\.", "projectors.0."),
    (r"^p_2\.", "projectors.1."),
    (r"^p_12\.", "projectors.2."),
    (r"\.layer1\.", "."),
    (r"\.layer2\.", ".3."),
)


def read_reference() -> tuple[dict, dict[str, torch.Tensor]]:
    """The official settings and all tensors."""
    metadata, tensors = read_golden("giga_mae_micro")
    return json.loads(metadata["config"]), tensors


def rename(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """What lies under a prefix, by our names; the second batch norm is never used, and not there."""
    renamed = {}
    for key, value in tensors.items():
        name = key.removeprefix(prefix)
        if name == key or name.startswith("bn2."):
            continue
        for official, ours in NAMES:
            name = re.sub(official, ours, name)
        renamed[name] = value.squeeze() if "num_batches" in name else value
    return renamed


def read_graph(tensors: dict[str, torch.Tensor]) -> Data:
    return Data(x=tensors["graph.x"], edge_index=tensors["graph.edge_index"].long())


def read_masks(tensors: dict[str, torch.Tensor]) -> GraphMasks:
    return GraphMasks(tensors["masks.node"].bool(), tensors["masks.edge_dropped"].bool())


def to_giga_mae(official: dict, tensors: dict[str, torch.Tensor], dropout: float = 0.0) -> GigaMae:
    """The official model with its weights, in float64."""
    config = GraphAttentionConfig(
        num_features=official["features"],
        head_size=official["hidden"],
        num_attention_heads=official["heads"],
        hidden_size=official["out_channels"],
        dropout=dropout,
    )
    weights = [official["weights"][name] for name in ("e", "f", "b")]
    objective = GigaMae(GraphAttentionEncoder(config), official["d1"], official["d2"], official["tau"], weights)
    objective = objective.double()
    objective.load_state_dict(rename(tensors, "checkpoint."))
    return objective


def official_sets(sets: torch.Tensor) -> torch.Tensor:
    """The sets of the official code, which takes node 0 for one that has lost an edge whether it has or not."""
    e, f, b = sets.clone()
    e[0], b[0], f[0] = e[0] | ~(f[0] | b[0]), b[0] | f[0], False
    return torch.stack([e, f, b])
