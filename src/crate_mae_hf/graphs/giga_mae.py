"""GiGaMAE: reconstruct embeddings of a graph's topology, of its attributes and of both from a masked graph.

"GiGaMAE: Generalizable Graph Masked Autoencoder via Collaborative Latent Space Reconstruction", Shi, Dong, Tan, Li and
Liu, CIKM 2023.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch_geometric.data import Data
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

# Embeddings of the topology and of the attributes of each node, (N, d_1) and (N, d_2).
Targets = tuple[torch.Tensor, torch.Tensor]

# What was masked at a node: edges alone, features alone, both. Weights of the targets E_1, E_2, E_12 for each.
SETS = ("e", "f", "b")
WEIGHTS = ((4.0, 1.0, 1.0), (1.0, 4.0, 1.0), (2.0, 2.0, -1.0))


def semi_loss(targets: torch.Tensor, reconstructions: torch.Tensor, temperature: float) -> torch.Tensor:
    r"""How badly each node's target is told from other nodes' targets and reconstructions by its own reconstruction.

        l_i = -t_i·r_i / tau + log( sum_{j != i} exp(t_i·t_j / tau) + sum_j exp(t_i·r_j / tau) )

    Rows are normalised first. A single node costs nothing, no nodes give no losses.

    Args:
        targets: t, `(N, d)`.
        reconstructions: r, `(N, d)`.
        temperature: tau; the lower, the more the nearest nodes count.

    Returns:
        l, `(N,)`.

    Raises:
        ValueError: If the two differ in shape, or the temperature is not positive.
    """
    if targets.shape != reconstructions.shape or targets.ndim != 2:
        raise ValueError(
            f"`targets` and `reconstructions` must both have shape (N, d), got {tuple(targets.shape)} and "
            f"{tuple(reconstructions.shape)}."
        )
    if not temperature > 0:
        raise ValueError(f"`temperature` must be positive, got {temperature}.")
    targets, reconstructions = F.normalize(targets, dim=1), F.normalize(reconstructions, dim=1)
    among_targets = (targets @ targets.T / temperature).fill_diagonal_(-torch.inf)
    across = targets @ reconstructions.T / temperature
    return torch.cat([among_targets, across], dim=1).logsumexp(dim=1) - across.diagonal()


@dataclass
class GraphMasks:
    """What is hidden of a graph.

    Args:
        nodes: True where a node's features are zeroed, `(N,)`.
        edges: True where a directed edge is dropped, `(E,)`.
    """

    nodes: torch.Tensor
    edges: torch.Tensor

    def hide(self, data: Data) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features and the edges that are left."""
        return data.x.masked_fill(self.nodes.unsqueeze(1), 0), data.edge_index[:, ~self.edges]

    def sets(self, data: Data) -> torch.Tensor:
        """Return which nodes lost edges alone, features alone, and both, `(3, N)`.

        A node has lost an edge if one that begins at it is dropped.
        """
        lost = torch.zeros_like(self.nodes)
        lost[data.edge_index[0, self.edges]] = True
        return torch.stack([lost & ~self.nodes, self.nodes & ~lost, self.nodes & lost])


def draw_masks(data: Data, node_ratio: float, edge_ratio: float, generator: torch.Generator) -> GraphMasks:
    """Draw masks: each node's features and each directed edge go with a probability of their own.

    Args:
        data: The graph.
        node_ratio: Probability that a node's features are zeroed.
        edge_ratio: Probability that a directed edge is dropped.
        generator: Draws them, on the CPU.

    Raises:
        ValueError: If a probability does not lie in [0, 1].
    """
    for name, ratio in (("node_ratio", node_ratio), ("edge_ratio", edge_ratio)):
        if not 0 <= ratio <= 1:
            raise ValueError(f"`{name}` must lie in [0, 1], got {ratio}.")
    nodes = torch.rand(data.num_nodes, generator=generator) < node_ratio
    edges = torch.rand(data.num_edges, generator=generator) < edge_ratio
    return GraphMasks(nodes.to(data.x.device), edges.to(data.x.device))


@dataclass
class GigaMaeOutput(ModelOutput):
    """What [`GigaMae`] computes of a masked graph.

    Args:
        loss: Weighted sum of the terms.
        terms: Mean loss over each set of nodes, e, f and b (rows), for each target, E_1, E_2 and E_12 (columns).
    """

    loss: torch.Tensor | None = None
    terms: torch.Tensor | None = None


class Projector(nn.Sequential):
    """Linear, batch norm, ReLU, linear: from features of nodes to what is to be predicted of them."""

    def __init__(self, hidden_size: int, output_size: int):
        width = 2 * hidden_size
        super().__init__(nn.Linear(hidden_size, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, output_size))


class GigaMae(nn.Module):
    r"""Train a graph encoder to predict embeddings of topology, attributes and both, weighted by what a node lost.

        z = encoder(masked graph),   r_t = projector_t(z)   for the targets E_1, E_2, E_12 = [E_1, E_2]
        L = sum over S in {e, f, b}, t in {1, 2, 12} of lambda_{S, t} mean over i in S of semi(E_t, r_t)_i

    e, f and b are the nodes that lost edges alone, features alone, and both; a set without nodes counts nothing. After
    training the encoder is kept, the projectors are not needed.

    Args:
        encoder: [`GraphAttentionEncoder`], the paper's, or [`CrateGraphEncoder`].
        topology_size: d_1, the width of E_1.
        attribute_size: d_2, the width of E_2.
        temperature: tau of [`semi_loss`].
        weights: lambda: a row for e, f and b each, of weights of E_1, E_2 and E_12.

    Raises:
        ValueError: If there are not three by three weights.
    """

    weights: torch.Tensor

    def __init__(
        self,
        encoder: PreTrainedModel,
        topology_size: int,
        attribute_size: int,
        temperature: float = 0.7,
        weights: Sequence[Sequence[float]] = WEIGHTS,
    ):
        super().__init__()
        table = torch.tensor(weights, dtype=torch.get_default_dtype())
        if table.shape != (3, 3):
            raise ValueError(f"`weights` must be three for each of e, f and b, got shape {tuple(table.shape)}.")
        self.encoder = encoder
        self.temperature = temperature
        width = encoder.config.hidden_size
        sizes = (topology_size, attribute_size, topology_size + attribute_size)
        self.projectors = nn.ModuleList(Projector(width, size) for size in sizes)
        self.register_buffer("weights", table, persistent=False)

    def forward(self, data: Data, targets: Targets, masks: GraphMasks) -> GigaMaeOutput:
        """Hide a part of the graph and return how badly the encoder's features of the rest predict the targets."""
        return self.forward_loss(self.encoder(*masks.hide(data)), targets, masks.sets(data))

    def project(self, hidden_states: torch.Tensor) -> list[torch.Tensor]:
        """Return the reconstructions of E_1, E_2 and E_12 from features `(N, d)`."""
        return [projector(hidden_states) for projector in self.projectors]

    def forward_loss(self, hidden_states: torch.Tensor, targets: Targets, sets: torch.Tensor) -> GigaMaeOutput:
        """Return the loss of features `(N, d)`; `sets` is true where a node is in e, f and b, `(3, N)`.

        The batch norms of the projectors see all nodes, whichever set they are in.
        """
        pairs = list(zip((*targets, torch.cat(targets, dim=1)), self.project(hidden_states), strict=True))
        rows = []
        for nodes in sets:
            losses = [semi_loss(target[nodes], output[nodes], self.temperature) for target, output in pairs]
            rows.append(torch.stack([loss.sum() / max(len(loss), 1) for loss in losses]))
        terms = torch.stack(rows)
        return GigaMaeOutput(loss=(self.weights * terms).sum(), terms=terms)
