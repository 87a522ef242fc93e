"""Look at a CRATE-MAE in a browser: mask a picture, see what it makes of it, and what its layers do on the way.

    python app/app.py
    python app/app.py --model FOLDER --port 7861

The folder is a Space as it is. Whatever is computed, `crate_mae_hf` computes; here stand the page and its callbacks.
"""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from transformers import AutoConfig, AutoImageProcessor, AutoModelForPreTraining, PreTrainedModel
from transformers.utils import logging

import crate_mae_hf
from crate_mae_hf.adapters import key_name, patch_grid
from crate_mae_hf.analysis import (
    attention_maps,
    block_masks,
    figures,
    layer_report,
    painted_masks,
    patch_codes,
    pca_maps,
    random_masks,
    reconstruct,
)
from crate_mae_hf.cli import clear_errors, parse_arguments
from crate_mae_hf.configuration_crate import to_pair
from crate_mae_hf.data.decoding import check_size, open_picture
from crate_mae_hf.evaluation.features import preprocess
from crate_mae_hf.image_processing_crate_mae import pil_to_array
from crate_mae_hf.loading import load, load_model

SHIPPED = str(crate_mae_hf.pretrained.path("fashion_mnist"))
EXAMPLES = sorted(Path(SHIPPED, "images").glob("*.png"))

RANDOM, BLOCK, PAINTED = "random patches", "one block", "by hand"
RECONSTRUCTION, ATTENTION, COMPONENTS = "Reconstruction", "Attention", "Principal components"
LAYERS, STEPS = "Layers", "Steps"
STATISTICS = {
    "visible": "the visible patches (honest)",
    "oracle": "the original (cheats)",
    "none": "nowhere (normalised patches)",
}
RATIOS = (0.05, 0.95)
PICTURE_SIZE = 420  # pictures that are smaller are enlarged to about so many pixels, without smoothing
DPI = 130

INTRODUCTION = """# CRATE-MAE, a white-box masked autoencoder
Hide part of a picture, and see what the model makes of the rest. Every layer first **compresses** its tokens towards a
few subspaces, then **sparsifies** them over a dictionary: the tabs show both at work."""
NOTHING_MASKED = "Nothing is masked. Paint over the picture: every patch that you touch will be masked."
ABOUT_ATTENTION = "How much the cls token attends to each patch: head by head in one layer, and layer by layer."
ABOUT_COMPONENTS = "What varies most among the patches' codes in the subspaces: equal colours are equal codes."
ABOUT_LAYERS = (
    "Compression: coding rates before and after each layer's attention. Sparsity: how many numbers each layer leaves "
    "other than zero."
)
ABOUT_STEPS = (
    "What the two steps of a layer change, how far its weights are from what they were derived for, and whether the "
    "decoder undoes the encoder."
)

THEME = gr.themes.Default(primary_hue="indigo", neutral_hue="slate", font=["system-ui", "sans-serif"])
CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
#examples .grid-wrap { min-height: 0; }
#examples .grid-container { grid-template: none / repeat(4, minmax(0, 1fr)) !important; grid-auto-rows: auto; }
#examples .thumbnail-item { height: auto; }
"""


@dataclass
class Arguments:
    """Where to look, and where to be seen."""

    model: str = field(default=SHIPPED, metadata={"help": "A CRATE-MAE: a folder, or a repository on the Hub."})
    port: int | None = field(default=None, metadata={"help": "Port of the page; the first free one from 7860 on."})


class Subject(NamedTuple):
    """A picture as the model takes it, `pixel_values` of shape `(1, num_channels, height, width)`."""

    model: PreTrainedModel
    processor: Any
    pixel_values: torch.Tensor

    @property
    def grid_size(self) -> tuple[int, int]:
        return patch_grid(self.model, self.pixel_values)

    def to_display(self, images: torch.Tensor) -> torch.Tensor:
        return figures.to_display(images, self.processor.image_mean, self.processor.image_std)


@contextmanager
def messages() -> Iterator[None]:
    """Context manager: what is wrong with the input is a message on the page, and nothing in the log."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


@lru_cache(maxsize=1)
def load_autoencoder(name: str) -> tuple[PreTrainedModel, Any]:
    """Return a CRATE-MAE and its image processor.

    Raises:
        ValueError: If the name is of none.
    """
    config = load(AutoConfig, name, "model")
    if config.model_type != "crate_mae":
        raise ValueError(f"`model`: {name} is no CRATE-MAE, but of type {config.model_type!r}.")
    model = load_model(AutoModelForPreTraining, name, "model", with_head=True)
    return model.eval(), load(AutoImageProcessor, name, "model")


def read_subject(path: str, name: str) -> Subject:
    """Read a picture for a model.

    Raises:
        ValueError: If the file is no picture, or smaller than a patch.
    """
    model, processor = load_autoencoder(name)
    file = Path(path)
    image = open_picture(file.read_bytes(), file.name)
    check_size(image, to_pair(model.config.patch_size), file.name)
    return Subject(model, processor, preprocess(processor, model.config.num_channels, [image]))


def draw_mask(
    subject: Subject, kind: str, mask_ratio: float, seed: int | None, painting: list[Image.Image]
) -> torch.Tensor:
    """Return which patches are masked, `(1, num_patches)`.

    Raises:
        ValueError: If there is no seed.
    """
    rows, columns = subject.grid_size
    if kind == PAINTED:
        height, width = subject.pixel_values.shape[2:]
        painted = torch.zeros(1, height, width, dtype=torch.bool)
        for layer in painting:
            opacity = layer.getchannel("A").resize((width, height), Image.Resampling.BOX)
            painted |= torch.from_numpy(np.array(opacity)) > 127
        return painted_masks(painted, (rows, columns))
    if seed is None:
        raise ValueError("The seed must be a whole number.")
    generator = torch.Generator().manual_seed(seed)
    if kind == BLOCK:
        return block_masks(1, (rows, columns), mask_ratio, generator)
    return random_masks(1, rows * columns, mask_ratio, generator)


def enlarge(picture: Image.Image) -> Image.Image:
    """Return a small picture with every pixel as a square of pixels."""
    return ImageOps.scale(picture, max(PICTURE_SIZE // max(picture.size), 1), Image.Resampling.NEAREST)


def to_picture(image: torch.Tensor) -> Image.Image:
    """Return an image of shape `(num_channels, height, width)` in [0, 1]; of other than 3 channels the first."""
    values = (image * 255).round().byte()
    return enlarge(Image.fromarray((values.permute(1, 2, 0) if len(values) == 3 else values[0]).numpy()))


def draw_reconstruction(subject: Subject, masks: torch.Tensor, statistics: Any) -> list[Any]:
    """Return the original, the masked picture, the reconstruction, and what to say of them."""
    if not masks.any():
        return [None, None, None, NOTHING_MASKED]
    result = reconstruct(subject.model, subject.pixel_values, masks, statistics)
    original = subject.to_display(result.original)
    pictures = (original, torch.where(result.pixel_mask, 0.5, original), subject.to_display(result.pasted))
    caption = (
        f"**{int(masks.sum())} of {masks.shape[1]}** patches are masked. Mean squared error over the masked pixels, in "
        f"the scale of the normalised picture: **{result.error.item():.3f}**"
    )
    return [*(to_picture(picture[0]) for picture in pictures), caption]


def draw_attention(subject: Subject, layer: int) -> list[Figure]:
    """Return figures of the heads of one layer, and of all layers."""
    images = subject.to_display(subject.pixel_values)
    num_layers = subject.model.config.num_hidden_layers
    maps = attention_maps(subject.model, subject.pixel_values, range(num_layers))
    return [
        figures.attention_heads(images, maps[:, layer - 1], layer),
        figures.attention_overlays(images, maps, range(1, num_layers + 1)),
    ]


def draw_components(subject: Subject, layer: int) -> list[Figure]:
    """Return a figure of the principal components of one layer."""
    images = subject.to_display(subject.pixel_values)
    components = pca_maps(patch_codes(subject.model, subject.pixel_values, layer - 1))
    caption = f"{key_name(subject.model)} of the patches in encoder layer {layer}"
    return [figures.pca_grid(images, components, caption)]


def draw(tab: str, path: str, name: str, layer: int, statistics: Any, *mask: Any) -> list[Any]:
    """Return what the open tab shows.

    Raises:
        ValueError: If something is wrong with the input.
    """
    subject = read_subject(path, name)
    if tab == RECONSTRUCTION:
        return draw_reconstruction(subject, draw_mask(subject, *mask), statistics)
    if tab == ATTENTION:
        drawn = draw_attention(subject, layer)
    elif tab == COMPONENTS:
        drawn = draw_components(subject, layer)
    else:
        report = layer_report(subject.model, subject.pixel_values)
        drawn = [figures.compression_and_sparsity(report) if tab == LAYERS else figures.layer_steps(report)]
    for figure in drawn:
        figure.set_dpi(DPI)
    return drawn


def prepare_mask(kind: str, path: str, name: str) -> tuple[dict, dict, dict, dict, dict, list]:
    """Show what a kind of mask needs: ratio and seed, or in place of the original the picture to paint over."""
    painting = kind == PAINTED
    canvas = None
    if painting:
        with suppress(ValueError):  # what is wrong with a picture, `show` says
            subject = read_subject(path, name)
            background = to_picture(subject.to_display(subject.pixel_values)[0])
            canvas = {"background": background, "layers": [], "composite": background}
    others = gr.update(visible=not painting)
    return others, others, others, gr.update(visible=painting), gr.update(visible=painting, value=canvas), []


def keep_painting(canvas: dict[str, Any] | None) -> list[Image.Image]:
    return canvas["layers"] if canvas else []


def draw_file(path: str) -> Image.Image:
    """Return a picture to be shown as it was chosen, before anything is cropped."""
    image = Image.fromarray(pil_to_array(open_picture(Path(path).read_bytes(), Path(path).name), num_channels=3))
    image.thumbnail((2 * PICTURE_SIZE, 2 * PICTURE_SIZE))
    return enlarge(image)


def choose_file(path: str | None, name: str) -> tuple[Any, Any]:
    """Take a file if it is a picture that the model can take; otherwise the former one stays."""
    if path is None:
        return gr.skip(), gr.skip()
    with messages():
        read_subject(path, name)
    return path, draw_file(path)


def choose_example(event: gr.SelectData) -> tuple[str, Image.Image]:
    path = str(EXAMPLES[event.index])
    return path, draw_file(path)


def choose_tab(event: gr.SelectData) -> tuple[str, dict]:
    """Say which tab is open, and show the choice of a layer where it counts."""
    return event.value, gr.update(visible=event.value in (ATTENTION, COMPONENTS))


def describe(model: PreTrainedModel) -> str:
    config = model.config
    height, width = to_pair(config.image_size)
    patch_height, patch_width = to_pair(config.patch_size)
    channels = {1: "grey", 3: "colour"}.get(config.num_channels, f"{config.num_channels} channels")
    return (
        f"{config.num_hidden_layers} + {config.decoder_num_hidden_layers} layers of width {config.hidden_size}, "
        f"{config.num_attention_heads} heads; {height} x {width} {channels}, patches of {patch_height} x {patch_width}."
    )


def fit_controls(model: PreTrainedModel) -> tuple[dict, dict]:
    """Return what statistics and layers there are to choose from."""
    choices = [(label, value) for value, label in STATISTICS.items()]
    if not model.config.norm_pix_loss:
        choices = [("not needed: the model predicts the pixels", "none")]
    layers = model.config.num_hidden_layers
    return (
        {"choices": choices, "value": choices[0][1]},
        {"maximum": layers, "value": layers},
    )


def choose_model(name: str) -> tuple[str, str, dict, dict]:
    """Load a model, and fit the controls to it."""
    with messages():
        model, _ = load_autoencoder(name.strip())
    statistics, layer = fit_controls(model)
    return name.strip(), describe(model), gr.update(**statistics), gr.update(**layer)


def build_page(name: str) -> gr.Blocks:
    """Lay out the page and connect it.

    Raises:
        ValueError: If the model is none.
    """
    model, _ = load_autoencoder(name)
    statistics_settings, layer_settings = fit_controls(model)
    shown = {"interactive": False, "format": "png", "buttons": []}
    plot = {"show_label": False, "format": "png"}
    with gr.Blocks(title="CRATE-MAE", analytics_enabled=False) as page:
        path, current = gr.State(str(EXAMPLES[0])), gr.State(name)
        tab, painting = gr.State(RECONSTRUCTION), gr.State([])
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                picture = gr.Image(draw_file(path.value), label="Picture", height=240, **shown)
                upload = gr.UploadButton("Upload a picture", file_types=["image"], variant="primary", elem_id="upload")
                gr.Markdown("or take a test image of Fashion-MNIST:")
                thumbnails = [draw_file(str(example)) for example in EXAMPLES]
                gallery = gr.Gallery(
                    thumbnails,
                    show_label=False,
                    columns=4,
                    height="auto",
                    allow_preview=False,
                    buttons=[],
                    elem_id="examples",
                )
                with gr.Accordion("Webcam", open=False):
                    camera = gr.Image(
                        type="filepath", image_mode=None, sources=["webcam"], show_label=False, buttons=[]
                    )
                with gr.Accordion("Model", open=False):
                    about = gr.Markdown(describe(model))
                    wanted = gr.Textbox(name, label="Folder, or repository on the Hub", max_lines=1)
                    load_button = gr.Button("Load", size="sm")
            with gr.Column(scale=3, min_width=480):
                with gr.Tabs() as tab_bar:
                    with gr.Tab(RECONSTRUCTION):
                        with gr.Row():
                            original = gr.Image(label="Original", **shown)
                            canvas = gr.ImageEditor(
                                label="Paint over it",
                                type="pil",
                                format="png",
                                height=420,
                                scale=2,
                                visible=False,
                                sources=(),
                                transforms=(),
                                layers=False,
                                buttons=[],
                                elem_id="canvas",
                                brush=gr.Brush(default_size=24, colors=["#6366f1"], color_mode="fixed"),
                            )
                            masked = gr.Image(label="Masked", elem_id="masked", **shown)
                            answer = gr.Image(label="Reconstruction", elem_id="answer", **shown)
                        caption = gr.Markdown(elem_id="caption")
                        paint = gr.Button("Mask what is painted over", variant="primary", visible=False)
                        with gr.Row():
                            kind = gr.Radio(
                                [RANDOM, BLOCK, PAINTED], value=RANDOM, label="Mask", scale=3, min_width=360
                            )
                            mask_ratio = gr.Slider(
                                *RATIOS,
                                value=min(max(model.config.mask_ratio, RATIOS[0]), RATIOS[1]),
                                step=0.05,
                                label="Mask ratio",
                                scale=2,
                                min_width=160,
                            )
                            seed = gr.Number(
                                0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, scale=1, min_width=90
                            )
                        statistics = gr.Radio(
                            **statistics_settings,
                            label="Brightness and contrast of the masked patches",
                            info="The model predicts patches of mean 0 and variance 1; both numbers come from ...",
                        )
                    with gr.Tab(ATTENTION):
                        gr.Markdown(ABOUT_ATTENTION)
                        heads, overlays = gr.Plot(elem_id="heads", **plot), gr.Plot(elem_id="overlays", **plot)
                    with gr.Tab(COMPONENTS):
                        gr.Markdown(ABOUT_COMPONENTS)
                        components = gr.Plot(elem_id="components", **plot)
                    with gr.Tab(LAYERS):
                        gr.Markdown(ABOUT_LAYERS)
                        rates = gr.Plot(elem_id="rates", **plot)
                    with gr.Tab(STEPS):
                        gr.Markdown(ABOUT_STEPS)
                        steps = gr.Plot(elem_id="steps", **plot)
                layer = gr.Slider(1, step=1, label="Encoder layer", visible=False, **layer_settings)

        outputs = {
            RECONSTRUCTION: [original, masked, answer, caption],
            ATTENTION: [heads, overlays],
            COMPONENTS: [components],
            LAYERS: [rates],
            STEPS: [steps],
        }

        def show(tab: str, *settings: Any) -> dict[Any, Any]:
            """Fill the open tab alone; what is wrong with the input is a message, and nothing outdated stays."""
            try:
                return dict(zip(outputs[tab], draw(tab, *settings), strict=True))
            except ValueError as error:
                gr.Warning(str(error))
                return dict.fromkeys(outputs[tab])

        # One at a time: the model is shared, and observed by hooks while it runs.
        one = {
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        upload.upload(choose_file, [upload, current], [path, picture], **one)
        camera.change(choose_file, [camera, current], [path, picture], **one)
        gallery.select(choose_example, None, [path, picture], **one)
        tab_bar.select(choose_tab, None, [tab, layer], **one)
        gr.on([load_button.click, wanted.submit], choose_model, wanted, [current, about, statistics, layer], **one)
        filling: dict[str, Any] = {
            "fn": show,
            "inputs": [tab, path, current, layer, statistics, kind, mask_ratio, seed, painting],
            "outputs": [each for group in outputs.values() for each in group],
            "trigger_mode": "always_last",
            **one,
        }
        gr.on(
            [kind.change, path.change, current.change],
            prepare_mask,
            [kind, path, current],
            [mask_ratio, seed, original, paint, canvas, painting],
            **one,
        ).then(**filling)
        # Not with every stroke: where Gradio listens to them, it hands on what was painted before the last one.
        paint.click(keep_painting, canvas, painting, **one).then(**filling)
        changes = [page.load, tab.change, statistics.change, seed.change, mask_ratio.release, layer.release]
        gr.on(changes, **filling)
    return page


def main() -> None:
    """Show the page."""
    (args,) = parse_arguments([Arguments])
    if args.port is not None and not 1 <= args.port <= 65535:
        raise ValueError(f"`port` must lie in [1, 65535], got {args.port}.")
    build_page(args.model).launch(server_port=args.port, theme=THEME, css=CSS, footer_links=["gradio"])


if __name__ == "__main__":
    logging.set_verbosity_warning()
    logging.disable_progress_bar()
    with clear_errors():
        main()
