import pytest
import torch
from sklearn.decomposition import PCA
from torch_geometric.data import Data
from torch_geometric.datasets import KarateClub
from torch_geometric.typing import WITH_PYG_LIB

from crate_mae_hf.graphs import attribute_target, node2vec_target, topology_target


@pytest.fixture
def karate() -> Data:
    return KarateClub()[0]


def naive_similarities(data: Data, steps: int) -> torch.Tensor:
    """How much likelier than by chance a walk of each length ends at a node: by counting walks, one length a time."""
    adjacency = torch.zeros(data.num_nodes, data.num_nodes, dtype=torch.float64)
    for i, j in data.edge_index.T.tolist():
        adjacency[i, j] = 1
    degrees = adjacency.sum(dim=1)
    reached = torch.stack(
        [torch.linalg.matrix_power(torch.diag(1 / degrees) @ adjacency, length) for length in range(1, steps + 1)]
    ).mean(dim=0)
    return (reached / (degrees / degrees.sum())).clamp(min=1).log()


@pytest.mark.parametrize("steps", [1, 4])
def test_topology_is_the_best_factorisation_of_what_short_walks_say(karate, steps):
    karate.x = karate.x.double()
    similarities = naive_similarities(karate, steps)
    embeddings = topology_target(karate, 6, steps)
    singular = torch.linalg.svdvals(similarities)
    torch.testing.assert_close(embeddings.norm(dim=0) ** 2, singular[:6])
    directions = torch.nn.functional.normalize(embeddings, dim=0)
    kept = directions @ directions.T @ similarities
    torch.testing.assert_close((similarities - kept).norm(), singular[6:].norm())


def test_topology_of_a_node_without_edges_is_zero(karate):
    data = Data(x=torch.randn(35, 2), edge_index=karate.edge_index)
    embeddings = topology_target(data, 5)
    assert embeddings[34].abs().max() < 1e-6
    torch.testing.assert_close(embeddings[:34], topology_target(karate, 5), rtol=1e-4, atol=1e-5)


def test_nearby_nodes_have_topologies_that_point_the_same_way(karate):
    embeddings = torch.nn.functional.normalize(topology_target(karate, 8, steps=3))
    cosines = embeddings @ embeddings.T
    linked = torch.zeros(34, 34, dtype=torch.bool)
    linked[karate.edge_index[0], karate.edge_index[1]] = True
    assert cosines[linked].mean() > cosines[~linked & ~torch.eye(34, dtype=torch.bool)].mean() + 0.2


@pytest.mark.parametrize(("size", "steps", "message"), [(35, 3, r"number of nodes \(34\), got 35"), (4, 0, "`steps`")])
def test_what_topology_refuses(karate, size, steps, message):
    with pytest.raises(ValueError, match=message):
        topology_target(karate, size, steps)


@pytest.mark.parametrize(("nodes", "features"), [(40, 7), (7, 40)])
@pytest.mark.parametrize("components", [0.3, 0.8, 3])
def test_attributes_are_true_principal_components(nodes, features, components):
    data = Data(x=torch.randn(nodes, features, dtype=torch.float64) @ torch.randn(features, features).double() + 3)
    embeddings = attribute_target(data, components)
    expected = torch.from_numpy(PCA(components, svd_solver="full", whiten=True).fit_transform(data.x.numpy()))
    assert embeddings.shape == expected.shape
    scale = (nodes / (nodes - 1)) ** 0.5
    torch.testing.assert_close(
        (embeddings * expected).mean(dim=0).abs(), torch.ones(expected.shape[1]).double() / scale
    )
    torch.testing.assert_close(embeddings.square().mean(dim=0), torch.ones(expected.shape[1]).double())
    assert embeddings.gather(0, embeddings.abs().argmax(dim=0, keepdim=True)).min() > 0


def test_components_without_variance_are_left_out():
    data = Data(x=torch.randn(20, 2) @ torch.randn(2, 9))
    assert attribute_target(data, 1.0).shape == (20, 2)
    with pytest.raises(ValueError, match=r"`components` must be a share up to 1.0, or from 1 to 2 components, got 3"):
        attribute_target(data, 3)


@pytest.mark.parametrize("components", [0, -1, 2.5, 0.0])
def test_what_attributes_refuse(components):
    with pytest.raises(ValueError, match=f"from 1 to 4 components, got {components}"):
        attribute_target(Data(x=torch.randn(9, 4)), components)


@pytest.mark.skipif(WITH_PYG_LIB, reason="node2vec can walk here")
def test_node2vec_says_what_it_lacks(karate):
    with pytest.raises(ValueError, match=r"extension of PyTorch Geometric that is not installed: .*pyg-lib"):
        node2vec_target(karate, 8)


@pytest.mark.skipif(not WITH_PYG_LIB, reason="node2vec cannot walk here")
def test_node2vec_embeds_neighbours_together(karate):
    embeddings = torch.nn.functional.normalize(node2vec_target(karate, 8))
    cosines = embeddings @ embeddings.T
    assert cosines[karate.edge_index[0], karate.edge_index[1]].mean() > cosines.mean()
