"""The split-brain autoencoder: golden values of Lab, bins and errors; and that nothing passes between its towers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from crate_mae_hf import (
    CrateMaeConfig,
    CrateMaeModel,
    CrateSplitBrainBackbone,
    CrateSplitBrainConfig,
    CrateSplitBrainForImageClassification,
    CrateSplitBrainForPreTraining,
    CrateSplitBrainModel,
)
from crate_mae_hf.modeling_crate_split_brain import (
    AB_CENTRES,
    L_CENTRES,
    CrateSideBySide,
    color_bins,
    lightness_bins,
    rgb_to_lab,
)

PRECISIONS = pytest.mark.parametrize(
    ("dtype", "atol", "rtol"), [(torch.float32, 1e-4, 1e-5), (torch.float64, 1e-10, 1e-10)], ids=["float32", "float64"]
)


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(Path(__file__).parent / "reference" / "split_brain_micro.safetensors")


@pytest.fixture
def config() -> CrateSplitBrainConfig:
    return CrateSplitBrainConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=16, patch_size=4, num_labels=5
    )


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def colours(golden: dict[str, torch.Tensor], kind: str, name: str) -> torch.Tensor:
    """Colours `(n, 3)` as an image of one row, `(1, 3, 1, n)`."""
    return golden[f"lab.{kind}.{name}"].T[None, :, None]


# --- golden values


@PRECISIONS
@pytest.mark.parametrize("kind", ["random", "special"])
def test_lab_and_bins_of_colours(golden, kind, dtype, atol, rtol):
    lab = rgb_to_lab(colours(golden, kind, "rgb").to(dtype))
    assert lab.dtype == dtype
    torch.testing.assert_close(lab, colours(golden, kind, "lab").to(dtype), atol=atol, rtol=0)
    l_bins, ab_bins = lightness_bins(lab[0, 0, 0]), color_bins(lab[0, 1:, 0].T)
    sure = golden[f"lab.{kind}.l_margin"] > 1e-3  # farther from another bin than float32 errs
    assert sure.sum() >= len(sure) - 2  # but for exact black and white
    assert torch.equal(l_bins[sure], golden[f"lab.{kind}.l_bin"].long()[sure])
    assert golden[f"lab.{kind}.ab_margin"].min() > 1e-3
    assert torch.equal(ab_bins, golden[f"lab.{kind}.ab_bin"].long())


def test_black_and_white():
    lab = rgb_to_lab(torch.tensor([0.0, 1.0]).expand(3, 1, 2))
    assert lightness_bins(lab[0]).tolist() == [[0, 49]]
    torch.testing.assert_close(lab[0], torch.tensor([[0.0, 100.0]]), atol=1e-4, rtol=0)


@PRECISIONS
def test_lab_of_an_image_and_the_means_of_its_patches(golden, config, dtype, atol, rtol):
    images = golden["image.rgb"].to(dtype)
    torch.testing.assert_close(rgb_to_lab(images), golden["image.lab"].to(dtype), atol=atol, rtol=0)
    targets = CrateSplitBrainForPreTraining(config).lab_targets(images)
    torch.testing.assert_close(targets, golden["patch_mean.lab"].to(dtype), atol=atol, rtol=0)
    for name, lab in (("image", rgb_to_lab(images)), ("patch_mean", targets)):
        assert torch.equal(lightness_bins(lab[:, 0]), golden[f"{name}.l_bin"].long()), name
        assert torch.equal(color_bins(lab[:, 1:].movedim(1, -1)), golden[f"{name}.ab_bin"].long()), name


def test_the_centres_come_from_the_rule(golden):
    levels = torch.linspace(0, 1, 65, dtype=torch.float64)  # with 129 or all 256 levels there are no others
    rgb = torch.cartesian_prod(levels, levels, levels).T[None, :, None]
    ab = rgb_to_lab(rgb)[0, 1:, 0].T
    nearest = ((ab / 10).round() * 10).int()  # multiple of 10
    derived = sorted({(a, b) for a, b in nearest.tolist()})
    assert len(derived) == 261
    assert tuple(derived) == AB_CENTRES
    assert golden["gamut.ab_centres"].tolist() == [list(centre) for centre in AB_CENTRES]
    assert torch.equal(color_bins(torch.tensor(AB_CENTRES).double()), torch.arange(261))
    assert torch.equal(lightness_bins(torch.tensor(L_CENTRES).double()).flatten(), torch.arange(50))


@PRECISIONS
def test_cross_entropies_and_their_gradients(golden, config, dtype, atol, rtol):
    model = CrateSplitBrainForPreTraining(config)
    logits = [golden[f"ce.logits_{name}"].to(dtype, copy=True).requires_grad_() for name in ("ab", "l")]
    targets = model.lab_targets(golden["image.rgb"].to(dtype))
    errors = model.errors(targets, *(values.unflatten(0, (2, 16)) for values in logits))
    for name, values, error in zip(("ab", "l"), logits, errors, strict=True):
        expected = golden[f"ce.expected.per_position_{name}"].to(dtype)
        torch.testing.assert_close(error.flatten(), expected, atol=atol, rtol=rtol)
        torch.testing.assert_close(error.mean()[None], golden[f"ce.expected.mean_{name}"].to(dtype), atol=atol, rtol=0)
        torch.testing.assert_close(error.sum()[None], golden[f"ce.expected.sum_{name}"].to(dtype), atol=atol, rtol=rtol)
        error.mean().backward()
        torch.testing.assert_close(values.grad.float(), golden[f"ce.expected.grad_mean_{name}"], atol=1e-7, rtol=1e-5)
    total = errors[0].mean() + errors[1].mean()
    torch.testing.assert_close(total[None], golden["ce.expected.total_mean"].to(dtype), atol=atol, rtol=0)


@PRECISIONS
def test_regression(golden, config, dtype, atol, rtol):
    config.prediction = "regression"
    model = CrateSplitBrainForPreTraining(config)
    predicted = (golden[f"regression.pred_{name}"].to(dtype).unflatten(0, (2, 16)) for name in ("ab", "l"))
    errors = model.errors(model.lab_targets(golden["image.rgb"].to(dtype)), *predicted)
    for name, error in zip(("ab", "l"), errors, strict=True):
        expected = golden[f"regression.expected.eq1_{name}"].to(dtype)
        torch.testing.assert_close(error.sum()[None], expected, atol=atol, rtol=rtol)


# --- two towers


def test_it_is_two_encoders_of_crate_mae(config, images):
    config.mssa_init_scale = 0.5
    model = CrateSplitBrainModel(config).eval()
    lab = (rgb_to_lab(images) - torch.tensor([50.0, 0, 0])[:, None, None]) / 50
    outputs = model(images)
    state = model.state_dict()
    for half, (tower, channels) in enumerate((("lightness", lab[:, :1]), ("color", lab[:, 1:]))):
        encoder = CrateMaeModel(
            CrateMaeConfig(
                hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=4,
                num_channels=channels.shape[1],
            )
        ).eval()  # fmt: skip
        weights = {name.replace(f".{tower}.", "."): value for name, value in state.items() if f".{tower}." in name}
        for part in ("weight", "bias"):
            weights[f"embeddings.patch_embeddings.projection.{part}"] = weights.pop(
                f"embeddings.patch_embeddings.{part}"
            )
        weights["embeddings.cls_token"] = model.embeddings.cls_token.chunk(2, dim=-1)[half]
        weights["embeddings.mask_token"] = torch.zeros(1, 1, 16)
        weights["embeddings.position_embeddings"] = state["embeddings.position_embeddings"]
        encoder.load_state_dict(weights)
        tokens = encoder(channels).last_hidden_state
        torch.testing.assert_close(outputs.last_hidden_state.chunk(2, dim=-1)[half], tokens, atol=1e-5, rtol=1e-5)


def test_fresh_weights_are_those_of_two_encoders(config):
    config.hidden_size, config.mssa_init_scale = 512, 0.1
    model = CrateSplitBrainModel(config)
    layer, width = model.layers[0], 256
    linear_bound = (6 / (2 * width)) ** 0.5
    for name, weight, bound in [
        ("U, xavier of a tower's width", layer.mssa.subspace_proj.color.weight, linear_bound),
        ("O, scaled", layer.mssa.o_proj.lightness.weight, 0.1 * linear_bound),
        ("dictionary: kaiming", layer.ista.lightness.dictionary, (6 / width) ** 0.5),
        ("patches of lightness", model.embeddings.patch_embeddings.lightness.weight, (6 / (width + 16)) ** 0.5),
        ("patches of colour", model.embeddings.patch_embeddings.color.weight, (6 / (width + 32)) ** 0.5),
    ]:
        assert 0.98 * bound < weight.abs().max() <= bound, name
    assert 0.015 < model.embeddings.cls_token.std() < 0.025


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("num_attention_heads", [2, 4])  # with 2, MSSA has no output projection
def test_nothing_passes_between_the_towers(config, images, num_attention_heads, attn_implementation):
    config.num_attention_heads = num_attention_heads
    model = CrateSplitBrainForPreTraining(config)
    model.set_attn_implementation(attn_implementation)
    seen: list[torch.Tensor] = []
    embeddings = model.crate_split_brain.embeddings.patch_embeddings
    for part in (embeddings.lightness, embeddings.color):
        part.register_forward_pre_hook(lambda module, args: seen.append(args[0].requires_grad_()) or args)
    outputs = model(images.requires_grad_(), output_hidden_states=True, return_loss=False)
    lightness, color = seen
    assert (lightness.shape[1], color.shape[1]) == (1, 2)
    halves = [state.chunk(2, dim=-1) for state in outputs.hidden_states]
    assert len(halves) == 4
    halves.append((outputs.logits_ab, outputs.logits_l))
    for first, second in halves:
        for output, own, other in ((first, lightness, color), (second, color, lightness)):
            gradients = torch.autograd.grad(
                output.square().sum(), (own, other), retain_graph=True, allow_unused=True, materialize_grads=True
            )
            assert gradients[0].abs().max() > 0
            assert torch.equal(gradients[1], torch.zeros_like(other))


def test_colour_alone_changes_one_half(config, images):
    model = CrateSplitBrainForPreTraining(config).eval()
    embeddings = model.crate_split_brain.embeddings.patch_embeddings
    before = model(images, output_hidden_states=True)
    with torch.no_grad():
        embeddings.color.weight.mul_(-1)
        after = model(images, output_hidden_states=True)
    for old, new in zip(before.hidden_states, after.hidden_states, strict=True):
        assert torch.equal(old.chunk(2, dim=-1)[0], new.chunk(2, dim=-1)[0])
        assert not torch.allclose(old.chunk(2, dim=-1)[1], new.chunk(2, dim=-1)[1])
    assert torch.equal(before.logits_ab, after.logits_ab)
    assert not torch.allclose(before.logits_l, after.logits_l)


def test_half_of_the_attention_maps_is_of_either_tower(config, images):
    model = CrateSplitBrainModel(config).eval()
    model.set_attn_implementation("eager")
    before = model(images, output_attentions=True).attentions
    with torch.no_grad():
        model.embeddings.patch_embeddings.lightness.weight.mul_(3)
    after = model(images, output_attentions=True).attentions
    assert len(before) == 3
    for old, new in zip(before, after, strict=True):
        assert old.shape == (2, 4, 17, 17)
        assert torch.equal(old[:, 2:], new[:, 2:])
        assert not torch.allclose(old[:, :2], new[:, :2])


def test_stochastic_depth_is_drawn_for_each_tower():
    config = CrateSplitBrainConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, image_size=8, patch_size=4, drop_path_rate=0.5
    )
    drop_path = CrateSplitBrainModel(config).layers[-1].drop_path
    assert isinstance(drop_path, CrateSideBySide)
    kept = (drop_path(torch.ones(200, 1, 16))[:, 0, [0, 15]] > 0).float()
    assert 0.35 < kept.mean() < 0.65
    assert 0.3 < (kept[:, 0] != kept[:, 1]).float().mean() < 0.7


# --- targets, predictions, heads


def test_targets_lie_on_a_grid(config, images):
    config.target_grid_size = 2
    model = CrateSplitBrainForPreTraining(config).eval()
    targets = model.lab_targets(images)
    assert targets.shape == (2, 3, 8, 8)
    torch.testing.assert_close(targets[1, :, 3, 6], rgb_to_lab(images)[1, :, 6:8, 12:14].mean(dim=(1, 2)))
    outputs = model(images)
    assert outputs.logits_ab.shape == (2, 64, 261)
    assert outputs.logits_l.shape == (2, 64, 50)
    torch.testing.assert_close(outputs.loss, outputs.loss_ab + outputs.loss_l)
    # Target (3, 6) is part (1, 0) of patch (1, 3).
    tokens = model.crate_split_brain(images).last_hidden_state[:, 1 + 4 + 3, :16]
    parts = model.color_head(tokens).unflatten(1, (2, 2, 261))
    torch.testing.assert_close(outputs.logits_ab[:, 3 * 8 + 6], parts[:, 1, 0])


def test_images_that_are_not_square(config):
    config.patch_size, config.target_grid_size = (4, 8), 2
    model = CrateSplitBrainForPreTraining(config).eval()
    images = torch.rand(1, 3, 16, 32)
    outputs = model(images, interpolate_pos_encoding=True)
    assert outputs.logits_l.shape == (1, 8 * 8, 50)
    assert model.lab_targets(images).shape == (1, 3, 8, 8)
    assert model.predict_lab(images, interpolate_pos_encoding=True).shape == (1, 3, 8, 8)
    assert torch.isfinite(outputs.loss)


def test_predictions_are_annealed_means(config, images):
    model = CrateSplitBrainForPreTraining(config).eval()
    outputs = model(images, return_loss=False)
    assert outputs.loss is None
    centres = torch.tensor(AB_CENTRES).float()
    probabilities = outputs.logits_ab.softmax(-1)
    expected = (probabilities @ centres).transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(model.predict_lab(images, temperature=1.0)[:, 1:], expected, atol=1e-4, rtol=1e-4)
    likeliest = centres[outputs.logits_ab.argmax(-1)].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(model.predict_lab(images, temperature=1e-5)[:, 1:], likeliest, atol=1e-2, rtol=0)
    assert ((model.predict_lab(images)[:, 0] - 50).abs() < 50).all()
    with pytest.raises(ValueError, match="`temperature` must be positive, got 0"):
        model.predict_lab(images, temperature=0)


def test_regression_predicts_values(config, images):
    config.prediction = "regression"
    model = CrateSplitBrainForPreTraining(config).eval()
    nn.init.zeros_(model.color_head.weight)
    nn.init.zeros_(model.lightness_head.weight)
    outputs = model(images)
    assert outputs.logits_ab.shape == (2, 16, 2)
    assert torch.equal(outputs.logits_l, torch.full((2, 16, 1), 50.0))  # a mid grey
    assert torch.equal(model.predict_lab(images), torch.tensor([50.0, 0, 0])[:, None, None].expand(2, 3, 4, 4))
    targets = model.lab_targets(images)
    torch.testing.assert_close(outputs.loss_l, (targets[:, 0] - 50).square().mean() / 2)
    torch.testing.assert_close(outputs.loss_ab, targets[:, 1:].square().sum(1).mean() / 2)


@pytest.mark.parametrize("prediction", ["classification", "regression"])
def test_the_loss_is_in_float32_under_autocast(config, images, prediction):
    config.prediction = prediction
    model = CrateSplitBrainForPreTraining(config)
    expected = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images)
        lab = rgb_to_lab(images)
    assert lab.dtype == torch.float32
    assert torch.equal(lab, rgb_to_lab(images))
    assert outputs.loss.dtype == torch.float32
    torch.testing.assert_close(outputs.loss, expected.loss, rtol=0.02, atol=0.02)


def test_gradients_of_lab_are_finite():
    images = torch.tensor([-0.5, 0.0, 0.04045, 1.0, 1.5]).expand(3, 1, 5).clone().requires_grad_()
    rgb_to_lab(images).sum().backward()
    assert torch.isfinite(images.grad).all()


def test_heads_share_the_encoders(config, images, tmp_path):
    model = CrateSplitBrainForPreTraining(config).eval()
    model.save_pretrained(tmp_path)
    tokens = model.crate_split_brain(images).last_hidden_state
    for model_class, missing in (
        (CrateSplitBrainModel, set()),
        (CrateSplitBrainBackbone, set()),
        (CrateSplitBrainForImageClassification, {"classifier.weight", "classifier.bias"}),
    ):
        loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert set(info["missing_keys"]) == missing
        assert not info["unexpected_keys"]
        if model_class is CrateSplitBrainModel:
            assert torch.equal(loaded.eval()(images).last_hidden_state, tokens)
        elif model_class is CrateSplitBrainBackbone:
            (feature_map,) = loaded.eval()(images).feature_maps
            torch.testing.assert_close(feature_map.flatten(2).transpose(1, 2), tokens[:, 1:])
        else:
            expected = loaded.classifier(tokens[:, 1:].mean(dim=1))
            torch.testing.assert_close(loaded.eval()(images).logits, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_channels": 1}, "`num_channels` must be 3, red, green and blue, got 1"),
        (
            {"hidden_size": 36},
            "`hidden_size` must be a multiple of 8, for the .* of two towers, got 36",
        ),
        ({"hidden_size": 24, "num_attention_heads": 3}, "`num_attention_heads` must be even, for two towers, got 3"),
        ({"prediction": "colour"}, '`prediction` must be "classification" or "regression", got \'colour\''),
        ({"target_grid_size": 3}, r"`target_grid_size` must divide the patch size \(16, 16\), got 3"),
        ({"target_grid_size": 0}, "`target_grid_size` must divide"),
        ({"patch_size": (16, 14), "target_grid_size": 4}, r"must divide the patch size \(16, 14\), got 4"),
        ({"final_layer_norm_eps": 0}, "`final_layer_norm_eps` must be positive, got 0"),
        ({"mssa_init_scale": -1}, "`mssa_init_scale` must not be negative, got -1"),
    ],
)
def test_settings_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        CrateSplitBrainConfig(**arguments)
