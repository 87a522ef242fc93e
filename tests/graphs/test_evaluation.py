import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.datasets import KarateClub
from torch_geometric.utils import is_undirected

from crate_mae_hf.graphs.evaluation import classify_nodes, cluster_nodes, hold_out_edges, predict_links


@pytest.fixture
def karate() -> Data:
    return KarateClub()[0]


LABELS = torch.arange(3).repeat(40)


def draw_embeddings(signal: float) -> torch.Tensor:
    """Directions that tell classes apart; lengths say nothing."""
    directions = signal * torch.nn.functional.one_hot(LABELS).float() + 0.2 * torch.randn(120, 3)
    return directions * torch.rand(120, 1).mul(5).exp()


def test_what_tells_classes_apart_is_found_and_what_does_not_is_not():
    good, bad = draw_embeddings(1.0), draw_embeddings(0.0)
    assert classify_nodes(good, LABELS, splits=1)["accuracy"] > 0.95
    assert 0.2 < classify_nodes(bad, LABELS, splits=2)["accuracy"] < 0.48
    found, missed = cluster_nodes(good, LABELS), cluster_nodes(bad, LABELS)
    assert min(found.values()) > 0.9
    assert max(missed.values()) < 0.1


def test_figures_are_functions_of_the_seed():
    embeddings = draw_embeddings(0.2)
    first = classify_nodes(embeddings, LABELS, splits=1)
    assert first == classify_nodes(embeddings, LABELS, splits=1)
    assert first != classify_nodes(embeddings, LABELS, splits=1, seed=1)


def test_ten_nodes_are_trained_on_at_least():
    embeddings = draw_embeddings(1.0)
    assert classify_nodes(embeddings, LABELS, 0.001, splits=1) == classify_nodes(embeddings, LABELS, 10 / 120, splits=1)


def test_too_few_nodes_to_train_or_test_on_are_refused():
    with pytest.raises(ValueError, match=r"`train_share` 0.99 leaves 118 of 120 nodes to train on: from 3 to 117"):
        classify_nodes(draw_embeddings(1.0), LABELS, 0.99)
    with pytest.raises(ValueError, match="12 of 120 nodes to train on: from 40 to 80 are needed for 40 classes"):
        classify_nodes(draw_embeddings(1.0), torch.arange(40).repeat(3))


def test_held_out_edges_are_gone_in_both_directions_and_others_are_no_edges(karate):
    rest, edges, others = hold_out_edges(karate, 0.1, seed=3)
    assert edges.shape == others.shape == (2, 8)
    assert rest.num_edges == karate.num_edges - 16
    assert is_undirected(rest.edge_index)
    all_edges, kept = (set(map(tuple, graph.edge_index.T.tolist())) for graph in (karate, rest))
    held_out, pairs = (set(map(tuple, both.T.tolist())) for both in (edges, others))
    assert len(held_out) == len(pairs) == 8
    assert held_out | {(j, i) for i, j in held_out} == all_edges - kept
    assert not pairs & all_edges
    assert all(i < j for i, j in pairs)
    assert rest.x.equal(karate.x)
    assert karate.num_edges == 156
    again = hold_out_edges(karate, 0.1, seed=3)
    assert again[1].equal(edges)
    assert again[2].equal(others)
    assert not hold_out_edges(karate, 0.1, seed=4)[1].equal(edges)


def test_links_are_scored_by_the_angle_between_their_ends():
    embeddings = torch.tensor([[1.0, 0.0], [9.0, 1.0], [0.0, 0.1], [-1.0, 5.0]])
    figures = predict_links(embeddings, torch.tensor([[0, 2], [1, 3]]), torch.tensor([[0, 1], [2, 3]]))
    assert figures == {"auc": 1.0, "ap": 1.0}
    turned = predict_links(embeddings, torch.tensor([[0, 1], [2, 3]]), torch.tensor([[0, 2], [1, 3]]))
    assert turned["auc"] == 0


@pytest.mark.parametrize("share", [0.0, 0.001, 1.0])
def test_no_edge_held_out_or_left_is_refused(karate, share):
    with pytest.raises(ValueError, match=f"`link_share` {share} holds out"):
        hold_out_edges(karate, share)


def test_a_complete_graph_has_no_other_pairs():
    pairs = torch.combinations(torch.arange(6)).T
    complete = Data(x=torch.eye(6), edge_index=torch.cat([pairs, pairs.flip(0)], dim=1))
    with pytest.raises(ValueError, match="only 0 pairs of nodes without an edge, 2 are needed"):
        hold_out_edges(complete)
