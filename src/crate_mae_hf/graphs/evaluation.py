"""What embeddings of nodes are good for: node classification, clustering and link prediction, by scikit-learn."""

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    adjusted_rand_score,
    average_precision_score,
    normalized_mutual_info_score,
    roc_auc_score,
)
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import normalize
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

# The same for all: embeddings are normalised, and there are too few labels to choose it by.
C = 30.0
MIN_TRAIN_NODES = 10


def count_train_nodes(labels: torch.Tensor, train_share: float) -> int:
    """Return how many nodes a classifier is trained on: their share of all, but ten at least.

    Raises:
        ValueError: If there are fewer nodes to train on, or to test on, than classes.
    """
    num_train, needed = max(int(train_share * len(labels)), MIN_TRAIN_NODES), len(labels.unique())
    if not needed <= num_train <= len(labels) - needed:
        raise ValueError(
            f"`train_share` {train_share} leaves {num_train} of {len(labels)} nodes to train on: from {needed} to "
            f"{len(labels) - needed} are needed for {needed} classes."
        )
    return num_train


def classify_nodes(
    embeddings: torch.Tensor, labels: torch.Tensor, train_share: float = 0.1, splits: int = 20, seed: int = 0
) -> dict[str, float]:
    """Classify nodes by logistic regression on their normalised embeddings, with few labels, several times.

    Args:
        embeddings: `(N, d)`.
        labels: `(N,)`.
        train_share: Share of the nodes whose labels are known, see `count_train_nodes`; each class by its share of all.
        splits: How often to draw them.
        seed: Draws them.

    Returns:
        "accuracy" on the other nodes, and "accuracy_std" over the splits.

    Raises:
        ValueError: As `count_train_nodes` does.
    """
    num_train = count_train_nodes(labels, train_share)
    features, classes = normalize(embeddings.cpu().double().numpy()), labels.cpu().numpy()
    accuracies = []
    for split in range(splits):
        train, test = train_test_split(
            np.arange(len(classes)), train_size=num_train, stratify=classes, random_state=seed * splits + split
        )
        classifier = LogisticRegression(C=C, max_iter=2000).fit(features[train], classes[train])
        accuracies.append(classifier.score(features[test], classes[test]))
    return {"accuracy": float(np.mean(accuracies)), "accuracy_std": float(np.std(accuracies))}


def cluster_nodes(embeddings: torch.Tensor, labels: torch.Tensor, seed: int = 0) -> dict[str, float]:
    """Cluster nodes by k-means on their normalised embeddings, and compare the clusters with classes.

    Args:
        embeddings: `(N, d)`.
        labels: `(N,)`; there are as many clusters as classes.
        seed: Of k-means, which begins ten times.

    Returns:
        "nmi", normalised mutual information, and "ari", the adjusted Rand index.
    """
    classes = labels.cpu().numpy()
    clusters = KMeans(len(np.unique(classes)), n_init=10, random_state=seed).fit_predict(
        normalize(embeddings.cpu().double().numpy())
    )
    return {
        "nmi": float(normalized_mutual_info_score(classes, clusters)),
        "ari": float(adjusted_rand_score(classes, clusters)),
    }


def hold_out_edges(data: Data, link_share: float = 0.1, seed: int = 0) -> tuple[Data, torch.Tensor, torch.Tensor]:
    """Hold out edges, to be predicted by what is trained on the others; so this comes before targets are made.

    Args:
        data: An undirected graph.
        link_share: Share of the edges to hold out.
        seed: Draws them, and as many pairs of nodes that no edge links.

    Returns:
        The graph without them; the edges that are held out, each once, and the pairs, `(2, E)`.

    Raises:
        ValueError: If no edge would be held out, or left, or there are not as many other pairs.
    """
    edges = data.edge_index[:, data.edge_index[0] < data.edge_index[1]]
    number = round(link_share * edges.shape[1])
    if not 1 <= number < edges.shape[1]:
        raise ValueError(
            f"`link_share` {link_share} holds out {number} of {edges.shape[1]} edges: at least one, and not all."
        )
    linked = torch.zeros(data.num_nodes, data.num_nodes, dtype=torch.bool)
    linked[edges[0], edges[1]] = True
    others = (~linked).triu(diagonal=1).nonzero().T
    if others.shape[1] < number:
        raise ValueError(f"The graph has only {others.shape[1]} pairs of nodes without an edge, {number} are needed.")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(edges.shape[1], generator=generator)
    rest = data.clone()
    rest.edge_index = to_undirected(edges[:, order[number:]], num_nodes=data.num_nodes)
    return rest, edges[:, order[:number]], others[:, torch.randperm(others.shape[1], generator=generator)[:number]]


def predict_links(embeddings: torch.Tensor, edges: torch.Tensor, others: torch.Tensor) -> dict[str, float]:
    """Tell edges from other pairs of nodes by the cosine between the embeddings of their ends.

    Args:
        embeddings: `(N, d)`, made without the edges.
        edges: `(2, E)`.
        others: `(2, M)`.

    Returns:
        "auc", the area under the ROC curve, and "ap", the average precision.
    """
    first, second = torch.nn.functional.normalize(embeddings.cpu().double(), dim=1)[torch.cat([edges, others], dim=1)]
    scores = (first * second).sum(dim=1).numpy()
    truth = np.repeat([1, 0], [edges.shape[1], others.shape[1]])
    return {"auc": float(roc_auc_score(truth, scores)), "ap": float(average_precision_score(truth, scores))}
