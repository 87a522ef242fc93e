import numpy as np
import PIL.Image
import pytest
import torch
from transformers import CLIPImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging

from crate_mae_hf import CrateMaeConfig, CrateMaeImageProcessor, CrateMaeImageProcessorPil, CrateSplitBrainConfig
from crate_mae_hf.data.augmentation import build_train_transform
from crate_mae_hf.evaluation.features import preprocess

SMALL = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
PLAIN = {**SMALL, "do_normalize": False}


@pytest.fixture(params=[CrateMaeImageProcessor, CrateMaeImageProcessorPil])
def processor_class(request):
    return request.param


@pytest.fixture
def picture() -> np.ndarray:
    """A smooth colour picture, (48, 60, 3) in 8 bits."""
    y, x = np.mgrid[0:48, 0:60] / 10
    return np.uint8(127.5 * (1 + np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=-1)))


def test_defaults_are_the_papers_evaluation(processor_class):
    image = PIL.Image.new("RGB", (640, 480), (255, 0, 128))
    values = processor_class()(image, return_tensors="pt").pixel_values
    assert values.shape == (1, 3, 224, 224)
    expected = (torch.tensor([1, 0, 128 / 255]) - torch.tensor(IMAGENET_DEFAULT_MEAN)) / torch.tensor(
        IMAGENET_DEFAULT_STD
    )
    torch.testing.assert_close(values[0, :, 100, 100], expected, atol=1e-5, rtol=1e-5)


def test_shorter_edge_and_centre_crop(processor_class, picture):
    values = processor_class(**PLAIN)(PIL.Image.fromarray(picture), return_tensors="np").pixel_values[0]
    resized = np.asarray(PIL.Image.fromarray(picture).resize((45, 36), PIL.Image.Resampling.BICUBIC)) / 255
    np.testing.assert_allclose(values, resized[2:34, 6:38].transpose(2, 0, 1), atol=1.1 / 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "F"])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_any_mode(processor_class, picture, mode, num_channels):
    grey = PIL.Image.fromarray(picture[..., 0])
    image = {
        "PA": lambda: PIL.Image.fromarray(picture).convert("P").convert("PA"),
        "La": lambda: grey.convert("LA").convert("La"),
        "RGBa": lambda: PIL.Image.fromarray(picture).convert("RGBA").convert("RGBa"),
        "F": lambda: grey.convert("F"),
    }.get(mode, lambda: PIL.Image.fromarray(picture).convert(mode))()
    assert image.mode == mode
    processor = processor_class(**PLAIN, num_channels=num_channels)
    values = processor(image, return_tensors="pt").pixel_values
    assert values.shape == (1, num_channels, 32, 32)
    reference = (image.convert(mode.upper()) if mode in ("La", "RGBa") else image).convert("RGB")
    if mode != "PA":  # Pillow converts PA by way of RGBA only
        expected = processor(reference, return_tensors="pt").pixel_values
        torch.testing.assert_close(values, expected, atol=1e-6, rtol=0)
    assert values.std() > 0.1


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_keep_their_brightness(processor_class, picture, mode):
    values = picture[..., 0].astype(np.int32) * 257
    image = (
        PIL.Image.frombytes(mode, (60, 48), values.astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]).tobytes())
        if mode != "I"
        else PIL.Image.fromarray(values)
    )
    assert image.mode == mode
    processor = processor_class(**PLAIN)
    expected = processor(PIL.Image.fromarray(picture[..., 0]), return_tensors="pt").pixel_values
    for sixteen_bits in (image, values.astype(np.uint16), torch.from_numpy(values.astype(np.uint16))):
        assert torch.equal(processor(sixteen_bits, return_tensors="pt").pixel_values, expected)


def scaled_kinds(picture: np.ndarray) -> dict[str, object]:
    """The same picture in every kind of numbers that has an evident range."""
    grey = picture[..., 0]
    return {
        "mode F, 0 to 1": PIL.Image.fromarray(grey.astype(np.float32) / 255),
        "mode F, 0 to 255": PIL.Image.fromarray(grey.astype(np.float32)),
        "mode I, 0 to 255": PIL.Image.fromarray(grey.astype(np.int32)),
        **{f"{kind} to 1": (picture / 255).astype(kind) for kind in (np.float32, np.float64)},
        "float16 to 1": torch.from_numpy(picture / 255).half(),
        "float32 to 255": picture.astype(np.float32),
        **{f"{kind} to 255": picture.astype(kind) for kind in (np.int16, np.int32, np.int64)},
        **{f"{kind} to 65535": picture.astype(kind) * 257 for kind in (np.int32, np.int64)},
    }


def test_numbers_of_any_kind_are_the_picture_in_8_bits(processor_class, picture):
    picture[0, :2] = [[0], [255]]
    processor = processor_class(**PLAIN)
    for kind, image in scaled_kinds(picture).items():
        same = picture[..., 0] if kind.startswith("mode") else picture
        expected = processor(same, return_tensors="pt").pixel_values
        values = processor(image, return_tensors="pt").pixel_values
        torch.testing.assert_close(values.float(), expected, atol=1.6 / 255, rtol=0, msg=kind)


def test_floats_of_other_depths_become_grey(processor_class, picture):
    processor = processor_class(**PLAIN, num_channels=1)
    expected = processor(picture, return_tensors="pt").pixel_values
    for image in (picture / 255, torch.from_numpy(picture).half() / 255):
        values = processor(image, return_tensors="pt").pixel_values
        torch.testing.assert_close(values.float(), expected, atol=2 / 255, rtol=0)


def test_booleans_are_black_and_white(processor_class, picture):
    mask = picture[..., 0] > 127
    processor = processor_class(**PLAIN)
    expected = processor(PIL.Image.fromarray(mask), return_tensors="pt").pixel_values
    assert torch.equal(processor(mask, return_tensors="pt").pixel_values, expected)
    assert expected.max() == 1


def test_floats_are_taken_as_they_are_where_nothing_is_rescaled(processor_class, picture):
    floats = picture.astype(np.float32) / 50 - 2
    whole = {"do_resize": False, "do_center_crop": False, "do_normalize": False, "do_rescale": False}
    values = processor_class(**whole)(floats, return_tensors="np").pixel_values[0]
    np.testing.assert_array_equal(values, floats.transpose(2, 0, 1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("settings", [{}, {"do_rescale": False}, {"do_convert_rgb": False}])
def test_pixels_must_be_finite(processor_class, picture, value, settings):
    floats = picture.astype(np.float32) / 255
    floats[5, 5, 1] = value
    with pytest.raises(ValueError, match="Pixels must be finite, some are NaN or infinite"):
        processor_class(**{**PLAIN, **settings})(floats)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.astype(np.float32) * 40, r"these lie in \[0, 10200\]"),
        (lambda x: x / 100 - 1, r"these lie in \[-1, 1\.55\]"),
        (lambda x: x.astype(np.int32) * 1000, r"these lie in \[0, 255000\]"),
        (lambda x: x.astype(np.int64) - 1, r"these lie in \[-1, 254\]"),
        (lambda x: PIL.Image.fromarray(x[..., 0].astype(np.int32) * 1000), r"these lie in \[0, 255000\]"),
    ],
)
def test_values_without_an_evident_range_are_an_error(processor_class, picture, change, message):
    picture[0, :2] = [[0], [255]]
    with pytest.raises(ValueError, match=message):
        processor_class(**PLAIN)(change(picture))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_dark_picture_of_16_bits_stays_dark(processor_class, picture, tmp_path, kind):
    path = tmp_path / f"dark.{kind.lower()}"
    PIL.Image.fromarray(picture[..., 0].astype(np.uint16)).save(path, kind)
    wide = PIL.Image.open(path)
    image = PIL.Image.fromarray(np.asarray(wide).astype(np.int32))  # as some versions of Pillow read it
    image.format = wide.format
    if kind == "TIFF":
        image.tag_v2 = wide.tag_v2
    for dark in (wide, image):
        assert processor_class(**PLAIN)(dark, return_tensors="pt").pixel_values.max() < 1 / 200


def test_transparency_goes_over_white(processor_class):
    transparent = PIL.Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    palette = transparent.convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    processor = processor_class(**PLAIN)
    for image in (transparent, palette, np.asarray(transparent), np.zeros((4, 40, 40), dtype=np.float32)):
        values = processor(image, return_tensors="pt").pixel_values
        torch.testing.assert_close(values, torch.ones_like(values))
    floats = np.zeros((4, 40, 40), dtype=np.float32)
    values = processor(floats, return_tensors="pt", rescale_factor=1.0).pixel_values
    torch.testing.assert_close(values, torch.ones_like(values))


def test_arrays_and_tensors_in_any_layout(processor_class, picture):
    processor = processor_class(**SMALL)
    expected = processor(PIL.Image.fromarray(picture), return_tensors="pt").pixel_values
    first = np.ascontiguousarray(picture.transpose(2, 0, 1))
    for image in (picture, first, torch.from_numpy(picture), torch.from_numpy(first), [picture], first[None]):
        assert torch.equal(processor(image, return_tensors="pt").pixel_values, expected)


def test_batches_of_mixed_sizes_and_kinds(processor_class, picture):
    images = [
        PIL.Image.fromarray(picture),
        picture[:, :, 0],
        torch.from_numpy(picture[:40]),
        PIL.Image.fromarray(picture).convert("RGBA").resize((100, 36)),
    ]
    processor = processor_class(**SMALL)
    batch = processor(images, return_tensors="pt").pixel_values
    assert batch.shape == (4, 3, 32, 32)
    for image, values in zip(images, batch, strict=True):
        torch.testing.assert_close(processor(image, return_tensors="pt").pixel_values[0], values, atol=1e-6, rtol=0)


def test_colour_becomes_grey_as_pillow_does(processor_class, picture):
    processor = processor_class(**PLAIN, num_channels=1)
    expected = processor(PIL.Image.fromarray(picture).convert("L"), return_tensors="pt").pixel_values
    for image in (PIL.Image.fromarray(picture), picture, torch.from_numpy(picture).permute(2, 0, 1)):
        values = processor(image, return_tensors="pt").pixel_values
        torch.testing.assert_close(values, expected, atol=1.1 / 255, rtol=0)


def test_thirteen_channels(processor_class):
    bands = np.random.default_rng(0).uniform(0, 10_000, (13, 48, 60)).astype(np.float32)
    processor = processor_class(
        **SMALL, num_channels=13, rescale_factor=1e-4, image_mean=[0.5] * 13, image_std=[0.2] * 13
    )
    values = processor([bands, bands.transpose(1, 2, 0).astype(np.uint16)], return_tensors="pt").pixel_values
    assert values.shape == (2, 13, 32, 32)
    torch.testing.assert_close(values[0], values[1], atol=2e-3, rtol=0)
    channel = PIL.Image.fromarray(bands[7]).resize((45, 36), PIL.Image.Resampling.BICUBIC)
    expected = (np.asarray(channel)[2:34, 6:38] * 1e-4 - 0.5) / 0.2
    np.testing.assert_allclose(values[0, 7].numpy(), expected, atol=1e-4)


def test_backends_agree(picture):
    image = PIL.Image.fromarray(picture)
    torchvision = CrateMaeImageProcessor(**PLAIN)(image, return_tensors="pt").pixel_values
    pil = CrateMaeImageProcessorPil(**PLAIN)(image, return_tensors="pt").pixel_values
    torch.testing.assert_close(torchvision, pil, atol=1.1 / 255, rtol=0)


@pytest.mark.parametrize(
    ("image_size", "size"),
    [(224, {"shortest_edge": 256}), (28, {"shortest_edge": 28}), ((24, 40), {"height": 24, "width": 40})],
)
def test_processor_for_a_model(processor_class, picture, image_size, size):
    processor = processor_class.from_config(CrateMaeConfig(image_size=image_size, patch_size=4))
    assert processor.size == size
    pixel_values = processor(picture, return_tensors="pt").pixel_values
    assert pixel_values.shape[2:] == ((image_size, image_size) if isinstance(image_size, int) else image_size)


def test_processor_for_a_model_of_other_channels(processor_class):
    config = CrateMaeConfig(image_size=28, patch_size=4, num_channels=1)
    assert processor_class.from_config(config).image_mean == (0.5,)
    assert processor_class.from_config(config, [0.3], [0.4]).image_std == (0.4,)
    with pytest.raises(ValueError, match="`image_std` must have 1 values"):
        processor_class.from_config(config, [0.3], [0.3, 0.3])


def test_save_and_load(processor_class, tmp_path, picture):
    processor = processor_class(**SMALL, num_channels=1, image_mean=[0.3], image_std=[0.4])
    processor.save_pretrained(tmp_path)
    loaded = processor_class.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.num_channels == 1
    expected = processor(picture, return_tensors="pt").pixel_values
    assert torch.equal(loaded(picture, return_tensors="pt").pixel_values, expected)


def test_bad_input_gets_a_clear_error(processor_class, picture):
    processor = processor_class(**SMALL)
    with pytest.raises(
        ValueError, match=r"1 or 3 or 4 channels.*`num_channels=3`, got an image of shape \(48, 60, 5\)"
    ):
        processor(np.zeros((48, 60, 5), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"13 channels.*`num_channels=13`"):
        processor_class(**SMALL, num_channels=13, image_mean=0.5, image_std=0.5)(picture)
    with pytest.raises(ValueError, match=r"`image_mean` must be one number or have 1 values, one per channel"):
        processor_class(**SMALL, num_channels=1)(picture)


@pytest.mark.parametrize(
    ("settings", "pads"),
    [
        ({"size": {"shortest_edge": 16}, "crop_size": {"height": 24, "width": 24}}, True),
        ({"size": {"height": 32, "width": 16}, "crop_size": {"height": 24, "width": 24}}, True),
        ({"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}, False),
        ({"size": {"height": 24, "width": 40}, "crop_size": {"height": 24, "width": 40}}, False),
        ({"size": {"shortest_edge": 16}, "crop_size": {"height": 24, "width": 24}, "do_center_crop": False}, False),
    ],
)
def test_a_crop_that_is_filled_up_with_black_is_pointed_out_once(settings, pads, processor_class, caplog):
    logging.warning_once.cache_clear()
    processor = processor_class(**settings)
    for _ in range(2):
        processor(PIL.Image.new("RGB", (40, 40), "white"), return_tensors="pt")
    assert caplog.text.count("what is missing becomes black") == pads


def test_the_padding_of_other_processors_is_pointed_out(caplog):
    logging.warning_once.cache_clear()
    other = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 24, "width": 24})
    preprocess(other, 3, [PIL.Image.new("RGB", (40, 40), "white")])
    assert "CLIPImageProcessor resizes images to" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_mean": [0.5, float("nan"), 0.5]}, "`image_mean` must be finite"),
        ({"image_std": [0.5, float("inf"), 0.5]}, "`image_std` must be finite"),
        ({"image_std": [0.5, 0.0, 0.5]}, "`image_std` must be positive"),
    ],
)
def test_statistics_that_cannot_normalise(processor_class, settings, message, config):
    processor = processor_class(**settings)
    with pytest.raises(ValueError, match=message):
        processor(PIL.Image.new("RGB", (40, 40)), return_tensors="pt")
    with pytest.raises(ValueError, match=message):
        processor_class.from_config(config, **settings)
    with pytest.raises(ValueError, match=message):
        build_train_transform(processor)


# --- images in colour, for split-brain autoencoders


@pytest.fixture
def color_processor(processor_class):
    return processor_class.from_config(CrateSplitBrainConfig(image_size=16, patch_size=4))


def test_a_split_brain_gets_colours_that_are_not_normalised(color_processor, picture):
    assert not color_processor.do_normalize
    image = PIL.Image.fromarray(picture).resize((16, 16))
    values = color_processor(image, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(values, torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)


@pytest.mark.parametrize("mode", ["P", "PA", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"])
def test_coloured_modes_keep_their_colour(color_processor, picture, mode):
    image = PIL.Image.fromarray(picture)
    step = "P" if mode == "PA" else "RGBA" if mode == "RGBa" else mode
    values = color_processor(image.convert(step).convert(mode), return_tensors="pt").pixel_values
    expected = color_processor(image, return_tensors="pt").pixel_values
    assert (values - expected).abs().mean() < 0.06


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "I", "I;16", "F"])
def test_grey_modes_are_refused(color_processor, mode):
    image = PIL.Image.new("LA", (20, 20)).convert(mode) if mode == "La" else PIL.Image.new(mode, (20, 20))
    message = rf"`images` must be in colour, got a grey one \(mode {mode}\): it has none to learn from"
    with pytest.raises(ValueError, match=message):
        color_processor(image)
    with pytest.raises(ValueError, match=message):
        preprocess(color_processor, 3, [PIL.Image.new("RGB", (20, 20)), image])
    assert color_processor(image, needs_color=False, return_tensors="pt").pixel_values.shape == (1, 3, 16, 16)


@pytest.mark.parametrize("shape", [(20, 20), (1, 20, 20), (20, 20, 1)])
@pytest.mark.parametrize("kind", [np.array, torch.from_numpy])
def test_grey_arrays_are_refused(color_processor, shape, kind):
    grey = kind(np.zeros(shape, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"must have 3 or 4 channels, first or last, .* in colour, got an image of"):
        color_processor(grey)


def test_settings_of_a_split_brain_travel(color_processor, tmp_path):
    color_processor.save_pretrained(tmp_path)
    loaded = type(color_processor).from_pretrained(tmp_path)
    assert (loaded.needs_color, loaded.do_normalize) == (True, False)
    with pytest.raises(ValueError, match="must be in colour"):
        loaded(PIL.Image.new("L", (20, 20)))


def test_a_split_brain_has_no_statistics(processor_class):
    for name in ("image_mean", "image_std"):
        with pytest.raises(ValueError, match=f"`{name}`: a model of type crate_split_brain takes .* not normalised"):
            processor_class.from_config(CrateSplitBrainConfig(image_size=16, patch_size=4), **{name: [0.5] * 3})
