"""From the bytes of a file to a picture, the right way up and in 8 bits, or an error that names the file."""

import io
import warnings

import PIL.Image
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
