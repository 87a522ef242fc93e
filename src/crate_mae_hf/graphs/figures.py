"""Pictures of graphs."""

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch_geometric.data import Data


def node_maps(maps: Mapping[str, torch.Tensor], data: Data) -> Figure:
    """Draw nodes by the two principal components of their normalised embeddings, coloured by class.

    Args:
        maps: Embeddings `(N, d)` by title.
        data: The graph; without classes all nodes are of one colour.
    """
    figure = Figure(figsize=(4.2 * len(maps), 4.2), layout="constrained")
    for ax, (title, embeddings) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps.items(), strict=True):
        rows = torch.nn.functional.normalize(embeddings.detach().cpu().double(), dim=1)
        left, singular, _ = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
        x, y = (left[:, :2] * singular[:2]).T
        share = singular.square() / singular.square().sum()
        for label in range(1) if data.y is None else data.y.unique().tolist():
            nodes = slice(None) if data.y is None else (data.y == label).cpu()
            ax.scatter(x[nodes], y[nodes], s=12, alpha=0.8, label=str(label), color=f"C{label % 10}", linewidths=0)
        ax.set(title=title, xlabel=f"first component ({share[0]:.0%})", ylabel=f"second component ({share[1]:.0%})")
        ax.set(xticks=[], yticks=[])
    if data.y is not None:
        ax.legend(title="class", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure
