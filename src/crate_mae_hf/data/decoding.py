"""From the bytes of a file to a picture, the right way up and in 8 bits, or an error that names the file."""

import io
import warnings
from typing import TypeAlias

import PIL.Image
import torch
from PIL.Image import Transpose

from ..image_processing_crate_mae import narrow_picture

ORIENTATION = 0x0112  # the tag of EXIF; 1 is the right way up
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


# An image on its way into a transform: Pillow's, or pixels in 8 bits, `(channels, height, width)`.
Picture: TypeAlias = PIL.Image.Image | torch.Tensor

SAYS_HOW_TO_TURN = (b"Exif\0\0", b"tiff:Orientation")  # the latter in XMP


class BadImageError(ValueError):
    """An image that cannot be used; the message names it."""


def find_turn(image: PIL.Image.Image) -> Transpose | None:
    """Return how to turn a picture by its EXIF, of which the other tags may be broken."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about those tags
        try:
            return TURNS.get(image.getexif().get(ORIENTATION, 1))
        except Exception:  # Pillow's reader raises errors of many kinds; a picture is as it is without EXIF
            return None


def open_picture(content: bytes, name: str) -> PIL.Image.Image:
    """Decode a picture.

    It is turned as its EXIF says; 32 bits and floats become 8 bits, see `narrow_picture`.

    Args:
        content: Bytes of the file.
        name: Of the picture, for errors.

    Raises:
        BadImageError: If it cannot be read, or its values have no range that a picture has.
    """
    try:
        image: PIL.Image.Image = PIL.Image.open(io.BytesIO(content))
        image.load()  # turns a TIFF, and forgets its tag
        turn = find_turn(image)
        image = narrow_picture(image)
    except PIL.UnidentifiedImageError as error:
        raise BadImageError(f"Cannot read the image {name}: Pillow knows no format of such content.") from error
    except Exception as error:  # Pillow's plugins raise errors of many kinds
        raise BadImageError(f"Cannot read the image {name}: {str(error).rstrip('.')}.") from error
    return image if turn is None else image.transpose(turn)


def check_size(image: PIL.Image.Image, min_size: tuple[int, int], name: str) -> None:
    """Check that a picture is not smaller than a patch.

    Args:
        image: The picture.
        min_size: Smallest usable (height, width), the size of a patch.
        name: Of the picture, for errors.

    Raises:
        BadImageError: If it is.
    """
    if image.height < min_size[0] or image.width < min_size[1]:
        raise BadImageError(
            f"The image {name} is {image.height} x {image.width} pixels, smaller than a patch of {min_size[0]} x "
            f"{min_size[1]}."
        )


def decode_plain_jpeg(content: bytes) -> torch.Tensor | None:
    """Decode a JPEG with torchvision, which is quicker than by Pillow for want of copies, and gives the same pixels.

    Args:
        content: Bytes of the file.

    Returns:
        Pixels in 8 bits, `(channels, height, width)` with 1 or 3 channels. None where Pillow is to be asked, also for
        what is wrong: another format, no end, an orientation, colours of four channels, or too many pixels.
    """
    is_whole = content.startswith(b"\xff\xd8\xff") and content.endswith(b"\xff\xd9")
    if not is_whole or any(mark in content for mark in SAYS_HOW_TO_TURN):
        return None
    try:
        from torchvision.io import decode_jpeg  # which a future release will not have: it is deprecated

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pixels = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    except (ImportError, RuntimeError):
        return None
    too_many = PIL.Image.MAX_IMAGE_PIXELS is not None and pixels[0].numel() > PIL.Image.MAX_IMAGE_PIXELS
    return None if pixels.shape[0] not in (1, 3) or too_many else pixels
