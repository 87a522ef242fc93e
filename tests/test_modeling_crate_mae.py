import pytest
import torch
from torch import nn
from transformers import AutoModelForMaskedImageModeling

from crate_mae_hf import (
    CrateMaeBackbone,
    CrateMaeConfig,
    CrateMaeForImageClassification,
    CrateMaeForPreTraining,
    CrateMaeModel,
)
from crate_mae_hf.crate_layers import CrateDropPath, CrateISTA, CrateLayer, CrateMSSA
from crate_mae_hf.crate_patches import CratePatchGrid, interpolate_position_table, sincos_position_table

CLASSES = [CrateMaeModel, CrateMaeForPreTraining, CrateMaeForImageClassification, CrateMaeBackbone]


def main_output(outputs) -> torch.Tensor:
    """The tensor that a model of any of the classes is there for."""
    for name in ("logits", "last_hidden_state", "feature_maps"):
        if (value := getattr(outputs, name, None)) is not None:
            return value[-1] if isinstance(value, tuple) else value
    raise KeyError(outputs.keys())


# --- the formulas, written out as the papers have them: tokens as columns, one head and one token at a time


def test_mssa_is_the_formula():
    config = CrateMaeConfig(hidden_size=12, num_attention_heads=3)
    mssa = CrateMSSA(config, num_heads=3)
    nn.init.normal_(mssa.o_proj.bias)
    tokens = torch.randn(2, 5, 12)
    outputs, _ = mssa(tokens)
    for image, output in zip(tokens, outputs, strict=True):
        heads = []
        for basis in mssa.subspace_proj.weight.split(4):  # U_k^T, (p, d)
            codes = basis @ image.T  # (p, N)
            heads.append(codes @ torch.softmax(codes.T @ codes / 4**0.5, dim=0))
        expected = mssa.o_proj.weight @ torch.cat(heads) + mssa.o_proj.bias[:, None]
        torch.testing.assert_close(output, expected.T, atol=1e-5, rtol=1e-5)


def test_one_head_of_full_width_has_no_output_projection():
    config = CrateMaeConfig(
        hidden_size=32, num_attention_heads=1, num_hidden_layers=1, decoder_num_attention_heads=2, image_size=32
    )
    model = CrateMaeForPreTraining(config)
    names = [name for name, _ in model.named_parameters() if "o_proj" in name]
    assert names == ["decoder.layers.0.mssa.o_proj.weight", "decoder.layers.0.mssa.o_proj.bias"]
    codes = model.crate_mae.layers[0].mssa.subspace_proj(torch.ones(1, 3, 32))
    torch.testing.assert_close(model.crate_mae.layers[0].mssa(torch.ones(1, 3, 32))[0], codes)  # equal tokens stay


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("additive", [False, True])
def test_mssa_under_a_mask_is_mssa_of_each_part(attn_implementation, additive):
    mssa = CrateMSSA(CrateMaeConfig(hidden_size=12, attn_implementation=attn_implementation), num_heads=3)
    tokens = torch.randn(2, 7, 12)
    mask = torch.zeros(1, 1, 7, 7, dtype=torch.bool)
    mask[..., :3, :3] = mask[..., 3:, 3:] = True
    given = torch.where(mask, 0.0, -torch.inf) if additive else mask
    expected = torch.cat([mssa(part)[0] for part in tokens.split([3, 4], dim=1)], dim=1)
    torch.testing.assert_close(mssa(tokens, given)[0], expected, atol=1e-5, rtol=1e-5)
    assert (mssa(tokens)[0] - expected).abs().max() > 1e-2


def test_ista_is_a_proximal_gradient_step():
    ista = CrateISTA(hidden_size=6, step_size=0.1, sparsity_weight=0.5)
    nn.init.normal_(ista.dictionary)
    token = torch.randn(6)
    code = token.clone().requires_grad_()
    objective = 0.5 * (token - ista.dictionary @ code).square().sum()
    (gradient,) = torch.autograd.grad(objective, code)
    expected = torch.relu(token - 0.1 * gradient - 0.1 * 0.5)
    torch.testing.assert_close(ista(token[None, None])[0, 0], expected)


def test_position_table_by_hand():
    table = sincos_position_table(8, (2, 3))
    assert table.shape == (1, 7, 8)
    assert not table[0, 0].any()
    row, column = 1.0, 2.0  # the last patch; frequencies 1 and 1 / 100
    angles = torch.tensor([[column, column / 100], [row, row / 100]])
    expected = torch.stack([angles.sin(), angles.cos()], dim=1).flatten()
    torch.testing.assert_close(table[0, 6], expected)


# --- initialisation


def test_fresh_weights():
    model = CrateMaeForPreTraining(CrateMaeConfig(hidden_size=256, num_hidden_layers=1, num_attention_heads=4))
    embeddings, layer = model.crate_mae.embeddings, model.crate_mae.layers[0]
    projection = embeddings.patch_embeddings.projection.weight
    for name, weight, bound in [
        ("patch embedding: xavier over the flattened weight", projection, (6 / (256 + 768)) ** 0.5),
        ("linear: xavier", layer.mssa.subspace_proj.weight, (6 / 512) ** 0.5),
        ("dictionary: kaiming", layer.ista.dictionary, (6 / 256) ** 0.5),
        ("decoder's dictionary: kaiming", model.decoder.layers[0].dictionary, (6 / 256) ** 0.5),
    ]:
        assert weight.abs().max() <= bound, name
        assert weight.abs().max() > 0.99 * bound, name
        assert abs(weight.std() * 3**0.5 / bound - 1) < 0.02, name
    for token in (embeddings.cls_token, embeddings.mask_token):
        assert 0.015 < token.std() < 0.025
    for name, parameter in model.named_parameters():
        if "layernorm" in name or name.endswith("bias"):
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name
        else:
            assert parameter.std() > 0, f"{name} is constant"


def test_a_small_start_of_the_compression_step(config):
    """The scale is of MSSA's output projections, in encoder and decoder, and of nothing else."""
    torch.manual_seed(0)
    official = CrateMaeForPreTraining(config).state_dict()
    config.mssa_init_scale = 0.1
    torch.manual_seed(0)
    for name, value in CrateMaeForPreTraining(config).state_dict().items():
        scale = 0.1 if name.endswith("o_proj.weight") else 1.0
        torch.testing.assert_close(value, scale * official[name], msg=name)


def test_a_fresh_model_knows_positions(config):
    model = CrateMaeModel(config).eval()
    image = torch.randn(1, 3, 32, 32)
    patches = image.unflatten(3, (4, 8)).unflatten(2, (4, 8))
    permuted = patches.flip(2, 4).flatten(4, 5).flatten(2, 3)  # the patches in reverse order
    output, permuted_output = model(image).last_hidden_state[:, 1:], model(permuted).last_hidden_state[:, 1:]
    assert (output.flip(1) - permuted_output).abs().max() > 0.1


# --- masks


def test_features_are_deterministic_and_unmasked(config, pixel_values):
    model = CrateMaeModel(config).eval()
    first, second = model(pixel_values), model(pixel_values, bool_masked_pos=torch.zeros(2, 16, dtype=torch.bool))
    assert torch.equal(first.last_hidden_state, second.last_hidden_state)
    assert torch.equal(first.pooler_output, first.last_hidden_state[:, 1:].mean(dim=1))
    model.config.pooling = "cls"
    assert torch.equal(model(pixel_values).pooler_output, first.last_hidden_state[:, 0])


def test_masked_pixels_do_not_reach_the_encoder(config, pixel_values):
    model = CrateMaeModel(config).eval()
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 5] = True  # second row, second column
    changed = pixel_values.clone()
    changed[:, :, 8:16, 8:16] += 1
    assert torch.equal(model(pixel_values, mask).last_hidden_state, model(changed, mask).last_hidden_state)
    assert not torch.equal(model(pixel_values).last_hidden_state, model(changed).last_hidden_state)


def test_masks_may_differ_in_number(config, pixel_values):
    model = CrateMaeForPreTraining(config).eval()
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, :3] = True
    mask[1, 4:] = True
    outputs = model(pixel_values, bool_masked_pos=mask)
    assert torch.equal(outputs.mask, mask.float())
    error = (outputs.logits - model.patchify(pixel_values)).square().mean(-1)
    torch.testing.assert_close(outputs.loss, torch.cat([error[0, :3], error[1, 4:]]).mean())
    # The order "visible first" that `ids_restore` stands for, as in ViTMAE.
    visible_first = mask.gather(1, outputs.ids_restore.argsort(1))
    assert torch.equal(visible_first, mask.sort(dim=1).values)


def test_given_mask_wins_over_noise(config, pixel_values):
    mask = torch.rand(2, 16) < 0.5
    outputs = CrateMaeForPreTraining(config)(pixel_values, bool_masked_pos=mask, noise=torch.rand(2, 16))
    assert torch.equal(outputs.mask, mask.float())


@pytest.mark.parametrize("mask_ratio", [0.0, 0.25, 0.6, 0.75, 0.9])
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_loss_is_finite_at_every_ratio(config, pixel_values, mask_ratio, norm_pix_loss):
    config.mask_ratio, config.norm_pix_loss = mask_ratio, norm_pix_loss
    model = CrateMaeForPreTraining(config)
    outputs = model(pixel_values)
    outputs.loss.backward()
    assert torch.isfinite(outputs.loss)
    assert (outputs.mask.sum(1) == 16 - int(16 * (1 - mask_ratio))).all()
    assert (outputs.loss == 0) == (mask_ratio == 0)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_constant_patches_have_finite_gradients(config):
    config.norm_pix_loss = True
    model = CrateMaeForPreTraining(config)
    model(torch.zeros(2, 3, 32, 32)).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_loss_only_on_request(config, pixel_values):
    outputs = CrateMaeForPreTraining(config)(pixel_values, return_loss=False)
    assert outputs.loss is None
    assert outputs.logits.shape == (2, 16, 192)


def loss_and_gradients(model, *args, **kwargs) -> list[torch.Tensor]:
    outputs = model(*args, **kwargs)
    return [outputs.loss, *torch.autograd.grad(outputs.loss, list(model.parameters()))]


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("num_masked", [(16, 16), (12, 12), (1, 15), (0, 3), (0, 0)])
def test_loss_alone_is_the_loss(config, pixel_values, num_masked, norm_pix_loss):
    config.norm_pix_loss = norm_pix_loss
    model = CrateMaeForPreTraining(config)
    mask = torch.stack([torch.randperm(16) < number for number in num_masked])
    expected = loss_and_gradients(model, pixel_values, bool_masked_pos=mask)
    actual = loss_and_gradients(model, pixel_values, bool_masked_pos=mask, return_logits=False)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)
    outputs = model(pixel_values, bool_masked_pos=mask, return_logits=False)
    assert outputs.logits is None
    assert torch.equal(outputs.mask, mask.float())


def test_loss_alone_predicts_masked_patches_alone(config, pixel_values):
    model = CrateMaeForPreTraining(config)
    shapes = []
    model.decoder.prediction_head.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    noise = torch.rand(2, 16)
    expected = loss_and_gradients(model, pixel_values, noise=noise)
    actual = loss_and_gradients(model, pixel_values, noise=noise, return_logits=False)
    assert shapes == [(2, 16, 192), (2, 12, 192)]
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_loss_alone_attends_from_masked_patches_alone(config, pixel_values, implementation):
    """In the last decoder layer, with every token as a key; no token of an image is taken for that of another."""
    model = CrateMaeForPreTraining(config)
    model.set_attn_implementation(implementation)
    shapes = []
    for layer in model.decoder.layers:
        layer.mssa.o_proj.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    mask = torch.stack([torch.arange(16) < 3, torch.arange(16) > 5])
    loss = model(pixel_values, bool_masked_pos=mask, return_logits=False).loss
    width = config.hidden_size
    assert shapes == [(2, 17, width)] * (config.decoder_num_hidden_layers - 1) + [(2, 10, width)]
    with torch.no_grad():
        expected = model(pixel_values, bool_masked_pos=mask)
    torch.testing.assert_close(loss, expected.loss)


def test_errors_of_patches(config, pixel_values):
    """The loss is their mean over the masked patches; those of masked patches alone are the same numbers."""
    model = CrateMaeForPreTraining(config).eval()
    outputs = model(pixel_values)
    errors = model.patch_errors(pixel_values, outputs.logits)
    assert errors.shape == (2, 16)
    torch.testing.assert_close(errors[1, 5], (outputs.logits - model.patchify(pixel_values))[1, 5].square().mean())
    masked = outputs.mask.bool()
    torch.testing.assert_close(errors[masked].mean(), outputs.loss)
    positions = torch.tensor([[2, 7, 5], [15, 0, 0]])
    some = [image[chosen] for image, chosen in zip(outputs.logits, positions, strict=True)]
    alone = model.patch_errors(pixel_values, torch.stack(some), positions)
    assert torch.equal(alone, errors.gather(1, positions))


def test_images_are_checked_once(config, pixel_values, monkeypatch):
    checks = []
    monkeypatch.setattr(CratePatchGrid, "check", lambda *arguments: checks.append(arguments))
    model = CrateMaeForPreTraining(config)
    model(pixel_values)
    model(pixel_values, return_logits=False)
    assert len(checks) == 2


def test_something_has_to_be_asked_for(config, pixel_values):
    with pytest.raises(ValueError, match="`return_loss` and `return_logits` are both False"):
        CrateMaeForPreTraining(config)(pixel_values, return_loss=False, return_logits=False)


def test_drawn_masks_follow_the_seed(config, pixel_values):
    model = CrateMaeForPreTraining(config)
    torch.manual_seed(7)
    first = model(pixel_values).mask
    assert not torch.equal(first, model(pixel_values).mask)
    torch.manual_seed(7)
    assert torch.equal(first, model(pixel_values).mask)


# --- shapes


@pytest.mark.parametrize("num_channels", [1, 3, 13])
@pytest.mark.parametrize(
    ("image_size", "patch_size"), [(32, 8), ((24, 40), 8), ((24, 40), (4, 8)), (32, (16, 4)), ([16, 8], [8, 8])]
)
def test_image_and_patch_shapes(image_size, patch_size, num_channels):
    config = CrateMaeConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=patch_size,
        num_channels=num_channels,
        num_labels=5,
    )
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    rows, columns = config.grid_size
    images = torch.randn(2, num_channels, height, width)
    assert CrateMaeModel(config)(images).last_hidden_state.shape == (2, rows * columns + 1, 32)
    assert CrateMaeForImageClassification(config)(images).logits.shape == (2, 5)
    assert CrateMaeBackbone(config)(images).feature_maps[0].shape == (2, 32, rows, columns)
    model = CrateMaeForPreTraining(config)
    outputs = model(images)
    assert outputs.logits.shape == (2, rows * columns, height * width * num_channels // (rows * columns))
    assert model.unpatchify(outputs.logits).shape == images.shape


def test_patches_are_row_by_row_with_channels_last(config):
    model = CrateMaeForPreTraining(config)
    images = torch.randn(2, 3, 16, 24)
    patches = model.patchify(images)
    assert patches.shape == (2, 6, 192)
    expected = images[:, :, 8:16, 16:24].permute(0, 2, 3, 1).flatten(1)  # second row, third column
    assert torch.equal(patches[:, 5], expected)
    assert torch.equal(model.unpatchify(patches, image_size=(16, 24)), images)


def test_feature_maps_are_laid_out_as_the_image(config, pixel_values):
    backbone = CrateMaeBackbone(config).eval()
    model = CrateMaeModel(config).eval()
    model.load_state_dict(backbone.state_dict())
    tokens = model(pixel_values).last_hidden_state
    (feature_map,) = backbone(pixel_values).feature_maps
    torch.testing.assert_close(feature_map[:, :, 2, 1], tokens[:, 1 + 2 * 4 + 1])
    backbone.config.reshape_hidden_states = False
    torch.testing.assert_close(backbone(pixel_values).feature_maps[0], tokens)


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("size", [(32, 32), (48, 24), (16, 64)])
def test_other_resolutions(config, model_class, size):
    model = model_class(config).eval()
    images = torch.randn(2, 3, *size)
    outputs = model(images, interpolate_pos_encoding=True)
    num_patches = size[0] // 8 * (size[1] // 8)
    shapes = {
        CrateMaeModel: (2, num_patches + 1, 32),
        CrateMaeForPreTraining: (2, num_patches, 192),
        CrateMaeForImageClassification: (2, 2),
        CrateMaeBackbone: (2, 32, size[0] // 8, size[1] // 8),
    }
    assert main_output(outputs).shape == shapes[model_class]
    if size == (32, 32) and model_class is not CrateMaeForPreTraining:  # its mask is drawn
        assert torch.equal(main_output(outputs), main_output(model(images)))


def test_interpolated_positions_keep_their_axes(config):
    embeddings = CrateMaeModel(config).embeddings
    table = interpolate_position_table(embeddings.position_embeddings, (4, 4), (8, 4))  # twice as many rows
    table = table[0, 1:].unflatten(0, (8, 4))
    original = embeddings.position_embeddings[0, 1:].unflatten(0, (4, 4))
    columns, rows = slice(0, 16), slice(16, 32)  # which halves of the channels hold columns and rows
    torch.testing.assert_close(table[3, :, columns], original[1, :, columns])
    assert (table[:, 2, rows] - table[:, 1, rows]).abs().max() < 1e-6
    assert (table[1:, 0, rows] - table[:-1, 0, rows]).abs().amax(1).min() > 0.1


def test_interpolation_in_bf16_is_float32_inside(config):
    table = CrateMaeModel(config).embeddings.position_embeddings
    expected = interpolate_position_table(table, (4, 4), (6, 5))
    actual = interpolate_position_table(table.bfloat16(), (4, 4), (6, 5))
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), expected, atol=1e-2, rtol=1e-2)


# --- bad input


@pytest.mark.parametrize("model_class", [CrateMaeModel, CrateMaeForPreTraining])
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(2, 17, dtype=torch.bool), r"shape \(2, 16\).*got \(2, 17\)"),
        (torch.zeros(16, dtype=torch.bool), r"shape \(2, 16\).*got \(16,\)"),
        (torch.zeros(2, 16), r"integers that are 0 or 1.*got torch.float32"),
        (torch.full((2, 16), 2), r"integers that are 0 or 1.*got torch.int64 from 2 to 2"),
    ],
)
def test_bad_masks_get_a_clear_error(config, pixel_values, model_class, mask, message):
    with pytest.raises(ValueError, match=f"`bool_masked_pos` must .*{message}"):
        model_class(config)(pixel_values, bool_masked_pos=mask)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_a_mask_of_zeros_and_ones_is_as_good(config, pixel_values, dtype):
    model, mask = CrateMaeForPreTraining(config).eval(), torch.rand(2, 16) > 0.5
    expected, actual = model(pixel_values, mask), model(pixel_values, mask.to(dtype))
    assert torch.equal(actual.loss, expected.loss)
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(model.crate_mae(pixel_values, mask.to(dtype))[0], model.crate_mae(pixel_values, mask)[0])


# --- masked image modelling


def test_masked_image_modelling_is_pre_training_with_images_back(config, pixel_values, tmp_path):
    pre_training = CrateMaeForPreTraining(config).eval()
    pre_training.save_pretrained(tmp_path)
    model, info = AutoModelForMaskedImageModeling.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    mask = torch.rand(2, 16) > 0.5
    expected, actual = pre_training(pixel_values, mask), model(pixel_values, bool_masked_pos=mask.long())
    assert torch.equal(actual.loss, expected.loss)
    assert torch.equal(actual.reconstruction, pre_training.unpatchify(expected.logits))
    unmasked = model(pixel_values)
    assert unmasked.loss is None
    expected = pre_training(pixel_values, torch.zeros(2, 16, dtype=torch.bool))
    assert torch.equal(unmasked.reconstruction, pre_training.unpatchify(expected.logits))


def test_the_stride_that_scripts_for_simmim_set_is_the_patch_size(config):
    assert config.encoder_stride == config.patch_size == 8
    config.update({"image_size": 64, "patch_size": 16, "encoder_stride": 16})
    with pytest.raises(ValueError, match="`encoder_stride` must be the patch size, 16, got 32"):
        config.encoder_stride = 32
    assert "encoder_stride" not in config.to_dict()


def test_bad_noise_and_patches_get_a_clear_error(config, pixel_values):
    model = CrateMaeForPreTraining(config)
    with pytest.raises(ValueError, match=r"`noise` must have shape \(2, 16\).*got \(2, 15\)"):
        model(pixel_values, noise=torch.rand(2, 15))
    with pytest.raises(ValueError, match=r"`patches` must have shape \(batch_size, 16, 192\).*got \(2, 15, 192\)"):
        model.unpatchify(torch.zeros(2, 15, 192))
    with pytest.raises(ValueError, match="`patches` must have shape"):
        model.unpatchify(torch.zeros(2, 16, 192), image_size=(33, 32))
    with pytest.raises(ValueError, match="divisible by the patch size"):
        model.patchify(torch.zeros(2, 3, 33, 32))


# --- precision, compilation, export


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_half_precision(config, pixel_values, dtype, attn_implementation):
    config._attn_implementation = attn_implementation
    model = CrateMaeForPreTraining(config)
    noise = torch.rand(2, 16)
    expected = model(pixel_values, noise=noise)
    outputs = model.to(dtype)(pixel_values, noise=noise)  # float32 pixels into a half model
    assert (outputs.logits.dtype, outputs.loss.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(outputs.loss, expected.loss, atol=0.02, rtol=0.02)
    outputs.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_autocast(config, pixel_values):
    config.norm_pix_loss = True
    model = CrateMaeForPreTraining(config)
    noise = torch.rand(2, 16)
    expected = model(pixel_values, noise=noise).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(pixel_values, noise=noise).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, atol=0.02, rtol=0.02)
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_extreme_pixels_stay_finite_in_bf16(config):
    model = CrateMaeForPreTraining(config).bfloat16()
    assert torch.isfinite(model(torch.full((2, 3, 32, 32), 1e4)).loss)


def test_compiled_gradients(config, pixel_values):
    torch.compiler.reset()
    model = CrateMaeForPreTraining(config)
    noise = torch.rand(2, 16)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(model(pixel_values, noise=noise).loss, parameters)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    actual = torch.autograd.grad(compiled(pixel_values, noise=noise).loss, parameters)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_exports(config, pixel_values):
    model = CrateMaeForPreTraining(config).eval()
    noise = torch.rand(2, 16)
    program = torch.export.export(model, (), {"pixel_values": pixel_values, "noise": noise})
    expected = model(pixel_values, noise=noise)
    actual = program.module()(pixel_values=pixel_values, noise=noise)
    torch.testing.assert_close(actual.logits, expected.logits, atol=1e-5, rtol=1e-5)


# --- activation checkpointing and attention implementations


def test_activation_checkpointing_changes_nothing(config, pixel_values):
    config.hidden_dropout_prob = 0.1
    model = CrateMaeForPreTraining(config).train()
    gradients = []
    for enable in (False, True):
        if enable:
            model.activation_checkpointing_enable()
        torch.manual_seed(3)
        model.zero_grad()
        model(pixel_values).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], atol=0, rtol=0)


def test_attention_implementations_agree(config, pixel_values):
    model = CrateMaeForPreTraining(config).eval()
    noise = torch.rand(2, 16)
    logits = {}
    for name in ("eager", "sdpa", "flex_attention"):
        model.set_attn_implementation(name)
        with torch.no_grad():
            logits[name] = model(pixel_values, noise=noise).logits
    torch.testing.assert_close(logits["sdpa"], logits["eager"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits["flex_attention"], logits["eager"], atol=1e-5, rtol=1e-5)


def test_recorded_outputs(config, pixel_values):
    config._attn_implementation = "eager"
    outputs = CrateMaeForPreTraining(config)(pixel_values, output_hidden_states=True, output_attentions=True)
    assert [tuple(states.shape) for states in outputs.hidden_states] == [(2, 17, 32)] * 4
    assert [tuple(attention.shape) for attention in outputs.attentions] == [(2, 4, 17, 17)] * 3
    torch.testing.assert_close(outputs.attentions[0].sum(-1), torch.ones(2, 4, 17))
    assert all((states >= 0).all() for states in outputs.hidden_states[1:])  # the codes are not negative


def test_classifier_pools_as_configured(config, pixel_values):
    config.num_labels = 5
    labels = torch.tensor([1, 4])
    model = CrateMaeForImageClassification(config).eval()
    tokens = model.crate_mae(pixel_values).last_hidden_state
    outputs = model(pixel_values, labels=labels)
    torch.testing.assert_close(outputs.logits, model.classifier(tokens[:, 1:].mean(1)))
    torch.testing.assert_close(outputs.loss, nn.functional.cross_entropy(outputs.logits, labels))
    model.config.pooling = "cls"
    torch.testing.assert_close(model(pixel_values).logits, model.classifier(tokens[:, 0]))


# --- saving and loading


def table_of(model) -> torch.Tensor:
    return next(buffer for name, buffer in model.named_buffers() if name.endswith("position_embeddings"))


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load(config, pixel_values, tmp_path, model_class, dtype):
    model = model_class(config).eval().to(dtype)
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    assert {name: value.tolist() for name, value in loaded.state_dict().items()} == {
        name: value.tolist() for name, value in model.state_dict().items()
    }
    assert torch.equal(table_of(loaded), sincos_position_table(32, (4, 4)).to(dtype))
    assert [name for name, parameter in loaded.named_parameters() if not parameter.requires_grad] == []
    inputs = {"noise": torch.rand(2, 16)} if model_class is CrateMaeForPreTraining else {}
    torch.testing.assert_close(main_output(loaded(pixel_values, **inputs)), main_output(model(pixel_values, **inputs)))


def test_position_table_survives_a_missing_table(config):
    model = CrateMaeModel(config)
    state_dict = model.state_dict()
    del state_dict["embeddings.position_embeddings"]
    filled = CrateMaeModel.from_pretrained(None, config=config, state_dict=state_dict)
    assert torch.equal(table_of(filled), sincos_position_table(32, (4, 4)))
    with torch.device("meta"):
        empty = CrateMaeModel(config)
    empty.to_empty(device="cpu").init_weights()
    assert torch.equal(table_of(empty), sincos_position_table(32, (4, 4)))


@pytest.mark.parametrize("model_class", [CrateMaeModel, CrateMaeForImageClassification, CrateMaeBackbone])
def test_encoder_loads_from_a_pretraining_checkpoint(config, pixel_values, tmp_path, model_class):
    model = CrateMaeForPreTraining(config)
    model.save_pretrained(tmp_path)
    loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert report["missing_keys"] <= {"classifier.weight", "classifier.bias"}
    encoder = getattr(loaded, "crate_mae", loaded).eval()
    expected = model.eval().crate_mae(pixel_values).last_hidden_state
    torch.testing.assert_close(CrateMaeModel.forward(encoder, pixel_values).last_hidden_state, expected)


@pytest.mark.parametrize("part", ["crate_mae.embeddings", "crate_mae.layers.1", "decoder.layers.0", "decoder"])
def test_parts_may_lie_on_disk(config, pixel_values, tmp_path, part):
    model = CrateMaeForPreTraining(config).eval()
    model.save_pretrained(tmp_path / "model")
    modules = ["crate_mae.embeddings", *(f"crate_mae.layers.{i}" for i in range(3)), "crate_mae.layernorm"]
    modules += ["decoder"] if part == "decoder" else [f"decoder.layers.{i}" for i in range(2)]
    modules += [] if part == "decoder" else ["decoder.layernorm", "decoder.prediction_head"]
    loaded = CrateMaeForPreTraining.from_pretrained(
        tmp_path / "model",
        device_map={name: "disk" if name == part else "cpu" for name in modules},
        offload_folder=str(tmp_path / "offload"),
    )
    assert any(parameter.device.type == "meta" for parameter in loaded.parameters())
    noise = torch.rand(2, 16)
    for with_gradients in (False, True):
        with torch.set_grad_enabled(with_gradients):
            expected, actual = model(pixel_values, noise=noise), loaded(pixel_values, noise=noise)
        assert torch.equal(actual.logits, expected.logits)


# --- stochastic depth


def test_drop_path_leaves_out_whole_branches_and_keeps_the_mean():
    branch = torch.ones(4000, 2, 3)
    drop_path = CrateDropPath(0.25)
    dropped = drop_path(branch)
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(branch))  # all of an image or nothing
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop_path.eval()(branch), branch)


def test_drop_path_grows_with_depth_and_rests_in_evaluation(config, pixel_values):
    plain = CrateMaeForImageClassification(config).eval()
    config.drop_path_rate = 0.4
    model = CrateMaeForImageClassification(config)
    model.load_state_dict(plain.state_dict())
    assert [layer.drop_path.drop_prob for layer in model.crate_mae.layers] == pytest.approx([0.0, 0.2, 0.4])
    assert torch.equal(model.eval()(pixel_values).logits, plain(pixel_values).logits)
    model.train()
    torch.manual_seed(0)
    assert len({tuple(model(pixel_values).logits[0].tolist()) for _ in range(20)}) > 1
    config.num_hidden_layers = 1
    assert CrateMaeForImageClassification(config).crate_mae.layers[0].drop_path.drop_prob == 0


def test_without_its_branch_a_layer_is_the_sparse_step_alone(config):
    layer = CrateLayer(config, drop_path_rate=0.999999)
    with torch.no_grad():
        torch.nn.init.kaiming_uniform_(layer.ista.dictionary)
        hidden_states = torch.randn(2, 5, config.hidden_size)
        expected = layer.ista(layer.layernorm_after(hidden_states))
        torch.testing.assert_close(layer(hidden_states), expected)
