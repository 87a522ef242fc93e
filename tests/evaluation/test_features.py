import os

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import (
    AutoModel,
    BeitConfig,
    ConvNextConfig,
    Dinov2WithRegistersConfig,
    DINOv3ConvNextConfig,
    IJepaConfig,
    ResNetConfig,
    TimmWrapperConfig,
    ViTConfig,
    ViTImageProcessor,
    ViTMAEConfig,
)

from crate_mae_hf import CrateMaeImageProcessor, CrateMaeModel, CrateSplitBrainConfig, CrateSplitBrainModel
from crate_mae_hf.adapters import layer_tokens
from crate_mae_hf.evaluation.encoders import random_encoder
from crate_mae_hf.evaluation.features import (
    available_features,
    default_workers,
    extract_features,
    image_batches,
    preprocess,
    quarter_means,
    select_features,
)

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
VITS = {
    "vit": (ViTConfig(**SIZES, intermediate_size=64), 1),
    "vit_mae": (ViTMAEConfig(**SIZES, intermediate_size=64, mask_ratio=0.75), 1),
    "dinov2": (Dinov2WithRegistersConfig(**SIZES, num_register_tokens=4), 5),
    "ijepa": (IJepaConfig(**SIZES, intermediate_size=64), 0),
}
CONVNETS = {
    "convnext": ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
}


@pytest.fixture
def images():
    return torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_towers_of_a_split_brain_have_features_of_their_own():
    config = CrateSplitBrainConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4
    )
    model = CrateSplitBrainModel(config).eval()
    images = torch.rand(3, 3, 16, 16)
    extracted = extract_features(model, images.split(2))
    assert available_features(extracted) == ("cls", "mean", "cls_mean", "grid", "lightness", "color")
    mean = model(images).last_hidden_state[:, 1:].mean(dim=1).detach()
    for name, half in zip(("lightness", "color"), mean.chunk(2, dim=1), strict=True):
        np.testing.assert_allclose(select_features(extracted, name), half, rtol=1e-5, atol=1e-6)


def test_features_are_what_the_model_gives(config, images):
    config.hidden_dropout_prob = 0.5
    model = CrateMaeModel(config).train()
    model.layernorm.eval()
    extracted = extract_features(model, images.split(3))
    assert set(extract_features(model, images.split(3), with_grid=False)) == {"cls", "mean"}
    assert model.training
    assert not model.layernorm.training  # each module as it was
    tokens = model.eval()(images).last_hidden_state.detach()
    np.testing.assert_allclose(extracted["cls"], tokens[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(extracted["mean"], tokens[:, 1:].mean(1), rtol=1e-5, atol=1e-6)
    quarters = tokens[:, 1:].unflatten(1, (2, 2, 2, 2)).mean((2, 4))  # of 4 x 4 patches
    np.testing.assert_allclose(extracted["grid"], quarters.permute(0, 3, 1, 2).flatten(1), rtol=1e-5, atol=1e-6)
    assert available_features(extracted) == ("cls", "mean", "cls_mean", "grid")
    both = np.hstack([extracted["cls"], extracted["mean"]])
    np.testing.assert_array_equal(select_features(extracted, "cls_mean"), both)


@pytest.mark.parametrize(("image_size", "grid"), [((24, 40), (3, 5)), ((40, 24), (5, 3)), ((30, 47), (3, 5))])
def test_quarters_share_the_middle_of_an_odd_grid(image_size, grid):
    patches = torch.randn(2, 15, 4, generator=torch.Generator().manual_seed(2))
    means = quarter_means(patches, image_size).unflatten(1, (4, 2, 2))
    rows, columns = ((slice(0, (size + 1) // 2), slice(size // 2, size)) for size in grid)
    for top, row in enumerate(rows):
        for left, column in enumerate(columns):
            expected = patches.unflatten(1, grid)[:, row, column].mean((1, 2))
            torch.testing.assert_close(means[:, :, top, left], expected)


@pytest.mark.parametrize("num_patches", [1, 3, 7, 13])
def test_tokens_that_are_no_grid_have_no_quarters(num_patches):
    assert quarter_means(torch.zeros(2, num_patches, 4), (32, 32)) is None


@pytest.mark.parametrize("kind", VITS)
@pytest.mark.parametrize("norm", [None, True, False])
@pytest.mark.parametrize("layer", [0, 2, 3, -1, -2])
def test_layers_and_norms(kind, norm, layer, images):
    config, num_prefix = VITS[kind]
    model = random_encoder(config, seed=0)
    for parameter in model.layernorm.parameters():
        parameter.data.uniform_(0.5, 2)
    inputs = {}
    if kind == "vit_mae":
        model.config.mask_ratio = 0.0
        inputs["noise"] = torch.linspace(0, 1, 16).expand(7, -1)
    states = model(images, output_hidden_states=True, **inputs).hidden_states
    if kind == "vit_mae":
        model.config.mask_ratio = 0.75
    expected = states[layer] if norm is False else model.layernorm(states[layer])
    output = layer_tokens(model, images, layer, norm)
    torch.testing.assert_close(output.tokens, expected)
    assert (output.num_prefix_tokens, output.normalised) == (num_prefix, norm is not False)
    extracted = extract_features(model, images.split(4), layer, norm)
    np.testing.assert_allclose(extracted["mean"], expected[:, num_prefix:].mean(1).detach(), rtol=1e-4, atol=1e-5)
    assert ("cls" in extracted) == (num_prefix > 0)
    if kind == "vit_mae":
        assert model.config.mask_ratio == 0.75


def test_vit_mae_is_deterministic(images):
    model = random_encoder(VITS["vit_mae"][0], seed=0)
    first, second = (extract_features(model, [images]) for _ in range(2))
    for name in ("cls", "mean"):
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize("kind", CONVNETS)
def test_feature_maps(kind):
    torch.manual_seed(0)
    model = AutoModel.from_config(CONVNETS[kind]).eval()
    images = torch.randn(2, 3, 64, 64)
    outputs = model(images, output_hidden_states=True)
    for layer, expected in ((-1, outputs.last_hidden_state), (1, outputs.hidden_states[1])):
        extracted = extract_features(model, [images], layer)
        assert set(available_features(extracted)) == ({"mean", "grid"} if min(expected.shape[2:]) > 1 else {"mean"})
        np.testing.assert_allclose(extracted["mean"], expected.mean((2, 3)).detach(), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="has no final norm over the tokens"):
        layer_tokens(model, images, norm=True)


def test_models_of_timm():
    """Their configuration has no patch size; they say how many tokens come before the patches."""
    arguments = {"img_size": 32, "patch_size": 8, "depth": 2}
    config = TimmWrapperConfig(architecture="vit_tiny_patch16_224", do_pooling=False, model_args=arguments)
    model, images = AutoModel.from_config(config).eval(), torch.randn(2, 3, 32, 32)
    tokens = model(images).last_hidden_state.detach()
    extracted = extract_features(model, [images])
    np.testing.assert_allclose(extracted["cls"], tokens[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(extracted["mean"], tokens[:, 1:].mean(1), rtol=1e-5, atol=1e-6)
    assert available_features(extract_features(model, [images], layer=0)) == ("mean", "grid")  # feature maps
    config = TimmWrapperConfig(architecture="resnet18", do_pooling=False)
    assert available_features(extract_features(AutoModel.from_config(config), [images])) == ("mean",)


def test_the_pooled_token_of_dinov3_convnext():
    config = DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    model, images = AutoModel.from_config(config).eval(), torch.randn(2, 3, 70, 64)
    tokens = model(images).last_hidden_state.detach()
    extracted = extract_features(model, [images])
    np.testing.assert_allclose(extracted["cls"], tokens[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(extracted["mean"], tokens[:, 1:].mean(1), rtol=1e-5, atol=1e-6)
    assert layer_tokens(model, images).normalised


def test_a_norm_of_the_pooled_token_alone_is_no_final_norm(images):
    model = AutoModel.from_config(BeitConfig(**SIZES, intermediate_size=64)).eval()
    assert not layer_tokens(model, images).normalised
    with pytest.raises(ValueError, match="has no final norm"):
        layer_tokens(model, images, norm=True)


@pytest.mark.parametrize("layer", [4, -5])
def test_no_such_layer(layer, config, images):
    with pytest.raises(ValueError, match=rf"`layer` must lie in \[-4, 3\].*got {layer}"):
        extract_features(CrateMaeModel(config), [images], layer)


def test_features_that_are_not_finite(config, images):
    model = CrateMaeModel(config)
    model.layernorm.weight.data.fill_(torch.inf)
    with pytest.raises(ValueError, match=r"not finite in torch\.float32"):
        extract_features(model, [images])


def test_preprocessing_in_batches(config):
    processor = CrateMaeImageProcessor.from_config(config)
    images = [PIL.Image.new("RGB", (30 + number, 40), (number * 20, 0, 0)) for number in range(7)]
    expected = processor(images, return_tensors="pt").pixel_values
    batches = list(image_batches(images, processor, 3, batch_size=3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    torch.testing.assert_close(torch.cat(batches), expected, atol=1e-6, rtol=0)


def test_images_of_any_mode_for_processors_that_take_one():
    colour = PIL.Image.new("RGB", (20, 20), (90, 120, 200))
    images = [colour, colour.convert("L"), colour.convert("RGBA"), colour.convert("P")]
    (three,) = image_batches(images, ViTImageProcessor(size={"height": 16, "width": 16}), 3)
    assert three.shape == (4, 3, 16, 16)
    torch.testing.assert_close(three[0], three[2])
    grey = ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.5], image_std=[0.5])
    (one,) = image_batches(images, grey, 1)
    assert one.shape == (4, 1, 16, 16)
    torch.testing.assert_close(one[0], one[1])


def test_grey_pixels_are_refused_where_colour_is_needed():
    images = [torch.zeros(1, 30, 30, dtype=torch.uint8)]
    assert preprocess(CrateMaeImageProcessor(), 3, images).shape == (1, 3, 224, 224)
    with pytest.raises(ValueError, match="in colour, got an image of shape"):
        preprocess(CrateMaeImageProcessor(needs_color=True), 3, images)


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (2, 2), (64, 8)])
def test_workers_follow_the_cores(monkeypatch, cores, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert default_workers() == workers
