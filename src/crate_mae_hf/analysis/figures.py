"""Pictures of what the analysis measures; each function returns a `matplotlib.figure.Figure` to be saved or shown.

Figures are made without pyplot: no global state, no window, nothing to close.
"""

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .attention import upsample
from .layers import LayerReport
from .pca import PcaMaps
from .reconstruction import Reconstruction

STATISTICS_LABELS = {
    "none": "",
    "visible": "\n(statistics from\nvisible patches)",
    "oracle": "\n(oracle statistics:\nleaks the answer)",
}


def to_display(images: torch.Tensor, image_mean: Sequence[float], image_std: Sequence[float]) -> torch.Tensor:
    """Undo the processor's normalisation: `(..., num_channels, height, width)` to [0, 1], clipped."""
    mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (image_mean, image_std))
    return (images.detach().float().cpu() * std + mean).clamp(0, 1)


def show(axes: Axes, image: torch.Tensor) -> None:
    """Draw an image of shape `(num_channels, height, width)` in [0, 1]: colour if it has 3 channels, else the first."""
    if image.shape[0] == 3:
        axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    else:
        axes.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _caption(figure: Figure, text: str) -> None:
    """Write below a figure which tensor was measured, in lines as wide as the figure."""
    figure.supxlabel(fill(text, width=int(figure.get_figwidth() * 17)), fontsize=7)


def image_axes(num_rows: int, num_columns: int, caption: str, cell: float = 1.15) -> tuple[Figure, np.ndarray]:
    """Return a figure of square cells without ticks, with a caption below."""
    figure = Figure(figsize=(cell * num_columns + 0.3, cell * num_rows + 1.0), layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    _caption(figure, caption)
    return figure, axes


def reconstruction_grid(
    reconstructions: Reconstruction | Sequence[Reconstruction],
    image_mean: Sequence[float],
    image_std: Sequence[float],
) -> Figure:
    """Draw one row per image: the original, then masked image, output, and output with the visible patches pasted.

    A masked image is not drawn again where the mask is the same as before; of an image that was predicted as a whole
    (`reconstruct_whole`), the output alone is drawn.

    Args:
        reconstructions: One, or several of the same images (other masks, other mask ratios, other statistics), which
            follow each other from left to right.
        image_mean: The image processor's mean, one per channel.
        image_std: The image processor's standard deviation, one per channel.
    """
    if isinstance(reconstructions, Reconstruction):
        reconstructions = [reconstructions]
    originals = to_display(reconstructions[0].original, image_mean, image_std)
    columns = [("original", originals)]
    previous_mask = None
    for reconstruction in reconstructions:
        output = to_display(reconstruction.output, image_mean, image_std)
        title = f"output{STATISTICS_LABELS[reconstruction.statistics]}"
        if reconstruction.statistics == "none" and any(r.statistics != "none" for r in reconstructions):
            title = "output\n(normalised\npatches)"
        if reconstruction.num_passes > 1:
            columns.append((f"{reconstruction.num_passes} passes:\n{title}", output))
            continue
        if previous_mask is None or not torch.equal(reconstruction.bool_masked_pos, previous_mask):
            masked = torch.where(reconstruction.pixel_mask, 0.5, originals)
            columns.append((f"{reconstruction.mask_ratio:.0%} masked", masked))
        previous_mask = reconstruction.bool_masked_pos
        pasted = to_display(reconstruction.pasted, image_mean, image_std)
        columns += [(title, output), ("output,\nvisible pasted", pasted)]
    errors = ", ".join(f"{r.error.mean():.3f} ± {r.error.std(correction=0):.3f}" for r in reconstructions)
    figure, axes = image_axes(
        len(originals),
        len(columns),
        "Measured: predicted pixels. Mean squared error over the masked pixels, in the scale of the normalised images, "
        f"mean ± standard deviation over images, from left to right: {errors}.",
    )
    for column, (title, pictures) in enumerate(columns):
        axes[0, column].set_title(title, fontsize=8)
        for row, picture in enumerate(pictures):
            show(axes[row, column], picture)
    return figure


def color_grid(pictures: Mapping[str, torch.Tensor]) -> Figure:
    """Draw one row per image: what the towers of a split-brain autoencoder see and predict, beside the truth.

    Args:
        pictures: Caption -> pictures in [0, 1], see `color_pictures`.
    """
    figure, axes = image_axes(
        len(next(iter(pictures.values()))),
        len(pictures),
        "Predicted: annealed means of the bins' probabilities, one per target, bilinear in between. Colours that the "
        "second tower sees are shown at one lightness.",
    )
    for column, (caption, images) in enumerate(pictures.items()):
        axes[0, column].set_title(caption, fontsize=8)
        for row, image in enumerate(images):
            show(axes[row, column], image)
    return figure


def mask_grid(images: torch.Tensor, masks: torch.Tensor, grid_size: tuple[int, int]) -> Figure:
    """Draw images above the same images masked, and how often each position is masked over all masks.

    Args:
        images: In [0, 1], `(num_images, num_channels, height, width)`, see `to_display`.
        masks: 1 where a patch is masked, `(num_masks, rows * columns)`; the first ones are those of the images.
        grid_size: Number of patches as (rows, columns).
    """
    patches = masks[: len(images)].float().unflatten(1, grid_size).unsqueeze(1)
    pixel_mask = torch.nn.functional.interpolate(patches, size=images.shape[2:], mode="nearest").bool()
    frequency = masks.float().mean(dim=0)
    figure, axes = image_axes(
        2,
        len(images) + 1,
        f"Measured: masks, {masks.float().mean():.0%} of the patches. On the right: share of {len(masks)} images in "
        f"which a position is masked, {frequency.min():.2f} to {frequency.max():.2f}.",
    )
    for column, (image, masked) in enumerate(zip(images, torch.where(pixel_mask, 0.5, images), strict=True)):
        show(axes[0, column], image)
        show(axes[1, column], masked)
    axes[0, -1].set_title("masked share", fontsize=8)
    drawn = axes[0, -1].imshow(frequency.unflatten(0, grid_size).numpy(), cmap="viridis", vmin=0, vmax=1)
    figure.colorbar(drawn, ax=axes[1, -1], location="top", fraction=0.9, ticks=[0, 0.5, 1])
    return figure


def attention_heads(images: torch.Tensor, maps: torch.Tensor, layer: int) -> Figure:
    """Draw one row per image: the image, and how much its cls token attends to each patch, head by head.

    Args:
        images: In [0, 1], `(num_images, num_channels, height, width)`, see `to_display`.
        maps: Attention of one layer, `(num_images, num_heads, rows, columns)`.
        layer: The layer's number, from 1, for the caption.
    """
    figure, axes = image_axes(
        len(images),
        maps.shape[1] + 1,
        f"Measured: softmax(w_cls W\u1d40 / sqrt(p)) of encoder layer {layer}, cls query to patches, nothing masked; "
        "bilinear between patches. Each map from 0 (black) to its own largest attention (yellow).",
    )
    axes[0, 0].set_title("image", fontsize=8)
    for row, (image, heads) in enumerate(zip(images, upsample(maps, (images.shape[2], images.shape[3])), strict=True)):
        show(axes[row, 0], image)
        for head, values in enumerate(heads):
            axes[row, head + 1].imshow(values.numpy(), cmap="inferno", vmin=0)
            axes[0, head + 1].set_title(f"head {head + 1}", fontsize=8)
    return figure


def attention_overlays(images: torch.Tensor, maps: torch.Tensor, layers: Sequence[int]) -> Figure:
    """Draw one row per image: the image, and the attention of its cls token laid over it, layer by layer.

    Args:
        images: In [0, 1], `(num_images, num_channels, height, width)`, see `to_display`.
        maps: Attention, `(num_images, len(layers), num_heads, rows, columns)`; the mean over the heads is drawn.
        layers: Numbers of the layers, from 1.
    """
    figure, axes = image_axes(
        len(images),
        len(layers) + 1,
        "Measured: attention of the cls query to the patches, mean over heads, nothing masked; bilinear between "
        "patches. The image in grey, over it each map from 0 (blue) to its own largest attention (red).",
    )
    axes[0, 0].set_title("image", fontsize=8)
    overlays = upsample(maps.mean(dim=2), (images.shape[2], images.shape[3]))
    for row, (image, values) in enumerate(zip(images, overlays, strict=True)):
        show(axes[row, 0], image)
        for column, (layer, attention) in enumerate(zip(layers, values, strict=True), start=1):
            show(axes[row, column], image.mean(dim=0, keepdim=True))
            axes[row, column].imshow(attention.numpy(), cmap="turbo", vmin=0, alpha=0.55)
            axes[0, column].set_title(f"layer {layer}", fontsize=8)
    return figure


def pca_grid(images: torch.Tensor, maps: PcaMaps, tensor_name: str) -> Figure:
    """Draw one row per image: the image, the first component, the foreground, and three components of the foreground.

    Args:
        images: In [0, 1], `(num_images, num_channels, height, width)`, see `to_display`.
        maps: Their maps.
        tensor_name: What the components were taken of, for the caption.
    """
    figure, axes = image_axes(
        len(images),
        4,
        f"Measured: principal components of {tensor_name}, joint over the images. The first explains "
        f"{maps.explained:.0%} of the variance; red, green and blue are components 1 to 3 of the foreground alone.",
    )
    titles = ("image", "component 1\n(0 to 1)", "foreground\n(> 0.5, filled)", "foreground,\n3 components")
    for column, title in enumerate(titles):
        axes[0, column].set_title(title, fontsize=8)
    for row, image in enumerate(images):
        show(axes[row, 0], image)
        axes[row, 1].imshow(maps.first_component[row].numpy(), cmap="viridis", vmin=0, vmax=1)
        axes[row, 2].imshow(maps.foreground[row].numpy(), cmap="gray", vmin=0, vmax=1)
        show(axes[row, 3], maps.rgb[row])
    return figure


def _curve(
    ax: Axes, measures: dict[str, torch.Tensor], name: str, label: str, colour: str, dashed: bool = False
) -> None:
    """Draw a measure over the layers: mean over images, and mean ± standard deviation as a band."""
    values = measures[name]
    layers, mean, std = (
        np.arange(1, len(values) + 1),
        values.mean(dim=1).numpy(),
        values.std(dim=1, correction=0).numpy(),
    )
    ax.plot(layers, mean, "o--" if dashed else "o-", color=colour, label=label, markersize=3, linewidth=1.2)
    ax.fill_between(layers, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)


def _finish(ax: Axes, title: str, ylabel: str, part: str = "encoder", from_zero: bool = True) -> None:
    """Label a panel of curves, and leave room for its legend."""
    ax.set_title(title, fontsize=9)
    ax.set_xlabel(f"{part} layer", fontsize=8)
    ax.set_ylabel(ylabel, fontsize=8)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.tick_params(labelsize=7)
    ax.grid(alpha=0.3)
    ax.margins(y=0.3)
    if from_zero:
        ax.set_ylim(bottom=0)
    ax.legend(fontsize=7)


def _over_images(report: LayerReport) -> str:
    """Say what the curves of a report are, for captions."""
    if report.num_images == 1:
        return "One image."
    return f"Mean and standard deviation over {report.num_images} images."


def compression_and_sparsity(report: LayerReport) -> Figure:
    """Draw what the papers plot of an encoder, layer by layer: compression and sparsity.

    Args:
        report: The measurements.
    """
    figure = Figure(figsize=(9.6, 3.3), layout="constrained")
    rates, raw, share = figure.subplots(1, 3)
    for ax, suffix in ((rates, "_unit"), (raw, "")):
        _curve(ax, report.encoder, f"subspace_rate_before{suffix}", "before MSSA: U z", "tab:blue", dashed=True)
        _curve(ax, report.encoder, f"subspace_rate_after{suffix}", "after MSSA: U z_half", "tab:orange")
    rates.axhline(report.rate_bound, color="grey", linestyle=":", linewidth=1, label="bound d/2 log(1 + 1/eps²)")
    _finish(rates, "compression, unit-norm tokens", "$R^c$ [nats]")
    _finish(raw, "compression, raw tokens", "$R^c$ [nats]")
    code = "A_2, the code in the layer" if report.is_overcomplete else "z', the layer's output"
    _curve(share, report.encoder, "nonzero_share", code, "tab:green")
    share.set_ylim(0, 1)
    _finish(share, "sparsity (lower is sparser)", "share of non-zero entries")
    _caption(
        figure,
        "Measured: tokens before and after each layer's MSSA step through its own U, and each layer's "
        f"{'code' if report.is_overcomplete else 'output'}. {_over_images(report)}",
    )
    return figure


def layer_steps(report: LayerReport) -> Figure:
    """Draw what each encoder layer does in its two parts, what its weights are like, and how the decoder undoes it.

    Args:
        report: The measurements.
    """
    figure = Figure(figsize=(9.6, 6.0), layout="constrained")
    (rate, energy, residual), (penalty, weights, inversion) = figure.subplots(2, 3)
    encoder, decoder = report.encoder, report.decoder
    _curve(rate, encoder, "coding_rate", "z', raw", "tab:purple")
    _curve(rate, encoder, "coding_rate_unit", "z', unit-norm tokens", "tab:pink", dashed=True)
    _finish(rate, "coding rate of the output", "$R$ [nats]")
    _curve(energy, encoder, "mssa_energy", "MSSA: |z_half - z|² / |z|²", "tab:blue")
    if report.is_overcomplete:
        change, measured = "|A_2 D̂\u1d40|² / |z_half|²", "the codes A_1 and A_2 of n"
        codes = {
            "before": "a = 0, before ISTA",
            "between": "a = A_1, after one step",
            "after": "a = A_2, after two steps",
        }
    else:
        change, measured = "|z' - n|² / |n|²", "z' = ISTA(n)"
        codes = {"before": "a = n, before ISTA", "after": "a = z', after ISTA"}
    _curve(energy, encoder, "ista_energy", f"ISTA: {change}", "tab:green")
    _finish(energy, "energy of the two steps", "relative energy")
    colours = {"before": "tab:blue", "between": "tab:olive", "after": "tab:green"}
    for ax, name, title, ylabel in (
        (residual, "residual", "sparse coding: residual", "1/2 |n - a D\u1d40|² per token"),
        (penalty, "l1", "sparse coding: l1 term", "lambda |a|_1 per token"),
    ):
        for moment, label in codes.items():
            _curve(ax, encoder, f"{name}_{moment}", label, colours[moment], dashed=moment == "before")
        _finish(ax, title, ylabel)
    _draw_weights(weights, report)
    mirrored = ""
    if "inversion" in decoder:
        mirrored = "Decoder layer l is given z^(L-l+1) and compared with z^(L-l), the input of the layer it mirrors. "
        _curve(inversion, decoder, "inversion", "g_l alone", "tab:red")
        _curve(inversion, decoder, "inversion_in_flow", "in the forward", "tab:orange")
        _curve(inversion, decoder, "inversion_identity", "doing nothing", "grey", dashed=True)
        inversion.set_ylim(top=1)
        _finish(inversion, "does the decoder layer invert?", "cosine to z^(L-l)", "decoder", from_zero=False)
    else:
        inversion.set_axis_off()
    _caption(
        figure,
        f"Measured: n = LN(z_half), {measured}, tokens and weights of each layer. {mirrored}{_over_images(report)}",
    )
    return figure


def _draw_weights(ax: Axes, report: LayerReport) -> None:
    """Draw what the subspaces and the dictionaries of each encoder layer are like."""
    _curve(ax, report.encoder, "subspace_coherence", "overlap of the K subspaces", "tab:blue")
    if not report.is_overcomplete:
        _curve(ax, report.encoder, "dictionary_defect", "|D\u1d40D - I| / sqrt(d)", "tab:green")
        _finish(ax, "distance from the assumptions", "0 = orthogonal")
        return
    _curve(ax, report.encoder, "step_bound", "eta |D|²: descent up to 1", "tab:green")
    if "dictionary_agreement" in report.encoder:
        _curve(ax, report.encoder, "dictionary_agreement", "cosine of atoms of D and D̂", "tab:red")
    _finish(ax, "the subspaces and the dictionaries", "cosine, or eta |D|²", from_zero=False)
