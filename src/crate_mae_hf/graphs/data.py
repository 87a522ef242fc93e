"""Graphs: where they come from, and what a graph has to be."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data
from torch_geometric.datasets import Amazon, Coauthor, KarateClub, Planetoid
from torch_geometric.utils import coalesce, contains_self_loops, is_undirected, to_undirected

# Bytes for each pair of nodes at the peak, measured at 1,500 nodes: embedding the topology takes 86, training about 30.
BYTES_PER_PAIR = 90
# What PyTorch Geometric downloads: collection -> its class and the graphs in it.
COLLECTIONS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "planetoid": (Planetoid, ("Cora", "CiteSeer", "PubMed")),
    "amazon": (Amazon, ("Computers", "Photo")),
    "coauthor": (Coauthor, ("CS", "Physics")),
}


def check_size(num_nodes: int, memory_limit: float) -> None:
    """Refuse a graph whose pairs of nodes need more memory than there is to be, before anything is tried.

    Args:
        num_nodes: N.
        memory_limit: In GB.

    Raises:
        ValueError: If it does, with what it needs.
    """
    needed = BYTES_PER_PAIR * num_nodes**2 / 1e9
    if needed > memory_limit:
        raise ValueError(
            f"`graph` has {num_nodes} nodes, whose pairs take about {needed:.3g} GB of memory, more than "
            f"`memory_limit` ({memory_limit:g} GB): use a smaller graph, or a larger limit on a larger machine."
        )


def check_graph(data: Data, memory_limit: float = 8.0) -> None:
    """Check that a graph is one that all that follows is made for. Nodes without edges are fine.

    Args:
        data: `x` (N, num_features), `edge_index` (2, E) with each edge in both directions, and, where nodes have
            classes, `y` (N,).
        memory_limit: How much memory its pairs of nodes may take, in GB.

    Raises:
        ValueError: If it is not, with what is wrong and what helps.
    """
    x, edge_index, y = data.x, data.edge_index, data.y
    if x is None or x.ndim != 2 or not x.is_floating_point() or 0 in x.shape:
        raise ValueError(f"`graph` must have features `x` of floats, (N, num_features), got {_describe(x)}.")
    check_size(len(x), memory_limit)
    bad = (~x.isfinite()).any(dim=1).nonzero()
    if len(bad):
        raise ValueError(
            f"`graph` has features that are not finite, at {len(bad)} nodes: the first is {bad[0].item()}."
        )
    if edge_index is None or edge_index.ndim != 2 or len(edge_index) != 2 or edge_index.dtype != torch.long:
        raise ValueError(f"`graph` must have edges `edge_index` of integers, (2, E), got {_describe(edge_index)}.")
    if not edge_index.numel():
        raise ValueError("`graph` has no edges.")
    outside = edge_index[(edge_index < 0) | (edge_index >= len(x))]
    if len(outside):
        raise ValueError(f"`graph` has edges of node {outside[0].item()}, but nodes from 0 to {len(x) - 1} only.")
    if contains_self_loops(edge_index):
        node = edge_index[0, edge_index[0] == edge_index[1]][0].item()
        raise ValueError(
            f"`graph` has self-loops, the first at node {node}: drop them by "
            "torch_geometric.utils.remove_self_loops; every node sees itself anyway."
        )
    if coalesce(edge_index, num_nodes=len(x)).shape != edge_index.shape:
        raise ValueError("`graph` has edges more than once: join them by torch_geometric.utils.coalesce.")
    if not is_undirected(edge_index, num_nodes=len(x)):
        raise ValueError(
            "`graph` has directed edges: list each in both directions, as torch_geometric.utils.to_undirected does."
        )
    if y is not None and (y.shape != (len(x),) or y.is_floating_point()):
        raise ValueError(f"`graph` must have one class for each node, `y` of integers, (N,), got {_describe(y)}.")


def _describe(tensor: torch.Tensor | None) -> str:
    return "none" if tensor is None else f"shape {tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def block_model(
    num_blocks: int = 5,
    block_size: int = 80,
    within: float = 0.06,
    between: float = 0.012,
    num_features: int = 60,
    signal: float = 0.17,
    seed: int = 0,
) -> Data:
    r"""Draw a stochastic block model whose nodes have noisy features.

        P(i ~ j) = within if y_i = y_j else between,   x_i = signal m_{y_i} + noise,   m, noise ~ N(0, 1)

    Args:
        num_blocks: Number of blocks, the classes.
        block_size: Number of nodes of each.
        within: Probability of an edge within a block.
        between: Probability of an edge between blocks.
        num_features: Number of features.
        signal: How much of the features tells the blocks apart.
        seed: Draws everything.
    """
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(num_blocks).repeat_interleave(block_size)
    chances = torch.where(y.unsqueeze(1) == y, within, between)
    edges = (torch.rand(chances.shape, generator=generator) < chances).triu(diagonal=1).nonzero().T
    means = torch.randn(num_blocks, num_features, generator=generator)
    x = signal * means[y] + torch.randn(len(y), num_features, generator=generator)
    return Data(x=x, edge_index=to_undirected(edges, num_nodes=len(y)), y=y)


def read_folder(folder: Path) -> Data:
    """Read a graph from a folder of text files with numbers that commas separate.

    `edges.csv` has two nodes in a line, counted from 0, for each edge in one or both directions; `features.csv` the
    features of a node in a line; `labels.csv`, which may be missing, the class of a node, a whole number, in a line.

    Raises:
        ValueError: If a file is missing, or holds anything else; names the file.
    """
    for name in ("edges.csv", "features.csv"):
        if not (folder / name).is_file():
            raise ValueError(f"`graph`: there is no {name} in {folder}.")
    x = _read_numbers(folder / "features.csv", np.float32)
    edges = _read_numbers(folder / "edges.csv", np.int64)
    if edges.shape[1] != 2:
        raise ValueError(f"{folder / 'edges.csv'} must have two nodes in a line, it has {edges.shape[1]}.")
    y = _read_numbers(folder / "labels.csv", np.int64) if (folder / "labels.csv").is_file() else None
    if y is not None and y.shape != (len(x), 1):
        raise ValueError(f"{folder / 'labels.csv'} must have one class for each of {len(x)} nodes.")
    edge_index = edges.T.contiguous()
    if edge_index.numel() and edge_index.min() >= 0 and edge_index.max() < len(x):  # `check_graph` names the others
        edge_index = to_undirected(edge_index, num_nodes=len(x))
    return Data(x=x, edge_index=edge_index, y=None if y is None else y[:, 0])


def _read_numbers(path: Path, dtype: type) -> torch.Tensor:
    try:
        return torch.from_numpy(np.loadtxt(path, dtype=dtype, delimiter=",", ndmin=2))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_graph(name: str, cache_dir: str | Path, seed: int = 0) -> Data:
    """Load a graph by its name.

    Args:
        name: `"karate"` (Zachary's karate club, 34 nodes), `"sbm"` (see [`block_model`]), a collection and a graph of
            it as `"planetoid:Cora"` (downloaded, see `COLLECTIONS`), or a folder, see [`read_folder`].
        cache_dir: Where downloaded graphs are kept.
        seed: Draws the block model.

    Raises:
        ValueError: If there is no such graph, or it cannot be downloaded.
    """
    if name == "karate":
        return KarateClub()[0]
    if name == "sbm":
        return block_model(seed=seed)
    collection, _, member = name.partition(":")
    dataset_class, members = COLLECTIONS.get(collection, (None, ()))
    if member in members:
        return dataset_class(str(cache_dir), member)[0]
    if name and Path(name).is_dir():
        return read_folder(Path(name))
    known = ", ".join(
        f"{collection}:{member}" for collection, (_, members) in COLLECTIONS.items() for member in members
    )
    raise ValueError(f"`graph` must be karate, sbm, a folder or one of {known}, got {name!r}.")
