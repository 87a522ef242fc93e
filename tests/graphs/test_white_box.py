import torch
from torch.nn.functional import layer_norm, linear

from crate_mae_hf.analysis import coding_rate, observe_layers, sparsity, subspace_coding_rate
from crate_mae_hf.graphs import CrateGraphConfig, CrateGraphEncoder
from crate_mae_hf.graphs.data import load_graph


@torch.no_grad()
def test_layers_of_a_graph_encoder_are_measured_as_those_of_an_image_encoder():
    """Against the layers' formulas, neighbour by neighbour."""
    graph = load_graph("karate", "unused")
    encoder = CrateGraphEncoder(CrateGraphConfig(num_features=34, hidden_size=12)).double().train()
    x = graph.x.double()
    report = observe_layers(encoder, lambda: encoder(x, graph.edge_index))
    assert encoder.training
    assert report.num_images == 1
    assert report.decoder == {}

    neighbours = [[i, *graph.edge_index[1, graph.edge_index[0] == i].tolist()] for i in range(34)]
    z = encoder.embedding(x)
    for number, layer in enumerate(encoder.layers):
        projection = layer.mssa.subspace_proj.weight
        codes = linear(layer_norm(z, (12,)), projection).unflatten(1, (4, 3))
        outputs = []
        for i, others in enumerate(neighbours):
            weights = torch.einsum("hp,jhp->hj", codes[i], codes[others]).div(3**0.5).softmax(dim=1)
            outputs.append(torch.einsum("hj,jhp->hp", weights, codes[others]).flatten())
        half = z + layer.mssa.o_proj(torch.stack(outputs))
        after = layer.ista(layer_norm(half, (12,)))
        expected = {"coding_rate": coding_rate(after), "sparsity": sparsity(after)}
        for name, tokens in (("before", z), ("after", half)):
            heads = linear(tokens, projection).unflatten(1, (4, 3)).transpose(0, 1)
            expected[f"subspace_rate_{name}"] = subspace_coding_rate(heads)
        for name, value in expected.items():
            torch.testing.assert_close(report.encoder[name][number, 0], value, msg=lambda text, n=name: f"{n}: {text}")
        z = after
    torch.testing.assert_close(encoder(x, graph.edge_index), z)
