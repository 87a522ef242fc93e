import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.datasets import KarateClub
from torch_geometric.utils import homophily

from crate_mae_hf.graphs.data import COLLECTIONS, block_model, check_graph, check_size, load_graph


@pytest.fixture
def karate() -> Data:
    return KarateClub()[0]


def write_folder(folder, data: Data, edges: np.ndarray | None = None, labels: bool = True):
    folder.mkdir()
    one_way = data.edge_index[:, data.edge_index[0] < data.edge_index[1]].T.numpy() if edges is None else edges
    np.savetxt(folder / "edges.csv", one_way, fmt="%d", delimiter=",")
    np.savetxt(folder / "features.csv", data.x.numpy(), delimiter=",")
    if labels:
        np.savetxt(folder / "labels.csv", data.y.numpy(), fmt="%d")
    return folder


# Where graphs come from


def test_the_graphs_that_are_there_are_good_ones():
    for name, nodes in (("karate", 34), ("sbm", 400)):
        graph = load_graph(name, "unused")
        check_graph(graph)
        assert graph.num_nodes == nodes


def test_a_block_model_is_a_function_of_its_seed():
    first, again, other = block_model(seed=1), block_model(seed=1), block_model(seed=2)
    assert first.x.equal(again.x)
    assert first.edge_index.equal(again.edge_index)
    assert not first.x.equal(other.x)
    # 5 * 80 * 79 / 2 pairs within blocks, 10 * 80 * 80 between.
    assert first.num_edges / 2 == pytest.approx(0.06 * 15800 + 0.012 * 64000, rel=0.1)
    assert homophily(first.edge_index, first.y) == pytest.approx(948 / (948 + 768), abs=0.05)


def test_a_folder_is_read_with_each_edge_in_one_direction_or_both(karate, tmp_path):
    for name, edges in (("one", None), ("both", karate.edge_index.T.numpy())):
        graph = load_graph(str(write_folder(tmp_path / name, karate, edges)), "unused")
        check_graph(graph)
        assert graph.x.equal(karate.x)
        assert graph.y.equal(karate.y)
        assert sorted(graph.edge_index.T.tolist()) == sorted(karate.edge_index.T.tolist())
    unlabelled = load_graph(str(write_folder(tmp_path / "unlabelled", karate, labels=False)), "unused")
    check_graph(unlabelled)
    assert unlabelled.y is None


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("edges.csv", "0,1,2\n", r"edges.csv must have two nodes in a line, it has 3"),
        ("edges.csv", "0,one\n", r"edges.csv: .*one"),
        ("edges.csv", "0,34\n", r"edges of node 34, but nodes from 0 to 33 only"),
        ("edges.csv", "0,-1\n", r"edges of node -1"),
        ("edges.csv", "3,3\n", r"self-loops, the first at node 3"),
        ("features.csv", "1,2\n3\n", r"features.csv: "),
        ("labels.csv", "1\n2\n", r"labels.csv must have one class for each of 34 nodes"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(karate, tmp_path, file, text, message):
    folder = write_folder(tmp_path / "graph", karate)
    (folder / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        check_graph(load_graph(str(folder), "unused"))


def test_a_file_that_is_missing_is_named(karate, tmp_path):
    (write_folder(tmp_path / "graph", karate) / "features.csv").unlink()
    with pytest.raises(ValueError, match=r"there is no features.csv"):
        load_graph(str(tmp_path / "graph"), "unused")


@pytest.mark.parametrize("name", ["planetoid:Corra", "planetoid:", "amazon:Cora", "nowhere", ""])
def test_a_graph_that_is_not_there_is_said(name):
    with pytest.raises(ValueError, match=f"must be karate, sbm, a folder or one of planetoid:Cora, .*got '{name}'"):
        load_graph(name, "unused")


def test_downloaded_graphs_are_taken_from_where_they_are_kept(monkeypatch, karate, tmp_path):
    seen = []
    for collection, (_, members) in COLLECTIONS.items():
        kept = (lambda root, name, collection=collection: [seen.append((root, collection, name)) or karate], members)
        monkeypatch.setitem(COLLECTIONS, collection, kept)
        for name in members:
            assert load_graph(f"{collection}:{name}", tmp_path) is karate
    assert (str(tmp_path), "amazon", "Photo") in seen
    assert len(seen) == 7


# What a graph has to be


def change(data: Data, **changes) -> Data:
    data = data.clone()
    for name, value in changes.items():
        data[name] = value
    return data


BAD = {
    "no features": ({"x": None}, "must have features `x` of floats, .*got none"),
    "features of whole numbers": ({"x": torch.ones(34, 3, dtype=torch.long)}, r"shape \(34, 3\) of int64"),
    "one-dimensional features": ({"x": torch.ones(34)}, r"got shape \(34,\) of float32"),
    "features that are no number": ({"x": torch.eye(34).index_fill(0, torch.tensor([7]), torch.nan)}, "first is 7"),
    "infinite features": ({"x": torch.eye(34) * torch.inf}, "not finite, at 34 nodes"),
    "no edges": ({"edge_index": torch.zeros(2, 0, dtype=torch.long)}, "`graph` has no edges"),
    "edges of floats": ({"edge_index": torch.zeros(2, 4)}, "`edge_index` of integers"),
    "edges in rows": ({"edge_index": torch.zeros(4, 2, dtype=torch.long)}, r"got shape \(4, 2\) of int64"),
    "a node that is not there": ({"edge_index": torch.tensor([[0, 34], [34, 0]])}, "node 34, but nodes from 0 to 33"),
    "a negative node": ({"edge_index": torch.tensor([[0, -2], [-2, 0]])}, "edges of node -2"),
    "a self-loop": ({"edge_index": torch.tensor([[0, 1, 5], [1, 0, 5]])}, "self-loops, the first at node 5"),
    "a directed edge": ({"edge_index": torch.tensor([[0, 1, 5], [1, 0, 6]])}, "directed edges: .*to_undirected"),
    "an edge twice": ({"edge_index": torch.tensor([[0, 1, 0], [1, 0, 1]])}, "more than once: .*coalesce"),
    "too few classes": ({"y": torch.zeros(33, dtype=torch.long)}, r"one class for each node.*got shape \(33,\)"),
    "classes of floats": ({"y": torch.zeros(34)}, r"`y` of integers, \(N,\), got shape \(34,\) of float32"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_graph_is_refused_by_name(karate, case):
    changes, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        check_graph(change(karate, **changes))


def test_nodes_without_edges_are_fine(karate):
    check_graph(Data(x=torch.randn(40, 3), edge_index=karate.edge_index))


def test_a_graph_that_is_too_large_is_refused_with_what_it_needs():
    """Before anything of that size is made: its features are one number, seen often."""
    large = Data(x=torch.zeros(1, 1).expand(200_000, 1), edge_index=torch.tensor([[0, 1], [1, 0]]))
    with pytest.raises(
        ValueError, match=r"200000 nodes, whose pairs take about 3\.6e\+03 GB .*`memory_limit` \(8 GB\)"
    ):
        check_graph(large)
    check_size(4000, memory_limit=2)
    with pytest.raises(ValueError, match=r"about 1\.\d+ GB of memory, more than `memory_limit` \(0.5 GB\)"):
        check_size(4500, memory_limit=0.5)
