"""Figures draw the numbers they are given, and say what was measured."""

from io import BytesIO

import numpy as np
import pytest
import torch

from crate_mae_hf.analysis import (
    attention_maps,
    figures,
    layer_report,
    patch_codes,
    pca_maps,
    random_masks,
    reconstruct,
    reconstruct_whole,
)

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def texts(figure) -> list[str]:
    return [ax.get_title().replace("\n", " ") for ax in figure.axes]


def caption(figure) -> str:
    return figure.get_supxlabel().replace("\n", " ")


def assert_nothing_is_cut_off(figure) -> None:
    """No text reaches over the edge of the figure."""
    figure.savefig(BytesIO(), dpi=100)
    box = figure.bbox
    for ax in figure.axes:
        for artist in (ax.title, ax.xaxis.label, ax.yaxis.label):
            if artist.get_text():
                extent = artist.get_window_extent()
                assert extent.x0 >= box.x0 - 1, artist
                assert extent.x1 <= box.x1 + 1, artist
                assert extent.y1 <= box.y1 + 1, artist
    extent = figure._supxlabel.get_window_extent()
    assert extent.x0 >= box.x0 - 1
    assert extent.x1 <= box.x1 + 1


def test_to_display_undoes_the_normalisation():
    images = torch.rand(2, 3, 4, 5)
    normalized = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(figures.to_display(normalized, MEAN, STD), images)
    assert figures.to_display(torch.tensor([[[[9.0, -9.0]]]]), [0.5], [0.1]).tolist() == [[[[1, 0]]]]


def test_mask_grid():
    images = torch.rand(3, 1, 8, 8)
    masks = torch.tensor([[1, 0, 0, 1], [1, 0, 1, 0], [1, 0, 0, 1], [1, 0, 1, 0]])
    figure = figures.mask_grid(images, masks, (2, 2))
    drawn = [ax.images[0].get_array() for ax in figure.axes if ax.images]
    assert np.allclose(drawn[3], [[1, 0], [0.5, 0.5]])
    masked = torch.from_numpy(np.asarray(drawn[4]))
    assert (masked[:4, :4] == 0.5).all()
    assert torch.equal(masked[:4, 4:], images[0, 0, :4, 4:])
    assert "50% of the patches" in caption(figure)
    assert "0.00 to 1.00" in caption(figure)
    assert_nothing_is_cut_off(figure)


def test_reconstruction_grid(model, pixel_values):
    masks = random_masks(2, 16, 0.75)
    reconstruction = reconstruct(model, pixel_values, masks)
    figure = figures.reconstruction_grid(reconstruction, MEAN, STD)
    assert texts(figure)[:4] == ["original", "75% masked", "output", "output, visible pasted"]
    assert f"{reconstruction.error.mean():.3f}" in caption(figure)
    drawn = [ax.images[0].get_array() for ax in figure.axes]
    original = figures.to_display(pixel_values, MEAN, STD)
    np.testing.assert_allclose(drawn[4], original[1].permute(1, 2, 0))
    mask = reconstruction.pixel_mask[1, 0].numpy()
    assert (drawn[5][mask] == 0.5).all()
    np.testing.assert_allclose(drawn[5][~mask], drawn[4][~mask])
    np.testing.assert_allclose(drawn[6], figures.to_display(reconstruction.output, MEAN, STD)[1].permute(1, 2, 0))
    np.testing.assert_allclose(drawn[7][~mask], drawn[4][~mask])
    np.testing.assert_allclose(drawn[7][mask], drawn[6][mask])
    assert_nothing_is_cut_off(figure)


def test_reconstruction_grid_of_several(model, pixel_values):
    model.config.norm_pix_loss = True
    masks = random_masks(2, 16, 0.5)
    results = [reconstruct(model, pixel_values, masks, statistics) for statistics in ("visible", "oracle")]
    results += [reconstruct_whole(model, pixel_values, 2), reconstruct(model, pixel_values, random_masks(2, 16, 0.75))]
    figure = figures.reconstruction_grid(results, MEAN, STD)
    assert texts(figure)[: len(figure.axes) // 2] == [
        "original",
        "50% masked",
        "output (statistics from visible patches)",
        "output, visible pasted",
        "output (oracle statistics: leaks the answer)",  # the same mask is drawn once
        "output, visible pasted",
        "2 passes: output (normalised patches)",
        "75% masked",
        "output (normalised patches)",
        "output, visible pasted",
    ]
    assert_nothing_is_cut_off(figure)


def test_grey_images_and_one_image():
    reconstruction = figures.Reconstruction(
        original=torch.zeros(1, 1, 4, 4),
        output=torch.ones(1, 1, 4, 4),
        bool_masked_pos=torch.tensor([[True, False]]),
        pixel_mask=torch.tensor([True, False]).repeat_interleave(2).expand(1, 1, 4, 4),
        statistics="none",
    )
    figure = figures.reconstruction_grid(reconstruction, [0.25], [0.5])
    assert [ax.images[0].get_array()[0].tolist() for ax in figure.axes] == [
        [0.25] * 4,
        [0.5, 0.5, 0.25, 0.25],
        [0.75] * 4,
        [0.75, 0.75, 0.25, 0.25],
    ]


def test_attention_figures(model, pixel_values):
    maps = attention_maps(model, pixel_values, layers=[0, 2])
    images = figures.to_display(pixel_values, MEAN, STD)
    heads = figures.attention_heads(images, maps[:, 1], layer=3)
    assert texts(heads)[:5] == ["image", "head 1", "head 2", "head 3", "head 4"]
    assert "encoder layer 3" in caption(heads)
    assert heads.axes[1].images[0].get_array().shape == (32, 32)
    overlays = figures.attention_overlays(images, maps, layers=[1, 3])
    assert texts(overlays)[:3] == ["image", "layer 1", "layer 3"]
    drawn = overlays.axes[2].images[1].get_array()
    np.testing.assert_allclose(drawn.mean(), maps[0, 1].mean(), rtol=1e-3)
    for figure in (heads, overlays):
        assert_nothing_is_cut_off(figure)


def test_pca_grid(model, pixel_values):
    maps = pca_maps(patch_codes(model, pixel_values))
    figure = figures.pca_grid(figures.to_display(pixel_values, MEAN, STD), maps, "the codes")
    assert "components of the codes" in caption(figure)
    np.testing.assert_array_equal(figure.axes[6].images[0].get_array(), maps.foreground[1].numpy())
    np.testing.assert_allclose(figure.axes[7].images[0].get_array(), maps.rgb[1].permute(1, 2, 0))
    assert_nothing_is_cut_off(figure)


@pytest.mark.parametrize("draw", [figures.compression_and_sparsity, figures.layer_steps])
@pytest.mark.parametrize("name", ["model", "alpha"])
def test_layer_figures(draw, name, request, pixel_values):
    report = layer_report(request.getfixturevalue(name), pixel_values)
    figure = draw(report)
    for ax in figure.axes:
        if ax.get_legend() is not None:
            assert ax.get_xlabel().endswith("layer")
            assert ax.get_ylabel()
            num_layers = 2 if ax.get_xlabel().startswith("decoder") else 3
            assert len(ax.lines[0].get_xdata()) == num_layers
    assert "2 images" in caption(figure)
    assert_nothing_is_cut_off(figure)
    curves = {line.get_label(): line.get_ydata() for ax in figure.axes for line in ax.lines}
    code = "A_2, the code in the layer" if report.is_overcomplete else "z', the layer's output"
    name, label = (
        ("nonzero_share", code)
        if draw is figures.compression_and_sparsity
        else ("mssa_energy", "MSSA: |z_half - z|² / |z|²")
    )
    np.testing.assert_allclose(curves[label], report.encoder[name].mean(dim=1).numpy())
