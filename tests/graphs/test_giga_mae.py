import pytest
import torch
from official_giga_mae import official_sets, read_graph, read_masks, read_reference, rename, to_giga_mae
from torch.nn import functional
from torch_geometric.data import Data

from crate_mae_hf.graphs import (
    CrateGraphConfig,
    CrateGraphEncoder,
    GigaMae,
    GraphAttentionConfig,
    GraphAttentionEncoder,
    GraphMasks,
    draw_masks,
    semi_loss,
)

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
SETS, TARGETS = ("e", "f", "b"), ("1", "2", "12")


@pytest.fixture(scope="module")
def reference() -> tuple[dict, dict[str, torch.Tensor]]:
    return read_reference()


@pytest.fixture
def tensors(reference) -> dict[str, torch.Tensor]:
    return reference[1]


@pytest.fixture
def official(reference) -> GigaMae:
    return to_giga_mae(*reference)


def golden_sets(tensors: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    return torch.stack([tensors[f"masks.{kind}.{name}"].bool() for name in SETS])


def golden_terms(tensors: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    terms = [tensors[f"student.expected.{kind}.loss_{name}_{target}"] for name in SETS for target in TARGETS]
    return torch.cat(terms).view(3, 3)


# The loss of a node


@pytest.mark.parametrize("temperature", ["0.2", "0.7"])
def test_the_loss_of_each_node_and_its_gradients_are_the_official_ones(tensors, temperature):
    t, r = (tensors[f"semi.{name}"].clone().requires_grad_() for name in "tr")
    losses = semi_loss(t, r, float(temperature))
    losses.mean().backward()
    expected = f"semi.tau_{temperature}"
    torch.testing.assert_close(losses, tensors[f"{expected}.per_node"], **CLOSE)
    torch.testing.assert_close(t.grad, tensors[f"{expected}.grad_t"], **CLOSE)
    torch.testing.assert_close(r.grad, tensors[f"{expected}.grad_r"], **CLOSE)


def test_one_node_costs_nothing_and_no_nodes_give_no_losses():
    one = torch.randn(1, 4, requires_grad=True)
    loss = semi_loss(torch.randn(1, 4), one, 0.1)
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert one.grad.abs().max() == 0
    assert semi_loss(torch.zeros(0, 4), torch.zeros(0, 4), 0.1).shape == (0,)


def test_an_embedding_of_zeros_is_as_far_from_all():
    losses = semi_loss(torch.zeros(3, 4), torch.zeros(3, 4), 0.5)
    torch.testing.assert_close(losses, torch.full((3,), 5.0).log())


@pytest.mark.parametrize(
    ("shape", "temperature", "message"),
    [((3, 5), 1.0, r"shape \(N, d\), got \(3, 4\) and \(3, 5\)"), ((3, 4), 0.0, "`temperature` must be positive")],
)
def test_what_the_loss_refuses(shape, temperature, message):
    with pytest.raises(ValueError, match=message):
        semi_loss(torch.randn(3, 4), torch.randn(shape), temperature)


# Masks and sets


def test_what_is_hidden_and_from_whom_are_the_official_ones_but_for_node_0(tensors):
    data, masks = read_graph(tensors), read_masks(tensors)
    x, edge_index = masks.hide(data)
    assert torch.equal(x, tensors["masks.masked_x"])
    assert torch.equal(edge_index, tensors["masks.masked_edge_index"].long())
    sets = masks.sets(data)
    assert torch.equal(sets, golden_sets(tensors, "fixed"))
    assert torch.equal(official_sets(sets), golden_sets(tensors, "official"))
    assert not torch.equal(official_sets(sets), sets)


def test_masks_are_drawn_with_their_probabilities_and_sets_are_disjoint():
    data = Data(x=torch.randn(2000, 3), edge_index=torch.randint(2000, (2, 8000)))
    masks = draw_masks(data, 0.3, 0.1, torch.Generator().manual_seed(0))
    assert masks.nodes.double().mean() == pytest.approx(0.3, abs=0.03)
    assert masks.edges.double().mean() == pytest.approx(0.1, abs=0.01)
    sets = masks.sets(data)
    assert sets.sum(dim=0).max() == 1
    assert (sets[1] | sets[2]).equal(masks.nodes)
    again = draw_masks(data, 0.3, 0.1, torch.Generator().manual_seed(0))
    assert again.nodes.equal(masks.nodes)
    assert again.edges.equal(masks.edges)
    with pytest.raises(ValueError, match=r"`edge_ratio` must lie in \[0, 1\], got 1.5"):
        draw_masks(data, 0.3, 1.5, torch.Generator())


# The encoder and the projections


def test_the_attention_encoder_is_the_official_one(official, tensors):
    official.eval()
    data = read_graph(tensors)
    expected = {name.removeprefix("gat.expected.eval."): value for name, value in tensors.items()}
    seen = {}
    for name, module in official.encoder.named_children():
        module.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output))
    z = official.encoder(data.x, data.edge_index)
    torch.testing.assert_close(seen["conv1"], expected["conv1"], **CLOSE)
    torch.testing.assert_close(functional.elu(seen["norm"]), expected["hidden"], **CLOSE)
    torch.testing.assert_close(seen["conv2"], expected["conv2"], **CLOSE)
    torch.testing.assert_close(z, expected["z_full_graph"], **CLOSE)
    for output, name in zip(official.project(z), ("r1", "r2", "r12"), strict=True):
        torch.testing.assert_close(output, expected[name], **CLOSE)
    masked = official.encoder(*read_masks(tensors).hide(data))
    torch.testing.assert_close(masked, expected["z_masked_graph"], **CLOSE)


def test_attention_is_the_official_one(official, tensors):
    data = read_graph(tensors)
    _, (edges, attention) = official.encoder.conv1(data.x, data.edge_index, return_attention_weights=True)
    assert edges.equal(tensors["gat.expected.edge_index_with_self_loops"].long())
    torch.testing.assert_close(attention, tensors["gat.expected.eval.attention1"], **CLOSE)


def test_dropout_is_in_the_official_places(reference, tensors, monkeypatch):
    objective = to_giga_mae(*reference, dropout=0.6).train()
    keep = iter([tensors[f"dropout.keep_{name}"].double() for name in ("input", "attention1", "hidden", "attention2")])

    def dropout(x, p=0.5, training=True, inplace=False):
        assert training
        assert p == 0.6
        return x * next(keep) / 0.4

    monkeypatch.setattr(functional, "dropout", dropout)
    data, masks = read_graph(tensors), read_masks(tensors)
    z = objective.encoder(*masks.hide(data))
    torch.testing.assert_close(z, tensors["dropout.expected.z"], **CLOSE)
    assert next(keep, None) is None


# The loss of a graph


@pytest.mark.parametrize("kind", ["fixed", "official"])
def test_the_losses_per_set_their_sum_and_its_gradient_are_the_official_ones(official, tensors, kind):
    z = tensors["student.z"].clone().requires_grad_()
    official.train()
    for output, name in zip(official.project(z), ("r1", "r2", "r12"), strict=True):
        torch.testing.assert_close(output, tensors[f"student.expected.{name}"], **CLOSE)
    targets = tensors["targets.E1"], tensors["targets.E2"]
    outputs = official.forward_loss(z, targets, golden_sets(tensors, kind))
    outputs.loss.backward()
    torch.testing.assert_close(outputs.terms, golden_terms(tensors, kind), **CLOSE)
    weighted = (official.weights * outputs.terms).sum(dim=1)
    expected = torch.cat([tensors[f"student.expected.{kind}.loss_{name}"] for name in SETS])
    torch.testing.assert_close(weighted, expected, **CLOSE)
    torch.testing.assert_close(outputs.loss, tensors[f"student.expected.{kind}.total"].squeeze(), **CLOSE)
    torch.testing.assert_close(z.grad, tensors[f"student.expected.{kind}.grad_z"], **CLOSE)


def test_each_target_has_the_weight_that_it_is_given(official, tensors):
    """The official code weighs E_2 on nodes that lost both by the weight of E_1."""
    official.weights.copy_(torch.tensor([[0, 0, 0], [0, 0, 0], [2, 5, -1]]))
    targets = tensors["targets.E1"], tensors["targets.E2"]
    loss = official.forward_loss(tensors["student.z"], targets, golden_sets(tensors, "fixed")).loss
    expected = "student.expected.weights_2_5_-1.loss_b"
    torch.testing.assert_close(loss, tensors[f"{expected}_intended"].squeeze(), **CLOSE)
    assert (loss - tensors[f"{expected}_official_code"]).abs() > 0.1


def test_a_step_of_adam_is_the_official_one(official, reference, tensors):
    """With the official sets. Gradients and weights, and the statistics of batch norms."""
    data, masks = read_graph(tensors), read_masks(tensors)
    optimizer = torch.optim.Adam(official.parameters(), lr=reference[0]["lr"])
    z = official.train().encoder(*masks.hide(data))
    loss = official.forward_loss(
        z, (tensors["targets.E1"], tensors["targets.E2"]), official_sets(masks.sets(data))
    ).loss
    loss.backward()
    torch.testing.assert_close(loss, tensors["train.expected.total"].squeeze(), **CLOSE)
    gradients = rename(tensors, "train.expected.grad.")
    parameters = dict(official.named_parameters())
    assert gradients.keys() == parameters.keys()
    for name, parameter in parameters.items():
        torch.testing.assert_close(
            parameter.grad, gradients[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}"
        )
    optimizer.step()
    after = rename(tensors, "train.expected.after_adam_step.")
    state = official.state_dict()
    assert after.keys() == state.keys()
    # Adam divides each gradient by its own size: biases before a batch norm, whose gradients are rounding alone, may
    # step anywhere.
    for name, value in state.items():
        if name in parameters and gradients[name].abs().max() < 1e-12:
            continue
        torch.testing.assert_close(
            value, after[name], rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_sets_without_nodes_count_nothing(official, tensors):
    data = read_graph(tensors)
    targets = tensors["targets.E1"], tensors["targets.E2"]
    nothing = GraphMasks(torch.zeros(24, dtype=torch.bool), torch.zeros(94, dtype=torch.bool))
    outputs = official(data, targets, nothing)
    outputs.loss.backward()
    assert outputs.loss == 0
    assert outputs.terms.tolist() == [[0.0] * 3] * 3
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in official.parameters())
    features = GraphMasks(read_masks(tensors).nodes, nothing.edges)
    terms = official(data, targets, features).terms
    assert terms[0].tolist() == terms[2].tolist() == [0.0] * 3
    assert terms[1].min() > 0


@pytest.mark.parametrize("weights", [((1, 1, 1),), ((1, 1), (1, 1), (1, 1))])
def test_weights_are_three_by_three(weights):
    with pytest.raises(ValueError, match="`weights` must be three for each of e, f and b"):
        GigaMae(GraphAttentionEncoder(GraphAttentionConfig(num_features=3)), 2, 2, weights=weights)


@pytest.mark.parametrize(
    "encoder",
    [
        GraphAttentionEncoder(GraphAttentionConfig(num_features=10, head_size=4, hidden_size=8)),
        CrateGraphEncoder(CrateGraphConfig(num_features=10, hidden_size=8, num_attention_heads=2)),
    ],
    ids=["attention", "crate"],
)
def test_every_weight_gets_a_gradient(encoder, tensors):
    data, masks = read_graph(tensors), read_masks(tensors)
    data.x = data.x.float()
    objective = GigaMae(encoder, 5, 4)
    objective(data, (tensors["targets.E1"].float(), tensors["targets.E2"].float()), masks).loss.backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
