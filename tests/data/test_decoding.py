"""Pictures with broken EXIF, in floats and in 32 bits; what cannot be read is named."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from crate_mae_hf.data.decoding import BadImageError, decode_plain_jpeg, open_picture
from crate_mae_hf.data.images import decode, read_pixels

CASES = Path(__file__).parents[1] / "cases" / "exif"
GREY = np.random.default_rng(0).integers(0, 256, (32, 48), dtype=np.uint8)
GREY[0, :2] = 0, 255


def save(image: PIL.Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(open_picture(content, "x"))


@pytest.mark.parametrize(
    ("name", "size"),
    [("garbage.png", (48, 32)), ("orient6_bad_rational.jpg", (32, 48)), ("orient6_float.jpg", (32, 48))],
)
def test_broken_exif_is_no_broken_picture(name, size):
    content = (CASES / name).read_bytes()
    image = open_picture(content, name)
    assert image.size == size
    plain = PIL.Image.open(io.BytesIO(content))
    expected = plain if size == (48, 32) else plain.transpose(PIL.Image.Transpose.ROTATE_270)
    assert np.array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(10))
def test_pictures_are_turned_as_pillow_turns_them(kind, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    content = save(PIL.Image.fromarray(GREY), kind, exif=exif.tobytes())
    expected = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(content)))
    assert np.array_equal(pixels(content), np.asarray(expected))


@pytest.mark.filterwarnings("error")
def test_no_bytes_of_exif_spoil_a_picture():
    exif = PIL.Image.Exif()
    exif[0x0112], exif[0x010F], exif[282] = 6, "maker", 72.0
    good = exif.tobytes()
    generator = np.random.default_rng(0)
    sizes = set()
    for _ in range(100):
        broken = bytearray(good)
        for place in generator.integers(6, len(good), 4):
            broken[place] = generator.integers(256)
        sizes.add(pixels(save(PIL.Image.fromarray(GREY), "PNG", exif=bytes(broken))).shape)
    assert sizes == {(32, 48), (48, 32)}


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (PIL.Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"),
        (PIL.Image.fromarray(GREY.astype(np.float32)), "TIFF"),
        (PIL.Image.fromarray(GREY.astype(np.int32)), "TIFF"),
        (PIL.Image.fromarray(GREY.astype(np.int32) * 257), "TIFF"),
        (PIL.Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"),
        (PIL.Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
        (PIL.Image.fromarray(GREY.astype(np.uint16) * 257), "PPM"),
    ],
    ids=lambda value: getattr(value, "mode", value),
)
def test_values_in_an_evident_range_are_the_picture_in_8_bits(image, kind):
    assert np.array_equal(pixels(save(image, kind)), GREY)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_a_dark_picture_of_16_bits_stays_dark(kind):
    dark = PIL.Image.fromarray(GREY.astype(np.uint16))
    assert pixels(save(dark, kind)).max() <= 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (GREY.astype(np.float32) * 40, r"these lie in \[0, 10200\]"),
        (GREY.astype(np.float32) - 100, r"these lie in \[-100, 155\]"),
        (GREY.astype(np.int32) * 1000, r"these lie in \[0, 255000\]"),
        (GREY.astype(np.int32) - 1, r"these lie in \[-1, 254\]"),
        (np.where(GREY == 0, np.nan, GREY).astype(np.float32), "some are NaN or infinite"),
        (np.where(GREY == 0, np.inf, GREY).astype(np.float32), "some are NaN or infinite"),
    ],
)
def test_other_values_are_an_error_that_names_the_file(values, message):
    content = save(PIL.Image.fromarray(values), "TIFF")
    with pytest.raises(BadImageError, match=rf"^Cannot read the image a\.tif: Pixels must .*{message}"):
        open_picture(content, "a.tif")


@pytest.mark.parametrize("content", [b"", b"no image", save(PIL.Image.fromarray(GREY), "PNG")[:200]])
def test_what_cannot_be_read_is_named(content):
    with pytest.raises(BadImageError, match=r"^Cannot read the image a\.png: [^<]*[^.]\.$"):
        open_picture(content, "a.png")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "There is no image number 3: its row is empty."),
        ({"bytes": None, "path": None}, "There is no image number 3: its row is empty."),
        ({"bytes": None, "path": "no/where.png"}, "Cannot read the image no/where.png: No such file or directory."),
        ({"bytes": b"x", "path": None}, "Cannot read the image number 3: Pillow knows no format of such content."),
        ({"bytes": save(PIL.Image.fromarray(GREY[:3]), "PNG"), "path": "a.png"}, "The image a.png is 3 x 48 pixels"),
    ],
)
def test_every_bad_record_is_named(record, message):
    with pytest.raises(BadImageError) as caught:
        decode(record, (4, 4), "number 3")
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith(" `--skip_bad_images` leaves such out.")


COLOR = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)


@pytest.mark.parametrize("picture", [COLOR, GREY], ids=["colour", "grey"])
@pytest.mark.parametrize("options", [{}, {"quality": 50, "progressive": True}, {"subsampling": 0}])
def test_torchvision_gives_the_pixels_of_pillow(picture, options):
    """Both have libjpeg-turbo, perhaps in different releases: two grey levels are allowed, half of one in the mean."""
    content = save(PIL.Image.fromarray(picture), "JPEG", **options)
    found = decode_plain_jpeg(content)
    assert found.dtype == torch.uint8
    assert found.shape == (3 if picture.ndim == 3 else 1, *picture.shape[:2])
    difference = np.abs(found.permute(1, 2, 0).squeeze(2).numpy().astype(int) - pixels(content))
    assert difference.max() <= 2
    assert difference.mean() <= 0.5


def test_pillow_is_asked_for_all_but_plain_jpegs():
    image = PIL.Image.fromarray(COLOR)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    jpeg = save(image, "JPEG")
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    for content in (
        save(image, "PNG"),
        save(image.convert("CMYK"), "JPEG"),
        save(image, "JPEG", exif=exif.tobytes()),
        save(image, "JPEG", xmp=xmp),
        jpeg[: len(jpeg) // 2],
        jpeg[:4] + jpeg[-2:],
        b"",
    ):
        assert decode_plain_jpeg(content) is None
    turned = read_pixels({"bytes": save(image, "JPEG", xmp=xmp), "path": None}, (1, 1), "number 3")
    assert turned.size == (48, 64)


def test_too_many_pixels_are_left_to_pillow(monkeypatch):
    content = save(PIL.Image.fromarray(COLOR), "JPEG")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    assert decode_plain_jpeg(content) is None


def test_pixels_are_checked_like_pictures():
    for picture, needs_color in ((COLOR[:8, :8], False), (GREY, True)):
        record = {"bytes": save(PIL.Image.fromarray(picture), "JPEG"), "path": "a.jpg"}
        with pytest.raises(BadImageError, match=r"a\.jpg is (8 x 8 pixels, smaller|grey)"):
            read_pixels(record, (16, 16), "number 3", needs_color)
