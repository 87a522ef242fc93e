"""Reconstructions: what is pasted, where patch statistics come from, and that the model stays as it was."""

import pytest
import torch

from crate_mae_hf import CrateMaeConfig, CrateMaeForPreTraining
from crate_mae_hf.analysis import random_masks, reconstruct, reconstruct_whole
from crate_mae_hf.analysis.reconstruction import interpolate_visible, stitch, to_patch_grid, to_pixels


@pytest.fixture
def masks() -> torch.Tensor:
    return random_masks(2, 16, 0.75, torch.Generator().manual_seed(0))


@pytest.fixture
def norm_pix_model(config):
    return CrateMaeForPreTraining(CrateMaeConfig(**{**config.to_dict(), "norm_pix_loss": True}))


def test_random_masks_mask_as_the_model_does(config):
    masks = random_masks(5, 49, 0.6)
    config.mask_ratio = 0.6
    expected = CrateMaeForPreTraining(config).sample_mask(torch.rand(5, 49))
    assert masks.sum(dim=1).tolist() == expected.sum(dim=1).tolist() == [30] * 5
    assert not random_masks(1, 4, 0).any()
    with pytest.raises(ValueError, match="`mask_ratio` must lie in"):
        random_masks(1, 4, 1)


def test_output_is_the_models(model, pixel_values, masks):
    result = reconstruct(model, pixel_values, masks, batch_size=1)
    model.eval()
    outputs = model(pixel_values, bool_masked_pos=masks)
    torch.testing.assert_close(result.output, model.unpatchify(outputs.logits).detach())
    torch.testing.assert_close(result.error.mean(), outputs.loss.detach())
    pasted, original = model.patchify(result.pasted), model.patchify(pixel_values)
    torch.testing.assert_close(pasted[~masks], original[~masks], rtol=0, atol=0)
    torch.testing.assert_close(pasted[masks], outputs.logits.detach()[masks])
    assert result.mask_ratio == 0.75


def test_nothing_masked(model, pixel_values):
    result = reconstruct(model, pixel_values, torch.zeros(2, 16, dtype=torch.bool))
    assert result.error.tolist() == [0, 0]
    assert torch.equal(result.pasted, pixel_values)


def test_oracle_statistics_undo_the_normalisation(norm_pix_model, pixel_values, masks, monkeypatch):
    """A perfect prediction of the normalised patches gives the image, to the last masked pixel."""
    patches = norm_pix_model.patchify(pixel_values)
    targets = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    monkeypatch.setattr("crate_mae_hf.analysis.reconstruction.predict_patches", lambda *_: targets)
    oracle = reconstruct(norm_pix_model, pixel_values, masks, "oracle")
    torch.testing.assert_close(oracle.output, pixel_values)
    raw = reconstruct(norm_pix_model, pixel_values, masks, "none")
    torch.testing.assert_close(norm_pix_model.patchify(raw.output), targets)


def test_visible_statistics_do_not_look_at_masked_pixels(norm_pix_model, pixel_values, masks):
    pixel_mask = to_pixels(masks.unflatten(1, (4, 4)), (8, 8))
    spoilt = torch.where(pixel_mask, 1e3 * torch.rand_like(pixel_values), pixel_values)
    results = [reconstruct(norm_pix_model, images, masks, "visible").output for images in (pixel_values, spoilt)]
    torch.testing.assert_close(*results, rtol=0, atol=0)
    leaking = [reconstruct(norm_pix_model, images, masks, "oracle").output for images in (pixel_values, spoilt)]
    assert (leaking[0] - leaking[1]).abs().max() > 1


def test_visible_patches_have_their_own_statistics(norm_pix_model, pixel_values, masks):
    pixel_mask = to_pixels(masks.unflatten(1, (4, 4)), (8, 8)).expand_as(pixel_values)
    visible, oracle = (reconstruct(norm_pix_model, pixel_values, masks, s).output for s in ("visible", "oracle"))
    torch.testing.assert_close(visible[~pixel_mask], oracle[~pixel_mask])


def test_interpolate_visible_by_hand():
    values = torch.tensor([[[1.0, -9.0, 4.0]]])
    visible = torch.tensor([[[True, False, True]]])
    assert interpolate_visible(values, visible).tolist() == [[[1, 2.5, 4]]]
    visible = torch.tensor([[[True, False, False]]])
    assert interpolate_visible(values, visible).tolist() == [[[1, 1, 1]]]
    row = torch.tensor([[[0.0, 1.0, 9.0, 9.0]]])  # distances 2 and 1 to the third, 3 and 2 to the last
    expected = [0, 1, 1 / (1 + 2**-4), 2**-4 / (2**-4 + 3**-4)]
    filled = interpolate_visible(row, torch.tensor([[[True, True, False, False]]]))
    torch.testing.assert_close(filled, torch.tensor([[expected]]))


def test_interpolate_visible_against_a_loop():
    values, visible = torch.rand(2, 3, 5).double(), torch.rand(2, 3, 5) < 0.4
    visible[:, 0, 0] = True
    expected = values.clone()
    for b, i, j in (~visible).nonzero().tolist():
        pairs = [
            (((i - k) ** 2 + (j - m) ** 2) ** -2, values[b, k, m])
            for k in range(3)
            for m in range(5)
            if visible[b, k, m]
        ]
        expected[b, i, j] = sum(w * v for w, v in pairs) / sum(w for w, _ in pairs)
    torch.testing.assert_close(interpolate_visible(values, visible), expected)


def test_stitch_recovers_a_smooth_image():
    """Neighbouring pixels of a ramp differ by its slope: the means come back nearly, far better than interpolated."""
    ramp = torch.linspace(-1, 1, 24).expand(1, 1, 24, 24) + torch.linspace(-2, 2, 24).view(1, 1, 24, 1)
    variance, mean = torch.var_mean(to_patch_grid(ramp, (6, 6)), dim=(1, 3, 5))
    std, masked = variance.sqrt(), random_masks(1, 36, 0.75).view(1, 6, 6)
    y = (ramp - to_pixels(mean, (4, 4))) / to_pixels(std, (4, 4))
    stitched_mean, stitched_std = stitch(y, mean, std, masked)
    assert (stitched_mean - mean).abs().max() < 0.3
    interpolated = interpolate_visible(mean, ~masked)
    assert (stitched_mean - mean).norm() < (interpolated - mean).norm() / 3
    assert torch.equal(stitched_mean[~masked], mean[~masked])
    assert torch.equal(stitched_std[~masked], std[~masked])


def test_stitch_minimises_its_objective():
    """Autograd on the formula of the docstring, written as a loop over borders, finds no slope at the solution."""
    y, mean, std = (
        torch.randn(1, 2, 6, 12).double() / 20,
        torch.randn(1, 2, 3).double(),
        torch.rand(1, 2, 3).double() + 5,
    )
    masked = torch.tensor([[[True, False, True], [False, True, True]]])
    solution = stitch(y, mean, std, masked)
    m, s = (x.clone().requires_grad_() for x in solution)
    image = to_pixels(m, (3, 4)) + to_pixels(s, (3, 4)) * y
    terms = [(image[0, :, 2, 4 * j : 4 * j + 4] - image[0, :, 3, 4 * j : 4 * j + 4]).square().mean() for j in range(3)]
    for i in range(2):
        for j in (3, 7):
            rows = slice(3 * i, 3 * i + 3)
            terms.append((image[0, :, rows, j] - image[0, :, rows, j + 1]).square().mean())
    for x, given in ((m, mean), (s, std)):
        terms.append(0.01 * (x - interpolate_visible(given, ~masked)).square().sum())
    gradients = torch.autograd.grad(sum(terms), (m, s))
    assert (solution[1] > 0).all()
    for gradient in gradients:
        torch.testing.assert_close(gradient[masked], torch.zeros(4).double())


def test_whole_image_by_complementary_masks(model, pixel_values):
    result = reconstruct_whole(model, pixel_values, num_parts=4, generator=torch.Generator().manual_seed(3))
    parts = torch.rand(2, 16, generator=torch.Generator().manual_seed(3)).argsort(1).argsort(1) % 4
    expected = torch.zeros(2, 16, 8 * 8 * 3)
    model.eval()
    for part in range(4):
        logits = model(pixel_values, bool_masked_pos=parts != part).logits.detach()
        expected[parts != part] += logits[parts != part] / 3
    torch.testing.assert_close(result.output, model.unpatchify(expected))
    assert result.bool_masked_pos.all()
    torch.testing.assert_close(result.pasted, result.output)


def test_whole_image_from_two_halves_predicts_each_patch_once(model, pixel_values):
    """Spoiling the pixels of a patch cannot change its own prediction."""
    spoilt = pixel_values.clone()
    spoilt[:, :, :8, :8] = 7
    first, second = (
        reconstruct_whole(model, images, num_parts=2, generator=torch.Generator().manual_seed(0))
        for images in (pixel_values, spoilt)
    )
    torch.testing.assert_close(first.output[:, :, :8, :8], second.output[:, :, :8, :8], rtol=0, atol=0)
    assert not torch.equal(first.output, second.output)


def test_not_square_and_of_another_size():
    config = CrateMaeConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=(8, 12),
        patch_size=(4, 2),
        num_channels=2,
    )
    model = CrateMaeForPreTraining(config)
    for height, width in ((8, 12), (12, 4)):
        images = torch.randn(3, 2, height, width)
        masks = random_masks(3, height // 4 * (width // 2), 0.5)
        result = reconstruct(model, images, masks)
        assert result.output.shape == result.pasted.shape == images.shape
        assert torch.equal(result.pixel_mask[:, 0, ::4, ::2].flatten(1), masks)


def test_vit_mae(vit_mae, pixel_values, masks, state):
    """The mask, the mask ratio and the order of the patches are ours, whatever its configuration says."""
    vit_mae.config.mask_ratio = 0.3
    before = state(vit_mae)
    result = reconstruct(vit_mae, pixel_values, masks)
    before.assert_unchanged()
    vit_mae.eval()
    vit_mae.config.mask_ratio = 0.75
    outputs = vit_mae(pixel_values, noise=masks.float() + torch.rand(2, 16) / 2)
    assert torch.equal(outputs.mask.bool(), masks)
    torch.testing.assert_close(result.output, vit_mae.unpatchify(outputs.logits).detach())
    assert reconstruct_whole(vit_mae, pixel_values, num_parts=4).output.isfinite().all()


def test_vit_mae_needs_as_many_visible_patches_in_each_image(vit_mae, pixel_values, masks):
    masks[0] = ~masks[0]
    with pytest.raises(ValueError, match="same number of patches visible"):
        reconstruct(vit_mae, pixel_values, masks)


def test_model_stays_as_it_was(model, pixel_values, masks, state):
    before = state(model)
    reconstruct(model, pixel_values, masks)
    before.assert_unchanged()


@pytest.mark.parametrize("broken", ["model", "vit_mae"])
def test_model_stays_as_it_was_when_the_forward_raises(broken, request, pixel_values, masks, state, monkeypatch):
    model = request.getfixturevalue(broken)
    before = state(model)

    def fail(*args, **kwargs):
        raise RuntimeError("broken")

    with monkeypatch.context() as context:
        context.setattr(type(model.base_model.layernorm), "forward", fail)
        with pytest.raises(RuntimeError, match="broken"):
            reconstruct(model, pixel_values, masks)
    before.assert_unchanged()


def test_errors(model, norm_pix_model, pixel_values, masks):
    with pytest.raises(ValueError, match='`statistics` must be "none"'):
        reconstruct(model, pixel_values, masks, "oracle")
    with pytest.raises(ValueError, match="`statistics` must be one of"):
        reconstruct(norm_pix_model, pixel_values, masks, "mean")
    with pytest.raises(ValueError, match="must leave a patch visible"):
        reconstruct(norm_pix_model, pixel_values, torch.ones_like(masks), "visible")
    with pytest.raises(ValueError, match="`bool_masked_pos` must be a boolean"):
        reconstruct(model, pixel_values, masks.float())
    with pytest.raises(ValueError, match="`pixel_values` must have shape"):
        reconstruct(model, pixel_values[:, :2], masks)
    with pytest.raises(ValueError, match="`model` must be a model for pre-training"):
        reconstruct(model.crate_mae, pixel_values, masks)
    with pytest.raises(ValueError, match="`num_parts` must lie in"):
        reconstruct_whole(model, pixel_values, num_parts=1)
