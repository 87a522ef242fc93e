"""From pictures to pixel values: augmented for training, as the image processor has it for evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.utils.data import default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers.image_utils import ChannelDimension

from ..image_processing_crate_mae import check_statistics, to_tensor
from .decoding import Picture
from .seeded import seeded


@dataclass
class AugmentationArguments:
    """How images become training examples."""

    min_crop_scale: float = field(default=0.2, metadata={"help": "Smallest share of an image's area in a random crop."})
    horizontal_flip: bool = field(default=True, metadata={"help": "Flip every second image."})
    image_mean: list[float] | None = field(default=None, metadata={"help": "Mean of each channel in [0, 1]."})
    image_std: list[float] | None = field(default=None, metadata={"help": "Standard deviation of each channel."})


@dataclass
class MaskedAugmentationArguments(AugmentationArguments):
    """Augmentation of masked pre-training."""

    normalize_on_device: bool = field(
        default=False,
        metadata={
            "help": "Send training images in 8 bits, a quarter of the memory, and normalise them where the model is."
        },
    )


@dataclass
class ClassificationAugmentationArguments(AugmentationArguments):
    """Augmentation that fine-tuning adds; all of it is off unless asked for."""

    rand_augment_num_ops: int = field(default=0, metadata={"help": "Operations of RandAugment on each image."})
    rand_augment_magnitude: int = field(default=9, metadata={"help": "Strength of RandAugment, 0 to 30."})
    random_erasing: float = field(default=0.0, metadata={"help": "Share of the images with a rectangle erased."})
    mixup_alpha: float = field(default=0.0, metadata={"help": "Alpha of mixup's Beta distribution; 0 is off."})
    cutmix_alpha: float = field(
        default=0.0, metadata={"help": "Alpha of CutMix's Beta distribution; with mixup, batches alternate at random."}
    )


def needs_color(processor: Any) -> bool:
    """Whether an image processor refuses grey pictures; those of Transformers itself do not."""
    return getattr(processor, "needs_color", False)


def output_size(processor: Any) -> tuple[int, int]:
    """Return the (height, width) of the images that a processor makes.

    Raises:
        ValueError: If it depends on the picture.
    """
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    if not size.get("height") or not size.get("width"):
        raise ValueError(f"The image processor must make images of one height and width, got `size` {size}.")
    return size["height"], size["width"]


def build_train_transform(
    processor: Any,
    min_crop_scale: float = 0.2,
    horizontal_flip: bool = True,
    *,
    num_channels: int | None = None,
    rand_augment_num_ops: int = 0,
    rand_augment_magnitude: int = 9,
    random_erasing: float = 0.0,
    steps_in_8_bits: Sequence[Callable] = (),
    normalize: bool = True,
) -> Callable[[Picture], torch.Tensor]:
    """Return MAE's augmentation, a random crop resized to the model's size (bicubic) and a random flip, and more.

    "Masked Autoencoders Are Scalable Vision Learners", He et al., CVPR 2022, appendix A.1; "RandAugment", Cubuk et al.,
    NeurIPS 2020; "Random Erasing Data Augmentation", Zhong et al., AAAI 2020.

    Args:
        processor: Image processor, which gives size, channels, mean and standard deviation.
        min_crop_scale: Smallest share of the area that a crop takes; 1 keeps the whole image.
        horizontal_flip: Whether to flip every second image.
        num_channels: Number of channels that the model takes; the processor's when left out.
        rand_augment_num_ops: Number of operations of RandAugment that each image goes through.
        rand_augment_magnitude: Strength of these operations, 0 to 30, where 30 is the strongest of each operation.
        random_erasing: Share of the images in which a rectangle becomes the mean colour.
        steps_in_8_bits: Further steps, on cropped images before they become floats.
        normalize: Whether images become floats; otherwise they stay in 8 bits, for `build_normalization` later.

    Raises:
        ValueError: If an argument is out of its range, or images of more than 8 bits are to stay as they are.
    """
    if not 0 < min_crop_scale <= 1:
        raise ValueError(f"`min_crop_scale` must lie in (0, 1], got {min_crop_scale}.")
    if rand_augment_num_ops < 0:
        raise ValueError(f"`rand_augment_num_ops` must not be negative, got {rand_augment_num_ops}.")
    if not 0 <= rand_augment_magnitude <= 30:
        raise ValueError(f"`rand_augment_magnitude` must lie in [0, 30], got {rand_augment_magnitude}.")
    if not 0 <= random_erasing <= 1:
        raise ValueError(f"`random_erasing` must lie in [0, 1], got {random_erasing}.")
    channels = processor.num_channels if num_channels is None else num_channels
    if not normalize and (random_erasing or channels not in (1, 3)):
        raise ValueError("`normalize_on_device` needs pictures in grey or colour, of which nothing is erased.")
    if rand_augment_num_ops and channels not in (1, 3):
        raise ValueError(f"`rand_augment_num_ops` needs images in grey or colour, these have {channels} channels.")
    check_statistics(processor.image_mean, processor.image_std)
    size = output_size(processor)
    bicubic = v2.InterpolationMode.BICUBIC
    # Data loader workers may have to pickle it.
    steps: list[Callable] = [
        partial(
            to_tensor,
            num_channels=channels,
            input_data_format=ChannelDimension.FIRST,  # of tensors
            needs_color=needs_color(processor),
        )
    ]
    if min_crop_scale < 1:
        steps.append(v2.RandomResizedCrop(size, scale=(min_crop_scale, 1.0), interpolation=bicubic, antialias=True))
    else:
        steps.append(v2.Resize(size, interpolation=bicubic, antialias=True))
    if horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    if rand_augment_num_ops:
        mean = [255 * value for value in processor.image_mean]
        bilinear = v2.InterpolationMode.BILINEAR
        steps.append(v2.RandAugment(rand_augment_num_ops, rand_augment_magnitude, interpolation=bilinear, fill=mean))
    steps += steps_in_8_bits
    if normalize:
        steps.append(build_normalization(processor))
    if random_erasing:
        steps.append(v2.RandomErasing(random_erasing))
    return v2.Compose(steps)


def build_normalization(processor: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what makes pixel values of images in 8 bits, one or a batch, wherever they lie: floats, normalised."""
    steps: list[Callable] = [v2.ToDtype(torch.float32, scale=True)]
    if getattr(processor, "do_normalize", True):
        steps.append(v2.Normalize(processor.image_mean, processor.image_std))
    return v2.Compose(steps)


def build_eval_transform(processor: Any, num_channels: int | None = None) -> Callable[[Picture], torch.Tensor]:
    """Return what the image processor does to one picture of any mode.

    Args:
        processor: Image processor of the model.
        num_channels: Number of channels that the model takes; the processor's when left out.
    """
    return partial(preprocess, processor, processor.num_channels if num_channels is None else num_channels)


def preprocess(processor: Any, num_channels: int, image: Picture) -> torch.Tensor:
    """Return the pixel values that an image processor makes of one picture."""
    picture = to_tensor(image, num_channels, ChannelDimension.FIRST, needs_color(processor))
    inputs = processor(picture, return_tensors="pt", input_data_format="channels_first")
    return inputs.pixel_values[0]


def build_segmentation_transform(
    processor: Any, num_channels: int, min_crop_scale: float = 1.0, horizontal_flip: bool = False
) -> Callable[[PIL.Image.Image, np.ndarray], tuple[torch.Tensor, torch.Tensor]]:
    """Return what makes pixel values and labels of an image and its mask, cropped and flipped together.

    Images are resized bicubically, masks to the nearest pixel; nothing is cropped unless asked for.

    Args:
        processor: Image processor, which gives size, mean and standard deviation.
        num_channels: Number of channels that the model takes.
        min_crop_scale: Smallest share of the area that a random crop takes; 1 keeps the whole image.
        horizontal_flip: Whether to flip every second image.

    Raises:
        ValueError: If an argument is out of its range.
    """
    if not 0 < min_crop_scale <= 1:
        raise ValueError(f"`min_crop_scale` must lie in (0, 1], got {min_crop_scale}.")
    check_statistics(processor.image_mean, processor.image_std)
    size, bicubic = output_size(processor), v2.InterpolationMode.BICUBIC
    steps: list[Callable] = [v2.Resize(size, interpolation=bicubic, antialias=True)]
    if min_crop_scale < 1:
        steps = [v2.RandomResizedCrop(size, scale=(min_crop_scale, 1.0), interpolation=bicubic, antialias=True)]
    if horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    steps.append(build_normalization(processor))  # of the image; the mask stays
    return partial(transform_segmented, v2.Compose(steps), num_channels, needs_color(processor))


def transform_segmented(
    steps: Callable, num_channels: int, needs_color: bool, image: PIL.Image.Image, mask: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pixel values of an image and the labels of its mask after the same steps."""
    pixels = tv_tensors.Image(to_tensor(image, num_channels, needs_color=needs_color))
    pixel_values, labels = steps(pixels, tv_tensors.Mask(torch.from_numpy(mask)))
    return pixel_values.as_subclass(torch.Tensor), labels.as_subclass(torch.Tensor).long()


class MixingCollator:
    """Batch labelled images; those for training are mixed with their neighbours, and so are their labels.

    Mixup blends two images and CutMix pastes a rectangle of one into the other; the labels become probabilities. What
    is drawn depends on the `mixing_seed` of the batch's first image; batches without one are left alone. Images are
    mixed within the batch of one process, so here the number of processes matters.

    "mixup: Beyond Empirical Risk Minimization", Zhang et al., ICLR 2018; "CutMix", Yun et al., ICCV 2019.

    Args:
        num_labels: Number of classes.
        mixup_alpha: Both parameters of mixup's Beta distribution; 0 leaves it out.
        cutmix_alpha: The same for CutMix. With both, each batch goes through one of them.

    Raises:
        ValueError: If one of them is negative, or both are 0.
    """

    def __init__(self, num_labels: int, mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0):
        for name, alpha in (("mixup_alpha", mixup_alpha), ("cutmix_alpha", cutmix_alpha)):
            if alpha < 0:
                raise ValueError(f"`{name}` must not be negative, got {alpha}.")
        kinds = ((v2.MixUp, mixup_alpha), (v2.CutMix, cutmix_alpha))
        mixers = [kind(alpha=alpha, num_classes=num_labels) for kind, alpha in kinds if alpha]
        if not mixers:
            raise ValueError("`mixup_alpha` and `cutmix_alpha` are both 0: there is nothing to mix.")
        self.mix = v2.RandomChoice(mixers)

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = default_collate(list(items))
        seeds = batch.pop("mixing_seed", None)
        if seeds is not None:
            with seeded(int(seeds[0])):
                batch["pixel_values"], batch["labels"] = self.mix(batch["pixel_values"], batch["labels"])
        return batch
