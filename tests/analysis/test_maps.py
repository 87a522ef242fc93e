"""Attention and PCA maps."""

import pytest
import torch
from sklearn.decomposition import PCA

from crate_mae_hf import CrateMaeForPreTraining
from crate_mae_hf.analysis import (
    attention_maps,
    layer_report,
    patch_codes,
    pca_maps,
    random_masks,
    reconstruct,
    reconstruct_whole,
    upsample,
)
from crate_mae_hf.analysis.pca import principal_components


@pytest.mark.parametrize("name", ["model", "crate", "alpha", "vit_mae"])
def test_attention_is_that_of_eager(name, request, pixel_values):
    """The model stays in sdpa; the model's own probabilities in eager attention are the reference."""
    model = request.getfixturevalue(name)
    assert model.config._attn_implementation == "sdpa"
    num_layers = model.config.num_hidden_layers
    maps = attention_maps(model, pixel_values, layers=range(num_layers), batch_size=1)
    assert maps.shape == (2, num_layers, 4, 4, 4)
    model.eval().set_attn_implementation("eager")
    model.config.mask_ratio = 0.0
    order = {"noise": torch.linspace(0, 1, 16).expand(2, 16)} if name == "vit_mae" else {}
    attentions = model.base_model(pixel_values, output_attentions=True, **order).attentions
    expected = torch.stack(attentions, dim=1)[:, :, :, 0, 1:].unflatten(3, (4, 4)).detach()
    torch.testing.assert_close(maps, expected)
    last = attention_maps(model, pixel_values)
    torch.testing.assert_close(last, expected[:, -1:])
    assert (maps.sum(dim=(3, 4)) < 1).all()


def test_attention_of_another_size(model):
    assert attention_maps(model, torch.randn(1, 3, 24, 40)).shape == (1, 1, 4, 3, 5)


@pytest.mark.parametrize("function", [attention_maps, patch_codes])
@pytest.mark.parametrize("name", ["model", "vit_mae"])
def test_model_stays_as_it_was(function, name, request, pixel_values, state, monkeypatch):
    model = request.getfixturevalue(name)
    before = state(model)
    function(model, pixel_values)
    before.assert_unchanged()

    def fail(*args, **kwargs):
        raise RuntimeError("broken")

    with monkeypatch.context() as context:
        context.setattr(type(model.base_model.layernorm), "forward", fail)
        with pytest.raises(RuntimeError, match="broken"):
            function(model, pixel_values)
    before.assert_unchanged()


def test_errors(model, pixel_values):
    with pytest.raises(ValueError, match="`layer` must lie in"):
        attention_maps(model, pixel_values, layers=[3])
    with pytest.raises(ValueError, match="`pixel_values` must have shape"):
        patch_codes(model, pixel_values[0])
    with pytest.raises(ValueError, match="`codes` must have shape"):
        pca_maps(torch.ones(3, 4))


def test_upsample():
    maps = torch.tensor([[[0.0, 1.0]]])
    assert upsample(maps, (2, 4)).tolist() == [[[0, 0.25, 0.75, 1]] * 2]
    assert upsample(torch.rand(2, 3, 4, 5, 6), (10, 18)).shape == (2, 3, 4, 10, 18)


def test_patch_codes_are_the_projected_tokens(model, pixel_values):
    codes = patch_codes(model, pixel_values, layer=1, batch_size=1)
    model.eval()
    tokens = model.crate_mae(pixel_values, output_hidden_states=True).hidden_states[1]
    layer = model.crate_mae.layers[1]
    expected = layer.layernorm_before(tokens)[:, 1:] @ layer.mssa.subspace_proj.weight.T
    torch.testing.assert_close(codes, expected.detach().unflatten(1, (4, 4)))


def test_vit_mae_codes_are_its_keys_in_the_order_of_the_image(vit_mae, pixel_values):
    codes = patch_codes(vit_mae, pixel_values, layer=0)
    vit_mae.config.mask_ratio = 0.0
    embeddings = vit_mae.vit.embeddings(pixel_values, noise=torch.linspace(0, 1, 16).expand(2, 16))[0]
    layer = vit_mae.vit.layers[0]
    expected = layer.attention.k_proj(layer.layernorm_before(embeddings))[:, 1:]
    torch.testing.assert_close(codes, expected.detach().unflatten(1, (4, 4)))


def test_principal_components_against_scikit_learn():
    points = torch.randn(5000, 12) @ torch.randn(12, 12)
    components, explained = principal_components(points, 3)
    reference = PCA(3, svd_solver="full").fit(points.double().numpy())
    expected = torch.from_numpy(reference.transform(points.double().numpy()))
    signs = (components * expected).sum(dim=0).sign()
    torch.testing.assert_close(components * signs, expected)
    assert explained == pytest.approx(reference.explained_variance_ratio_.sum())


def test_principal_components_that_are_not_there():
    components, explained = principal_components(torch.ones(4, 2), 3)
    assert components.tolist() == [[0] * 3] * 4
    assert explained == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_foreground_is_what_does_not_touch_the_border(sign):
    """An object with a hole in each image, told from the background by one direction of the codes, of either sign."""
    truth = torch.zeros(2, 8, 9, dtype=torch.bool)
    truth[0, 2:6, 2:7] = True
    truth[1, 1:5, 3:8] = True
    holed = truth.clone()
    holed[0, 3, 4] = False
    direction = torch.randn(6)
    codes = sign * torch.where(holed, 1.0, -1.0).unsqueeze(3) * direction + 0.05 * torch.randn(2, 8, 9, 6)
    maps = pca_maps(codes)
    assert torch.equal(maps.foreground, truth)
    assert maps.first_component.min() == 0
    assert maps.first_component.max() == 1
    assert maps.first_component[holed].min() > maps.first_component[~holed].max()
    assert maps.explained > 0.9
    assert (maps.rgb.permute(0, 2, 3, 1)[~truth] == 0).all()
    colours = maps.rgb.permute(0, 2, 3, 1)[truth]
    assert colours.amin(dim=0).tolist() == [0, 0, 0]
    assert colours.amax(dim=0).tolist() == [1, 1, 1]


def test_equal_codes_have_no_foreground():
    maps = pca_maps(torch.ones(2, 3, 3, 4))
    assert not maps.foreground.any()
    assert not maps.rgb.any()


def test_class_without_decoder_serves_the_maps(config, pixel_values):
    model = CrateMaeForPreTraining(config).crate_mae
    assert patch_codes(model, pixel_values).shape == (2, 4, 4, 32)


@pytest.mark.parametrize("function", [attention_maps, patch_codes, layer_report, reconstruct, reconstruct_whole])
def test_no_more_images_in_memory_than_asked_for(function, model):
    """Activations are of a chunk; what 64 images of 512 x 512 take is in docs/white_box.md."""
    sizes = []
    handle = model.crate_mae.embeddings.register_forward_hook(lambda *call: sizes.append(len(call[2])))
    masks = [random_masks(5, 16, 0.5)] if function is reconstruct else []
    function(model, torch.randn(5, 3, 32, 32), *masks, batch_size=2)
    handle.remove()
    assert sizes == [2, 2, 1] * (4 if function is reconstruct_whole else 1)
