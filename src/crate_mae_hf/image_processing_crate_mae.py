"""Image processors of all models here: on torchvision where it is installed, on Pillow and NumPy otherwise."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import PIL.Image
import PIL.ImageMode
import torch
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import get_resize_output_image_size
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    infer_channel_dimension_format,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import is_torchvision_available, logging
from typing_extensions import Self

from .configuration_crate import CrateEncoderConfig, to_pair

if TYPE_CHECKING:
    # Saving an object copies its file and what that file imports, whether or not the import ever runs. A push during
    # training saves the image processor and nothing else with code, so the models' files have to come along with it.
    from .modeling_crate import CrateModel  # noqa: F401
    from .modeling_crate_alpha import CrateAlphaModel  # noqa: F401
    from .modeling_crate_mae import CrateMaeModel  # noqa: F401
    from .modeling_crate_split_brain import CrateSplitBrainModel  # noqa: F401

logger = logging.get_logger(__name__)

# Weights of red, green and blue in the luma of ITU-R 601-2, as Pillow converts to grey.
LUMA = (0.299, 0.587, 0.114)
# Pillow's modes of grey pictures with more than 8 bits.
WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
# Up to this size the whole image is taken; above it the papers resize to 256 / 224 of the size and crop the centre.
SMALL_IMAGE = 64


class CrateMaeImageProcessorKwargs(ImagesKwargs, total=False):
    """Arguments of the image processors beyond the standard ones.

    num_channels (`int`, *optional*, defaults to 3):
        Number of channels that the model takes.
    needs_color (`bool`, *optional*, defaults to `False`):
        Whether to refuse grey pictures, for a model that learns from colour.
    """

    num_channels: int
    needs_color: bool


def to_eight_bit_range(image: torch.Tensor, is_16_bit: bool = False) -> torch.Tensor:
    """Return the values of a picture in the range of 8 bits, 0 to 255.

    Floats in [0, 1] and booleans are scaled to it, 16 bits divided by 257; other integers count as 8 or 16 bits by
    their largest value. Floats up to 255 stay as they are.

    Args:
        image: Values of one picture.
        is_16_bit: Whether they are known to be of 16 bits, as `torch.uint16` are.

    Raises:
        ValueError: If the values fit none of these ranges, or are not finite.
    """
    if image.dtype == torch.uint8:
        return image
    is_float, is_16_bit = image.is_floating_point(), is_16_bit or image.dtype == torch.uint16
    values = image if is_float else image.to(torch.int64)  # PyTorch computes little with unsigned integers
    if is_float and not values.isfinite().all():
        raise ValueError("Pixels must be finite, some are NaN or infinite.")
    low, high = values.min().item(), values.max().item()
    if low >= 0 and high <= 65535 and (is_16_bit or (high > 255 and not is_float)):
        return (values / 257).round().to(torch.uint8)
    if low >= 0 and high <= 1 and (is_float or image.dtype == torch.bool):
        values = values * 255
    elif low < 0 or high > 255:
        raise ValueError(
            f"Pixels must be floats in [0, 1] or have 8 or 16 bits; these lie in [{low:g}, {high:g}], which has no "
            "evident meaning."
        )
    return values if is_float else values.to(torch.uint8)


def is_16_bit_file(image: PIL.Image.Image) -> bool:
    """Whether a picture of mode "I" comes from a file of 16 bits; a dark one cannot be told by its values."""
    return image.format in ("PNG", "PPM") or tuple(getattr(image, "tag_v2", {}).get(258, ())) == (16,)


def narrow_picture(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return a picture of 16 bits, 32 bits or floats in 8 bits, and others as they are.

    Raises:
        ValueError: See `to_eight_bit_range`.
    """
    if image.mode not in WIDE_MODES:
        return image
    values = torch.from_numpy(np.array(image, dtype=np.float32 if image.mode == "F" else np.int32))
    is_16_bit = image.mode.startswith("I;16") or (image.mode == "I" and is_16_bit_file(image))
    return PIL.Image.fromarray(to_eight_bit_range(values, is_16_bit).round().to(torch.uint8).numpy())


def is_grey(image: PIL.Image.Image) -> bool:
    """Whether a picture has no colour by its mode; one of red, green and blue that are equal counts as coloured."""
    return PIL.ImageMode.getmode(image.mode).basemode == "L"


def check_color(image: PIL.Image.Image) -> None:
    """Check that a picture has colour.

    Raises:
        ValueError: If it is grey.
    """
    if is_grey(image):
        raise ValueError(f"`images` must be in colour, got a grey one (mode {image.mode}): it has none to learn from.")


def pil_to_array(image: PIL.Image.Image, num_channels: int) -> np.ndarray:
    """Return an image of any mode as an array, with its transparency over white.

    Args:
        image: The image.
        num_channels: 1 for `(height, width)` in grey, 3 for `(height, width, 3)` in colour; otherwise the image's own.

    Raises:
        ValueError: See `to_eight_bit_range`.
    """
    if image.mode in ("La", "RGBa"):  # premultiplied by their alpha channel
        image = image.convert(image.mode.upper())
    image = narrow_picture(image)
    if num_channels not in (1, 3):
        return np.asarray(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    return np.asarray(image.convert("L") if num_channels == 1 else image)


def adapt_channels(
    image: torch.Tensor,
    num_channels: int,
    input_data_format: str | ChannelDimension | None,
    needs_color: bool = False,
) -> torch.Tensor:
    """Return an image of any layout as `(num_channels, height, width)`.

    Ordinary pictures (`num_channels` 1 or 3) may come grey, in colour, or in colour with an alpha channel, which goes
    over white (255, or 1 for floats in [0, 1]); integers come back in 8 bits, see `to_eight_bit_range`. Images of any
    other number of channels are taken as they are, integers as float32, which can be resized without overflow.

    Raises:
        ValueError: If the image has a number of channels that cannot become `num_channels`, or integers in no range
            that a picture has.
    """
    if image.ndim == 2:
        image = image.unsqueeze(0)
        input_data_format = ChannelDimension.FIRST
    pictures = (3, 4) if needs_color else (1, 3, 4)
    accepted = pictures if num_channels in (1, 3) else (num_channels,)
    if input_data_format is None and (image.shape[0] in accepted or image.shape[2] in accepted):
        input_data_format = infer_channel_dimension_format(cast(Any, image), accepted)
    if input_data_format == ChannelDimension.LAST:
        image = image.permute(2, 0, 1)
    if image.shape[0] not in accepted:
        raise ValueError(
            f"`images` must have {' or '.join(map(str, accepted))} channels, first or last, for `num_channels="
            f"{num_channels}`{' in colour' if needs_color else ''}, got an image of shape {tuple(image.shape)}."
        )
    is_integer = not image.is_floating_point()
    if num_channels not in (1, 3):
        return image.float() if is_integer and image.dtype != torch.uint8 else image
    if is_integer:
        image = to_eight_bit_range(image)
    dtype = image.dtype
    if image.shape[0] == 4:
        white = 255 if is_integer or image.max() > 1 else 1
        opacity = image[3:] / white
        image = image[:3] * opacity + white * (1 - opacity)
    if image.shape[0] == 3 and num_channels == 1:
        image = torch.tensordot(torch.tensor(LUMA, device=image.device), image.float(), dims=1).unsqueeze(0)
    if image.dtype != dtype:
        image = image.round().to(dtype) if is_integer else image.to(dtype)
    return image.expand(num_channels, -1, -1)


def to_tensor(
    image: ImageInput,
    num_channels: int,
    input_data_format: str | ChannelDimension | None = None,
    needs_color: bool = False,
) -> torch.Tensor:
    """Return any image as a tensor `(num_channels, height, width)`; a picture in 8 bits, unless it comes in floats.

    Raises:
        ValueError: If it is grey and `needs_color`; see also `adapt_channels`.
    """
    if isinstance(image, PIL.Image.Image):
        if needs_color:
            check_color(image)
        image, input_data_format = pil_to_array(image, num_channels), ChannelDimension.LAST
    tensor = image.detach() if isinstance(image, torch.Tensor) else torch.from_numpy(np.array(image))
    return adapt_channels(tensor, num_channels, input_data_format, needs_color)


def check_statistics(image_mean: Any, image_std: Any) -> None:
    """Check that mean and standard deviation, one number or several, can normalise images.

    Raises:
        ValueError: If one is not finite, or a standard deviation is not positive.
    """
    for name, values in (("image_mean", image_mean), ("image_std", image_std)):
        if values is not None and not np.isfinite(values).all():
            raise ValueError(f"`{name}` must be finite, got {values}.")
    if image_std is not None and not (np.asarray(image_std) > 0).all():
        raise ValueError(f"`image_std` must be positive, got {image_std}.")


def warn_of_padding(processor: BaseImageProcessor, **changes: Any) -> None:
    """Say once if an image processor crops more than its resizing leaves, which is filled up with black.

    Args:
        processor: Any image processor with the settings of Transformers' own.
        **changes: Settings of one call.
    """
    settings = {name: getattr(processor, name, None) for name in ("do_resize", "size", "do_center_crop", "crop_size")}
    settings |= {name: value for name, value in changes.items() if name in settings and value is not None}
    size, crop_size = settings["size"], settings["crop_size"]
    if not (settings["do_resize"] and settings["do_center_crop"] and size and crop_size):
        return
    size, crop_size = dict(size), dict(crop_size)
    left = {side: size.get(side) or size.get("shortest_edge") for side in ("height", "width")}
    if any(crop_size.get(side) and left[side] and crop_size[side] > left[side] for side in left):
        logger.warning_once(
            f"{type(processor).__name__} resizes images to {size} and then takes {crop_size} from the centre: what is "
            "missing becomes black. `size` should be at least `crop_size`."
        )


class CrateMaeImageProcessorMixin(BaseImageProcessor):
    """Settings of both image processors, and the way any image becomes an array of `num_channels` channels.

    Images are resized to 256 pixels on the shorter edge (bicubic), cropped to the central 224 x 224, scaled to [0, 1]
    and normalised by the mean and standard deviation of ImageNet. Every setting is an argument of the constructor and
    of the call, named as in Transformers' own processors, plus `num_channels` and `needs_color`.

    Images may be Pillow images of any mode, NumPy arrays or torch tensors, channels first or last, alone, in a list of
    mixed sizes or in a batch. With `num_channels` 3 or 1 pictures become colour or grey; they have 8 bits, 16 bits, or
    floats in [0, 1] or [0, 255], and floats are taken as they are where nothing is rescaled. With
    `do_convert_rgb=False` pictures are taken with the channels they have.
    """

    valid_kwargs = CrateMaeImageProcessorKwargs
    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 256}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    num_channels = 3
    needs_color = False

    @classmethod
    def from_config(
        cls,
        config: CrateEncoderConfig,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
    ) -> Self:
        """Return an image processor for the images that a model takes.

        Square images are cropped from the centre, as 224 from 256, or whole where they have no more than 64 pixels;
        others are resized.

        Args:
            config: Of the model.
            image_mean: Mean of each channel in [0, 1]. When left out ImageNet's for three channels, otherwise 0.5.
            image_std: Standard deviation of each channel, likewise.

        Raises:
            ValueError: If there is not one value per channel, or the model takes images that are not normalised.
        """
        height, width = to_pair(config.image_size)
        crop_size = {"height": height, "width": width}
        settings: dict[str, Any] = {"num_channels": config.num_channels, "crop_size": crop_size, "size": crop_size}
        if height == width:
            settings["size"] = {"shortest_edge": height if height <= SMALL_IMAGE else round(height * 256 / 224)}
        check_statistics(image_mean, image_std)
        settings |= getattr(config, "image_processor_settings", {})  # Transformers' own models have none
        for name, values in (("image_mean", image_mean), ("image_std", image_std)):
            if values is not None and settings.get("do_normalize") is False:
                raise ValueError(
                    f"`{name}`: a model of type {config.model_type} takes images in [0, 1], not normalised."
                )
            if values is not None and len(values) != config.num_channels:
                raise ValueError(f"`{name}` must have {config.num_channels} values, one per channel, got {values}.")
            if values is not None:
                settings[name] = list(values)
            elif config.num_channels != 3:
                settings[name] = [0.5] * config.num_channels
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, and in a saved `auto_map` both image processors, Pillow's first.

        Transformers itself would name the class that is saved, whatever `backend` asks for when it is loaded.
        """
        settings = super().to_dict()
        auto_map = settings.get("auto_map", {})
        module, _, name = str(auto_map.get("AutoImageProcessor")).rpartition(".")
        if name in __all__:  # and not one of the user's own
            both = [f"{module}.{each}" for each in reversed(__all__)]
            settings["auto_map"] = {**auto_map, "AutoImageProcessor": both}
        return settings

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[Any]:
        """Return the class of each pixel, one `(height, width)` per image.

        Args:
            outputs: Output of a model for semantic segmentation: `logits`, `(batch_size, num_labels, height, width)`.
            target_sizes: (height, width) of each result; those of the logits when left out. Logits are interpolated
                bilinearly.
            return_segmentation_scores: Whether each result is a `SemanticSegmentationPostProcessorOutput` of
                Transformers, with the classes in `segmentation` and the logits in `segmentation_scores`.

        Raises:
            ValueError: If there is not one target size per image.
        """
        scores = list(outputs.logits)
        if target_sizes is not None:
            if len(target_sizes) != len(scores):
                raise ValueError(
                    f"`target_sizes` must have {len(scores)} sizes, one per image, got {len(target_sizes)}."
                )
            scores = [
                torch.nn.functional.interpolate(each[None], size=tuple(size), mode="bilinear")[0]
                for each, size in zip(scores, target_sizes, strict=True)
            ]
        segmentations = [each.argmax(dim=0) for each in scores]
        if not return_segmentation_scores:
            return segmentations
        return [
            SemanticSegmentationPostProcessorOutput(data={"segmentation": segmentation, "segmentation_scores": each})
            for segmentation, each in zip(segmentations, scores, strict=True)
        ]

    def _validate_preprocess_kwargs(
        self,
        *args: Any,
        num_channels: int = 3,
        needs_color: bool = False,
        do_convert_rgb: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super()._validate_preprocess_kwargs(*args, **kwargs)
        if kwargs.get("do_normalize"):
            check_statistics(kwargs["image_mean"], kwargs["image_std"])
        warn_of_padding(self, **kwargs)
        for name in ("image_mean", "image_std"):
            values = kwargs[name] if do_convert_rgb and kwargs.get("do_normalize") else None
            if isinstance(values, (list, tuple)) and len(values) not in (1, num_channels):
                raise ValueError(
                    f"`{name}` must be one number or have {num_channels} values, one per channel (`num_channels="
                    f"{num_channels}`), got {values}."
                )

    def _prepare_images_structure(self, images: ImageInput, expected_ndims: int = 3) -> ImageInput:
        def with_channels(image: Any) -> Any:
            return image[None] if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 2 else image

        images = [with_channels(image) for image in images] if isinstance(images, list) else with_channels(images)
        return super()._prepare_images_structure(images, expected_ndims)

    def process_image(
        self,
        image: ImageInput,
        num_channels: int = 3,
        needs_color: bool = False,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        **kwargs: Any,
    ) -> Any:
        if do_convert_rgb:
            image = to_tensor(image, num_channels, input_data_format, needs_color)
            if num_channels in (1, 3) and do_rescale and rescale_factor != 1:
                image = to_eight_bit_range(image)
            input_data_format = ChannelDimension.FIRST
        processed = super().process_image(image, input_data_format=input_data_format, **kwargs)
        if not (torch if isinstance(processed, torch.Tensor) else np).isfinite(processed).all():
            raise ValueError("Pixels must be finite, some are NaN or infinite.")
        return processed


class CrateMaeImageProcessorPil(CrateMaeImageProcessorMixin, PilBackend):  # type: ignore[misc]
    """The image processor on Pillow and NumPy; settings as in [`CrateMaeImageProcessorMixin`]."""

    def resize(
        self,
        image: np.ndarray,
        size: SizeDict,
        resample: PILImageResampling | None = None,
        reducing_gap: int | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        if image.dtype == np.uint8 and image.shape[0] in (1, 3):
            return super().resize(image, size, resample, reducing_gap, **kwargs)
        # Pillow has no mode for several channels of numbers: each goes through its mode of 32 bit floats.
        if size.shortest_edge:
            height, width = get_resize_output_image_size(
                image, size.shortest_edge, default_to_square=False, input_data_format=ChannelDimension.FIRST
            )
        else:
            height, width = size.height, size.width
        channels = [PIL.Image.fromarray(channel.astype(np.float32)) for channel in image]
        return np.stack([np.asarray(channel.resize((width, height), resample)) for channel in channels])


if is_torchvision_available():

    class CrateMaeImageProcessor(CrateMaeImageProcessorMixin, TorchvisionBackend):  # type: ignore[misc]
        """The image processor on torchvision; settings as in [`CrateMaeImageProcessorMixin`]."""

else:
    CrateMaeImageProcessor = CrateMaeImageProcessorPil  # type: ignore[assignment, misc]


__all__ = ["CrateMaeImageProcessor", "CrateMaeImageProcessorPil"]
