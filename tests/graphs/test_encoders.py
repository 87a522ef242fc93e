import json

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.datasets import KarateClub

from crate_mae_hf.graphs import CrateGraphConfig, CrateGraphEncoder, GraphAttentionConfig, GraphAttentionEncoder

KINDS = {
    "attention": (GraphAttentionConfig, GraphAttentionEncoder, {"head_size": 4, "hidden_size": 12}),
    "crate": (CrateGraphConfig, CrateGraphEncoder, {"hidden_size": 12}),
}
both = pytest.mark.parametrize("kind", KINDS)


def build(kind: str, **settings) -> GraphAttentionEncoder | CrateGraphEncoder:
    torch.manual_seed(0)
    config_class, encoder_class, sizes = KINDS[kind]
    return encoder_class(config_class(num_features=34, **sizes, **settings)).eval()


@pytest.fixture
def karate() -> Data:
    return KarateClub()[0]


@both
def test_an_encoder_comes_back_as_it_was_saved(kind, karate, tmp_path):
    encoder = build(kind)
    encoder.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again, report = type(encoder).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(again(karate.x, karate.edge_index), encoder(karate.x, karate.edge_index))
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["num_features"], config["hidden_size"]) == (encoder.config.model_type, 34, 12)


@both
def test_nodes_have_no_order(kind, karate):
    encoder = build(kind)
    order = torch.randperm(34)
    place = order.argsort()
    z = encoder(karate.x, karate.edge_index)
    moved = encoder(karate.x[order], place[karate.edge_index])
    torch.testing.assert_close(moved, z[order], rtol=1e-4, atol=1e-5)


@both
def test_a_node_sees_two_edges_far(kind, karate):
    """Along a path; both encoders have two layers."""
    path = torch.stack([torch.arange(5), torch.arange(1, 6)])
    edge_index = torch.cat([path, path.flip(0)], dim=1)
    encoder, x = build(kind), karate.x[:6] + 0.0
    before = encoder(x, edge_index)
    x[5] = torch.randn(34)
    changed = (encoder(x, edge_index) - before).abs().amax(dim=1) > 1e-6
    assert changed.tolist() == [False] * 3 + [True] * 3


@both
def test_a_node_without_edges_sees_itself(kind):
    encoder = build(kind)
    x, edge_index = torch.randn(3, 34), torch.tensor([[0, 1], [1, 0]])
    alone = encoder(x, edge_index)[2]
    assert alone.isfinite().all()
    torch.testing.assert_close(alone, encoder(x[2:], torch.zeros(2, 0, dtype=torch.long))[0])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_among_the_neighbours_is_that_of_a_graph_of_them_alone(karate, attention):
    """The mask, against a star whose middle attends to all nodes."""
    encoder = build("crate", num_hidden_layers=1)
    encoder.set_attn_implementation(attention)
    neighbours = torch.cat([torch.tensor([0]), karate.edge_index[1, karate.edge_index[0] == 0]])
    middle = encoder(karate.x, karate.edge_index)[0]
    tokens = encoder.embedding(karate.x[neighbours]).unsqueeze(0)
    torch.testing.assert_close(middle, encoder.layers[0](tokens)[0, 0])


def test_features_of_the_white_box_are_sparse_and_not_negative(karate):
    z = build("crate")(karate.x, karate.edge_index)
    assert z.min() == 0
    assert 0.2 < (z == 0).double().mean() < 0.8


@pytest.mark.parametrize(
    ("config_class", "settings", "message"),
    [
        (GraphAttentionConfig, {"num_features": 0}, "`num_features` must be at least 1, got 0"),
        (GraphAttentionConfig, {"dropout": 1.0}, r"`dropout` must lie in \[0, 1\), got 1.0"),
        (CrateGraphConfig, {"hidden_size": 10}, r"`num_attention_heads` must divide `hidden_size` \(10\), got 4"),
        (CrateGraphConfig, {"ista_step_size": 0.0}, "`ista_step_size` must be positive, got 0.0"),
        (CrateGraphConfig, {"ista_lambda": -1}, "`ista_lambda` must not be negative, got -1"),
        (CrateGraphConfig, {"num_hidden_layers": 0}, "`num_hidden_layers` must be at least 1, got 0"),
    ],
)
def test_what_a_configuration_refuses(config_class, settings, message):
    with pytest.raises(ValueError, match=message):
        config_class(**settings)


@both
def test_a_type_is_held_to(kind):
    with pytest.raises(Exception, match="hidden_size"):
        KINDS[kind][0](hidden_size="wide")


@torch.no_grad()
def test_a_fresh_white_box_listens_to_its_neighbours():
    """A token's score for itself is 1 on average, and what MSSA gives has the size that it is asked for."""
    for heads in (2, 16):
        config = CrateGraphConfig(num_features=64, hidden_size=64, num_attention_heads=heads, mssa_init_scale=2.0)
        mssa = CrateGraphEncoder(config).layers[0].mssa
        tokens = torch.randn(1, 500, 64)
        codes = mssa.subspace_proj(tokens).unflatten(2, (heads, -1))
        assert (codes.square().sum(dim=3) * mssa.scaling).mean() == pytest.approx(1.0, abs=0.1)
        alone, _ = mssa(tokens, torch.eye(500, dtype=torch.bool)[None, None])
        assert alone.square().mean() == pytest.approx(4.0, rel=0.15)
