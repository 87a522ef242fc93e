"""CRATE-alpha: what it does not share with CRATE; parity is in test_parity.py."""

import pytest
import torch

from crate_mae_hf import CrateAlphaBackbone, CrateAlphaConfig, CrateAlphaForImageClassification, CrateAlphaModel
from crate_mae_hf.crate_layers import CrateAlphaISTA, CrateAlphaLayer


@pytest.fixture
def config() -> CrateAlphaConfig:
    return CrateAlphaConfig(
        hidden_size=36, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8, num_labels=5
    )


def test_configuration():
    config = CrateAlphaConfig.from_size("huge", patch_size=14)
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (1280, 16, 32)
    assert CrateAlphaConfig.from_size("tiny").hidden_size == 192  # CRATE's tiny has 384
    assert (config.ista_lambda, config.pooling, config.layer_norm_eps) == (0.1, "cls", 1e-6)
    for arguments, message in (
        ({"overcomplete_ratio": 0}, "`overcomplete_ratio` must be at least 1, got 0"),
        ({"final_layer_norm_eps": 0.0}, r"`final_layer_norm_eps` must be positive, got 0\.0"),
        ({"num_attention_heads": 5}, r"`num_attention_heads` must divide `hidden_size` \(768\), got 5"),
    ):
        with pytest.raises(ValueError, match=message):
            CrateAlphaConfig(**arguments)


def test_fresh_weights():
    model = CrateAlphaForImageClassification(CrateAlphaConfig(num_hidden_layers=1, num_labels=1000))
    embeddings, layer = model.crate_alpha.embeddings, model.crate_alpha.layers[0]
    for name, weight, bound in [
        ("patch embedding: kaiming", embeddings.patch_embeddings.projection.weight, (6 / (16 * 16 * 3)) ** 0.5),
        ("dictionary: kaiming over the width of a token", layer.ista.dictionary, (6 / 768) ** 0.5),
        ("output dictionary: likewise", layer.ista.output_dictionary, (6 / 768) ** 0.5),
    ]:
        assert 0.99 * bound < weight.abs().max() <= bound, name
    for name, weight, std in [
        ("subspaces", layer.mssa.subspace_proj.weight, 0.02),
        ("output of MSSA", layer.mssa.o_proj.weight, 0.02),
        ("head", model.classifier[1].weight, 0.02),
        ("positions", embeddings.position_embeddings, 0.02),
        ("cls token", embeddings.cls_token, 1e-6),
    ]:
        assert weight.std().item() == pytest.approx(std, rel=0.1), name
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
    # The gradient steps are just inside what converges.
    assert 1.6 < 0.1 * torch.linalg.matrix_norm(layer.ista.dictionary, 2) ** 2 < 2


def test_codes_are_proximal_gradient_steps():
    ista = CrateAlphaISTA(hidden_size=12, num_atoms=48, step_size=0.2, sparsity_weight=0.3, decoupled=True).double()
    for dictionary in ista.parameters():
        torch.nn.init.normal_(dictionary, std=0.2)
    tokens = torch.randn(2, 5, 12, dtype=torch.float64)
    code = torch.zeros(2, 5, 48, dtype=torch.float64)
    for actual in ista.codes(tokens):
        code.requires_grad_()
        distance = (tokens - code @ ista.dictionary.T).square().sum() / 2
        (gradient,) = torch.autograd.grad(distance, code)
        code = (code - 0.2 * gradient - 0.2 * 0.3).clamp(min=0).detach()  # the prox of 0.2 * 0.3 |A|_1 over A >= 0
        torch.testing.assert_close(actual, code)
    torch.testing.assert_close(ista(tokens), code @ ista.output_dictionary.T)


@pytest.mark.parametrize("residual", [True, False])
def test_stochastic_depth_leaves_out_what_has_a_skip_connection(residual, config):
    config.ista_residual = residual
    model = CrateAlphaModel(config)
    layer = CrateAlphaLayer(config, drop_path_rate=0.9)
    layer.load_state_dict(model.layers[0].state_dict())
    tokens = torch.randn(200, 5, 36)
    outputs = layer.train()(tokens)
    dropped_both = (outputs == tokens).flatten(1).all(dim=1)
    assert dropped_both.float().mean().item() == pytest.approx(0.81 if residual else 0.0, abs=0.1)
    if not residual:
        sparsified = layer.ista(layer.layernorm_after(tokens))
        without_mssa = torch.isclose(outputs, sparsified, atol=1e-5).flatten(1).all(dim=1)
        assert without_mssa.float().mean().item() == pytest.approx(0.9, abs=0.1)


def test_tokens_are_dense_and_codes_sparse(config, pixel_values):
    model = CrateAlphaModel(config).eval()
    codes = []
    for layer in model.layers:
        layer.layernorm_after.register_forward_hook(lambda _, args, n, ista=layer.ista: codes.append(ista.codes(n)[1]))
    outputs = model(pixel_values, output_hidden_states=True)
    assert torch.equal(outputs.last_hidden_state, outputs.hidden_states[-1])
    assert torch.equal(outputs.pooler_output, outputs.last_hidden_state[:, 0])
    assert (outputs.last_hidden_state < 0).any()
    assert (outputs.last_hidden_state != 0).all()
    for code in codes:
        assert code.shape == (2, 17, 144)
        assert (code >= 0).all()
        assert (code == 0).float().mean() > 0.3


@pytest.mark.parametrize("model_class", [CrateAlphaModel, CrateAlphaForImageClassification, CrateAlphaBackbone])
def test_another_image_size_for_good(model_class, config, tmp_path):
    model = model_class(config).eval()
    images = torch.randn(2, 3, 48, 24)
    with torch.no_grad():
        expected = model(images, interpolate_pos_encoding=True).to_tuple()[0]
        model.set_image_size((48, 24))
        model.save_pretrained(tmp_path)
        loaded = model_class.from_pretrained(tmp_path)
        actual = loaded(images).to_tuple()[0]
    assert tuple(loaded.config.image_size) == (48, 24)
    torch.testing.assert_close(actual, expected)
