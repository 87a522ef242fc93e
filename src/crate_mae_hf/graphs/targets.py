"""What GiGaMAE reconstructs: embeddings of a graph's topology and of its attributes, made before training."""

import torch
from torch_geometric.data import Data
from torch_geometric.nn import Node2Vec
from torch_geometric.utils import to_dense_adj


def topology_target(data: Data, topology_size: int, steps: int = 10) -> torch.Tensor:
    r"""Embed nodes so that inner products say how much likelier than by chance a short walk links two of them.

        M = log max(1, vol / k (P + P² + ... + P^k) D^-1),   E = U_d |S_d|^1/2,   P = D^-1 A

    with U S Uᵀ the d eigenvalues of M that are largest in absolute value: what DeepWalk with windows of k steps
    approaches. "Network Embedding as Matrix Factorization", Qiu et al., WSDM 2018. Nothing is drawn; a node without
    edges gets zeros.

    Args:
        data: An undirected graph.
        topology_size: Width d of an embedding.
        steps: Length k of a walk.

    Returns:
        E, `(N, d)`, in the type of the features.

    Raises:
        ValueError: If `topology_size` is not between 1 and the number of nodes, or there are no steps.
    """
    if not 1 <= topology_size <= data.num_nodes:
        raise ValueError(
            f"`topology_size` must lie between 1 and the number of nodes ({data.num_nodes}), got {topology_size}."
        )
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1, got {steps}.")
    adjacency = to_dense_adj(data.edge_index, max_num_nodes=data.num_nodes)[0].double()
    degrees = adjacency.sum(dim=1)
    inverse = degrees.where(degrees > 0, torch.inf).reciprocal()
    transitions = inverse.unsqueeze(1) * adjacency
    walks = power = transitions
    for _ in range(steps - 1):
        power = power @ transitions
        walks = walks + power
    similarities = (walks * (degrees.sum() / steps * inverse)).clamp(min=1).log()
    values, vectors = torch.linalg.eigh((similarities + similarities.T) / 2)  # symmetric but for rounding
    largest = values.abs().argsort(descending=True)[:topology_size]
    return _fix_signs(vectors[:, largest] * values[largest].abs().sqrt()).to(data.x.dtype)


def attribute_target(data: Data, components: int | float) -> torch.Tensor:
    r"""Embed nodes by the principal components of their features, each with variance 1.

        E = sqrt(N) U_d,   U S Vᵀ = X - mean(X)

    Args:
        data: The graph.
        components: How many, or, as a float up to 1.0, the share of the variance that they have to explain.

    Returns:
        E, `(N, d)`; components without variance are left out.

    Raises:
        ValueError: If it is neither, or more than there are.
    """
    features = data.x.double()
    left, singular, _ = torch.linalg.svd(features - features.mean(dim=0), full_matrices=False)
    variance = singular.square()
    number = int((variance > variance.sum() * 1e-12).sum())
    if isinstance(components, float) and 0 < components <= 1:
        shares = variance.cumsum(0) / variance.sum()
        number = min(number, int((shares < components).sum()) + 1)
    elif components == int(components) and 1 <= components <= number:
        number = int(components)
    else:
        raise ValueError(f"`components` must be a share up to 1.0, or from 1 to {number} components, got {components}.")
    return _fix_signs(left[:, :number] * len(features) ** 0.5).to(data.x.dtype)


def node2vec_target(
    data: Data, size: int, steps: int = 10, epochs: int = 30, learning_rate: float = 0.01
) -> torch.Tensor:
    """Embed nodes by node2vec (Grover and Leskovec, KDD 2016), as the paper does; `torch.manual_seed` decides.

    Args:
        data: The graph.
        size: Width d of an embedding.
        steps: Nodes of a walk, and of the window in it.
        epochs: How often to walk from each node.
        learning_rate: Of sparse Adam.

    Returns:
        E, `(N, d)`.

    Raises:
        ValueError: If PyTorch Geometric lacks the extension that walks.
    """
    try:
        model = Node2Vec(
            data.edge_index, size, steps, steps, walks_per_node=5, num_nodes=data.num_nodes, sparse=True
        ).to(data.x.device)
    except ImportError as error:
        raise ValueError(
            f"node2vec walks by an extension of PyTorch Geometric that is not installed: {error}"
        ) from error
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=learning_rate)
    for _ in range(epochs):
        for positive, negative in model.loader(batch_size=512, shuffle=True):
            optimizer.zero_grad()
            model.loss(positive.to(data.x.device), negative.to(data.x.device)).backward()
            optimizer.step()
    return model.embedding.weight.detach().to(data.x.dtype)


def _fix_signs(columns: torch.Tensor) -> torch.Tensor:
    """Make the largest entry of each column positive: eigenvectors come with either sign."""
    largest = columns.gather(0, columns.abs().argmax(dim=0, keepdim=True))
    return columns * largest.sign()
