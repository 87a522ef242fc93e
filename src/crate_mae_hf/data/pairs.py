"""Two views of one thing: two augmentations of an image, or two distant frames of a clip."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import ConcatDataset
from torchvision.transforms import v2
from transformers.utils import logging

from ..configuration_crate import patch_grid_size, to_pair
from .augmentation import AugmentationArguments, build_train_transform, output_size
from .clips import Clip, draw_frames, drop_bad_clips, find_clips
from .decoding import BadImageError, Picture
from .images import DataArguments, decode
from .masks import load_seeded
from .seeded import SeededDataset
from .videos import load_backend

logger = logging.get_logger(__name__)

Transform = Callable[[Picture], torch.Tensor]


@dataclass
class PairArguments(DataArguments):
    """Images, clips or both, of which pairs of views are made."""

    clips_dir: str | None = field(
        default=None,
        metadata={"help": "A folder of clips, alone or beside the images: subfolders of frames, videos, or both."},
    )
    clip_parts: int = field(
        default=2, metadata={"help": "Equal parts that a clip is cut in; its views are frames of two of them."}
    )

    @property
    def data_folders(self) -> str | None:
        clips = None if self.clips_dir is None else f"Clips of the folder {Path(self.clips_dir).name}."
        return " ".join(filter(None, (super().data_folders, clips))) or None


@dataclass
class PairAugmentationArguments(AugmentationArguments):
    """How the two views of an image come to differ; the views of a clip are its frames, cropped and flipped."""

    max_shift: float = field(default=0.0, metadata={"help": "Largest shift of a view, as a share of its size."})
    color_jitter: float = field(default=0.8, metadata={"help": "Share of the views with changed colours."})
    color_jitter_strength: list[float] = field(
        default_factory=lambda: [0.4, 0.4, 0.2, 0.1],
        metadata={"help": "Largest change of brightness, contrast, saturation and hue."},
    )
    grayscale: float = field(default=0.2, metadata={"help": "Share of the views in grey."})
    blur: float = field(default=1.0, metadata={"help": "Share of the first views that are blurred."})
    solarize: float = field(default=0.2, metadata={"help": "Share of the second views with bright pixels inverted."})
    random_erasing: float = field(default=0.0, metadata={"help": "Share of the views with a rectangle erased."})
    clip_min_crop_scale: float = field(
        default=0.5, metadata={"help": "Smallest share of a frame's area in a random crop of a clip."}
    )


def build_view_transforms(
    processor: Any,
    args: PairAugmentationArguments,
) -> tuple[Transform, Transform]:
    """Return the augmentations of the first and the second view of an image.

    Crop and flip, colour jitter, grey, then blur of the first view and solarization of the second: "Bootstrap Your Own
    Latent", Grill et al., NeurIPS 2020. Images of one channel have no saturation, hue or colour to lose.

    Args:
        processor: Image processor, which gives size, channels, mean and standard deviation.
        args: How strong each step is.

    Raises:
        ValueError: If an argument is out of its range, or asks for what the images do not have.
    """
    for name in ("max_shift", "color_jitter", "grayscale", "blur", "solarize"):
        if not 0 <= getattr(args, name) <= 1:
            raise ValueError(f"`{name}` must lie in [0, 1], got {getattr(args, name)}.")
    strength, channels = args.color_jitter_strength, processor.num_channels
    if len(strength) != 4 or not all(value >= 0 for value in strength) or strength[3] > 0.5:
        raise ValueError(
            "`color_jitter_strength` must be four numbers, of brightness, contrast, saturation and hue, none negative "
            f"and that of hue at most 0.5, got {strength}."
        )
    if channels not in (1, 3):
        for name in ("color_jitter", "grayscale", "solarize"):
            if getattr(args, name):
                raise ValueError(f"`{name}` needs images in grey or colour, these have {channels} channels.")
    steps: list[Callable] = []
    if args.max_shift:
        steps.append(v2.RandomAffine(0, translate=(args.max_shift, args.max_shift)))
    if args.color_jitter:
        jitter = v2.ColorJitter(*(strength if channels == 3 else strength[:2]))
        steps.append(v2.RandomApply([jitter], args.color_jitter))
    if args.grayscale and channels == 3:
        steps.append(v2.RandomGrayscale(args.grayscale))
    own_steps: tuple[list[Callable], list[Callable]] = ([], [])
    if args.blur:
        kernel = max(3, min(output_size(processor)) // 20 * 2 + 1)  # a tenth of the image, odd
        own_steps[0].append(v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], args.blur))
    if args.solarize:
        own_steps[1].append(v2.RandomSolarize(128, args.solarize))
    first, second = (
        build_train_transform(
            processor,
            args.min_crop_scale,
            args.horizontal_flip,
            random_erasing=args.random_erasing,
            steps_in_8_bits=[*steps, *own],
        )
        for own in own_steps
    )
    return first, second


class PairDataset(SeededDataset):
    """Two views of each image or clip; frames, augmentation and masks are a function of (seed, epoch, index).

    Each item is `pixel_values` `(2, num_channels, height, width)` and `noise` `(2, num_patches)`, which decides the
    masks of both views.

    Args:
        records: By index: undecoded images under the key "image", or a [`Clip`] under the key "clip".
        transforms: From a picture to the first view, and to the second.
        clip_transform: From a frame to a view.
        config: Configuration of the model.
        clip_parts: Number of equal parts that a clip is cut in.
        seed: Two runs with the same seed see the same pairs.

    Raises:
        ValueError: If a clip is to be cut in fewer than two parts.
    """

    def __init__(
        self,
        records: Any,
        transforms: tuple[Transform, Transform],
        clip_transform: Transform,
        config: Any,
        clip_parts: int,
        seed: int,
    ):
        super().__init__(records, clip_transform, to_pair(config.patch_size), seed)
        if clip_parts < 2:
            raise ValueError(f"`clip_parts` must be at least 2, got {clip_parts}.")
        self.transforms = transforms
        self.clip_parts = clip_parts
        rows, columns = patch_grid_size(config.image_size, config.patch_size)
        self.num_patches = rows * columns

    def read(self, record: Mapping[str, Any], where: str) -> torch.Tensor:
        if "clip" in record:
            try:
                frames = draw_frames(record["clip"], self.clip_parts, self.min_size)
            except BadImageError as error:
                raise BadImageError(f"{error} `--skip_bad_images` leaves such out.") from error
            return torch.stack([self.transform(frame) for frame in frames])
        image = decode(record["image"], self.min_size, where)
        return torch.stack([transform(image) for transform in self.transforms])

    def build_item(self, pixel_values: torch.Tensor, record: Mapping[str, Any]) -> dict[str, Any]:
        return {"pixel_values": pixel_values, "noise": torch.rand(2, self.num_patches)}


def split_clips(clips: Sequence[Clip], share: float, seed: int) -> tuple[list[Clip], list[Clip]]:
    """Hold out a share of the clips, at least one; return those to train on and those held out, in their order.

    Raises:
        ValueError: If there are not two, or the share is none.
    """
    if not 0 < share < 1:
        raise ValueError(f"`train_val_split` must lie between 0 and 1, got {share}.")
    if len(clips) < 2:
        raise ValueError("`clips_dir`: a single clip cannot be split into training and validation clips.")
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = set(order[: min(max(round(share * len(clips)), 1), len(clips) - 1)])
    train = [clip for number, clip in enumerate(clips) if number not in held_out]
    return train, [clips[number] for number in sorted(held_out)]


def load_pairs(
    args: PairArguments, augmentation_args: PairAugmentationArguments, processor: Any, config: Any, seed: int
) -> tuple[Any, PairDataset]:
    """Return pairs to train on and to evaluate with, of the images and clips that the arguments name.

    Both are augmented; those to evaluate with are the same each time.

    Args:
        args: Arguments that name images, clips or both.
        augmentation_args: How views come to differ.
        processor: Image processor of the model.
        config: Configuration of the model.
        seed: Seed of every draw.

    Raises:
        ValueError: If the arguments do not fit each other or the data.
    """
    make = partial(
        PairDataset,
        transforms=build_view_transforms(processor, augmentation_args),
        clip_transform=build_train_transform(
            processor, augmentation_args.clip_min_crop_scale, augmentation_args.horizontal_flip
        ),
        config=config,
        clip_parts=args.clip_parts,
        seed=seed,
    )
    min_size = to_pair(config.patch_size)
    if args.clips_dir is None:
        return load_seeded(args, min_size, make, make, seed)
    if args.streaming:
        raise ValueError("`clips_dir` cannot be streamed: leave `streaming` out.")
    clips = find_clips(args.clips_dir, "clips_dir")
    if not all(clip.frames for clip in clips):
        load_backend()  # whose absence is noticed here rather than in training
    if args.skip_bad_images:
        clips = drop_bad_clips(clips, min_size)
    parts = split_clips(clips, args.train_val_split, seed)
    logger.warning(f"Training on {len(parts[0])} clips of the folder {args.clips_dir}; {len(parts[1])} are held out.")
    train: Any = [{"clip": clip} for clip in parts[0]]
    held_out: Any = [{"clip": clip} for clip in parts[1]]
    if args.dataset_name is None and args.train_dir is None:
        return make(train), make(held_out)
    return load_seeded(
        args,
        min_size,
        lambda images: make(ConcatDataset[Any]([images, train])),
        lambda images: make(ConcatDataset[Any]([images, held_out])),
        seed,
    )
