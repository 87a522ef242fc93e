import pytest
import torch

from crate_mae_hf.graphs import (
    CrateGraphConfig,
    CrateGraphEncoder,
    Data,
    GigaMae,
    GraphAttentionConfig,
    GraphAttentionEncoder,
    GraphMasks,
    attribute_target,
    topology_target,
)
from crate_mae_hf.graphs.data import block_model
from crate_mae_hf.graphs.training import MaskedFeatures, embed, fit


@pytest.fixture
def data() -> Data:
    return block_model(num_blocks=3, block_size=12, within=0.4, between=0.05, num_features=6)


def build(kind: str = "attention") -> GraphAttentionEncoder | CrateGraphEncoder:
    torch.manual_seed(0)
    if kind == "crate":
        return CrateGraphEncoder(CrateGraphConfig(num_features=6, hidden_size=16))
    return GraphAttentionEncoder(GraphAttentionConfig(num_features=6, head_size=4, hidden_size=16, dropout=0.1))


def build_giga_mae(kind: str = "attention") -> GigaMae:
    return GigaMae(build(kind), 4, 3, temperature=0.2)


def make_targets(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    return topology_target(data, 4), attribute_target(data, 3)


@pytest.mark.parametrize("kind", ["attention", "crate"])
def test_the_loss_falls_and_a_run_is_a_function_of_its_seeds(data, kind):
    first, again = build_giga_mae(kind), build_giga_mae(kind)
    curves = []
    for objective in (first, again):
        torch.manual_seed(1)
        curves.append(fit(objective, data, make_targets(data), epochs=60, learning_rate=1e-2, seed=5))
    assert curves[0] == curves[1]
    assert sum(curves[0][-10:]) < 0.9 * sum(curves[0][:10])
    assert embed(first.encoder, data).equal(embed(again.encoder, data))
    torch.manual_seed(1)
    assert fit(build_giga_mae(kind), data, make_targets(data), epochs=2, learning_rate=1e-2, seed=6) != curves[0][:2]


def test_the_learning_rate_falls_in_steps(data):
    """With no learning rate left nothing changes."""
    objective = build_giga_mae()
    fit(objective, data, make_targets(data), epochs=4, learning_rate=1e-2, learning_rate_decay=1e-9, decay_epochs=4)
    stopped = build_giga_mae()
    fit(stopped, data, make_targets(data), epochs=4, learning_rate=1e-2, learning_rate_decay=1e-9, decay_epochs=1)
    once = build_giga_mae()
    fit(once, data, make_targets(data), epochs=1, learning_rate=1e-2)
    weights = [model.encoder.conv2.lin.weight for model in (objective, stopped, once)]
    torch.testing.assert_close(weights[1], weights[2], rtol=0, atol=1e-6)
    assert (weights[0] - weights[2]).abs().max() > 1e-3


def test_a_loss_that_is_not_finite_ends_the_run(data):
    with pytest.raises(ValueError, match=r"The loss is nan in epoch \d+: lower `learning_rate` \(1e\+30\)"):
        fit(build_giga_mae(), data, make_targets(data), epochs=20, learning_rate=1e30)


def test_the_baseline_predicts_the_features_of_masked_nodes_alone(data):
    objective = MaskedFeatures(build().eval())
    objective.eval()
    masks = GraphMasks(torch.arange(36) < 5, torch.zeros(data.num_edges, dtype=torch.bool))
    outputs = objective.projector(objective.encoder(data.x.masked_fill(masks.nodes[:, None], 0), data.edge_index))
    expected = torch.nn.functional.mse_loss(outputs[:5], data.x[:5])
    torch.testing.assert_close(objective(data, (), masks).loss, expected)
    nothing = GraphMasks(torch.zeros(36, dtype=torch.bool), masks.edges)
    assert objective(data, (), nothing).loss == 0


def test_embedding_hides_and_drops_nothing_and_leaves_the_encoder_as_it_was(data):
    encoder = build().train()
    first = embed(encoder, data)
    assert first.equal(embed(encoder, data))
    assert encoder.training
    assert not first.requires_grad
