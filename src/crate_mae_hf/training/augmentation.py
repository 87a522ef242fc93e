"""From pictures to pixel values: augmented for training, as the image processor has it for evaluation."""

from collections.abc import Callable

import PIL.Image
import torch
from torchvision.transforms import v2

from ..image_processing_crate_mae import CrateMaeImageProcessor, to_tensor


def build_train_transform(
    processor: CrateMaeImageProcessor, min_crop_scale: float = 0.2, horizontal_flip: bool = True
) -> Callable[[PIL.Image.Image], torch.Tensor]:
    """Return MAE's augmentation: a random crop resized to the model's size (bicubic), and a random flip.

    "Masked Autoencoders Are Scalable Vision Learners", He et al., CVPR 2022, appendix A.1.

    Args:
        processor: Gives size, channels, mean and standard deviation.
        min_crop_scale: Smallest share of the area that a crop takes; 1 keeps the whole image.
        horizontal_flip: Whether to flip every second image.

    Raises:
        ValueError: If `min_crop_scale` is not in (0, 1].
    """
    if not 0 < min_crop_scale <= 1:
        raise ValueError(f"`min_crop_scale` must lie in (0, 1], got {min_crop_scale}.")
    size = (processor.crop_size["height"], processor.crop_size["width"])
    bicubic = v2.InterpolationMode.BICUBIC
    steps: list[Callable] = [lambda image: to_tensor(image, processor.num_channels)]
    if min_crop_scale < 1:
        steps.append(v2.RandomResizedCrop(size, scale=(min_crop_scale, 1.0), interpolation=bicubic, antialias=True))
    else:
        steps.append(v2.Resize(size, interpolation=bicubic, antialias=True))
    if horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(processor.image_mean, processor.image_std)]
    return v2.Compose(steps)


def build_eval_transform(processor: CrateMaeImageProcessor) -> Callable[[PIL.Image.Image], torch.Tensor]:
    """Return what the image processor does to one picture."""
    return lambda image: processor(image, return_tensors="pt").pixel_values[0]
