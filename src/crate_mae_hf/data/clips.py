"""Clips, as folders of frames or as video files: which ones there are, and two distant frames of one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch
from transformers.utils import logging

from .decoding import BadImageError
from .folders import list_names, scan_folder, warn_of_rest
from .images import read_image
from .videos import VIDEO_SUFFIXES, open_video

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Clip:
    """One clip.

    Attributes:
        path: Folder of its frames, or its video file.
        frames: Paths of the frames in their order; none of a video file.
    """

    path: str
    frames: tuple[str, ...] = ()


def natural_key(path: str) -> list[tuple[str, int]]:
    """Return by what to sort paths so that frame 2 comes before frame 10."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", path)]


def find_clips(folder: str | Path, argument: str) -> list[Clip]:
    """Find the clips in a folder: its subfolders with images, at any depth, and its video files.

    Args:
        folder: Path of the folder.
        argument: The argument that names it, for errors.

    Raises:
        ValueError: If there are none, or images outside of subfolders, which are no clips.
    """
    found = scan_folder(folder, argument)
    videos = [path for path in found.others if Path(path).suffix.lower() in VIDEO_SUFFIXES]
    found.others = sorted(set(found.others).difference(videos))
    warn_of_rest(found, folder)
    frames: dict[str, list[str]] = {}
    for path in found.images:
        frames.setdefault(str(Path(path).parent), []).append(path)
    if loose := frames.get(str(found.root)):
        names = [Path(path).name for path in loose]
        raise ValueError(
            f"`{argument}`: {folder} holds images outside of subfolders ({list_names(names)}). A clip is a subfolder "
            "of frames, or a video; images that are no frames belong in `train_dir`."
        )
    clips = [Clip(path, tuple(sorted(paths, key=natural_key))) for path, paths in frames.items()]
    clips += [Clip(path) for path in videos]
    if not clips:
        raise ValueError(f"`{argument}`: there are no clips in {folder}, neither subfolders of frames nor videos.")
    return sorted(clips, key=lambda clip: natural_key(clip.path))


def distant_frames(num_frames: int, num_parts: int) -> tuple[int, int]:
    """Draw two frames of a clip, in their order: one frame each of two parts, when it is cut in equal ones.

    Draws from PyTorch's default generator.

    Args:
        num_frames: Number of frames, at least two.
        num_parts: Number of parts; a shorter clip is cut in its frames.
    """
    num_parts = min(num_parts, num_frames)
    parts = sorted(torch.randperm(num_parts)[:2].tolist())
    first, second = (
        int(torch.randint(part * num_frames // num_parts, (part + 1) * num_frames // num_parts, ())) for part in parts
    )
    return first, second


def check_num_frames(clip: Clip, num_frames: int) -> None:
    """Refuse a clip without two frames.

    Raises:
        BadImageError: If it has fewer.
    """
    if num_frames < 2:
        raise BadImageError(f"The clip {clip.path} has {num_frames or 'no'} frame, two are needed.")


def check_sizes(clip: Clip, frames: Sequence[PIL.Image.Image], names: Sequence[object]) -> None:
    """Refuse frames of several sizes, which are not of one clip.

    Raises:
        BadImageError: If there are some.
    """
    for frame, name in zip(frames, names, strict=True):
        if frame.size != frames[0].size:
            sizes = [f"{size[1]} x {size[0]}" for size in (frames[0].size, frame.size)]
            raise BadImageError(
                f"The clip {clip.path} has frames of several sizes: {names[0]} is {sizes[0]} pixels, {name} {sizes[1]}."
            )


def draw_frames(clip: Clip, num_parts: int, min_size: tuple[int, int]) -> list[PIL.Image.Image]:
    """Draw two distant frames of a clip, see `distant_frames`, and decode them.

    Raises:
        BadImageError: If the clip has not two frames, one of the two cannot be read or is smaller than `min_size`, or
            they differ in size; names the clip or the frame.
    """
    if clip.frames:
        check_num_frames(clip, len(clip.frames))
        chosen = [clip.frames[index] for index in distant_frames(len(clip.frames), num_parts)]
        frames = [read_image({"path": path}, min_size, path) for path in chosen]
        check_sizes(clip, frames, [Path(path).name for path in chosen])
        return frames
    with open_video(clip.path) as video:
        check_num_frames(clip, len(video))
        frames = [video[index] for index in distant_frames(len(video), num_parts)]
    if frames[0].height < min_size[0] or frames[0].width < min_size[1]:
        raise BadImageError(
            f"The clip {clip.path} has frames of {frames[0].height} x {frames[0].width} pixels, smaller than a patch "
            f"of {min_size[0]} x {min_size[1]}."
        )
    return frames


def find_problem(clip: Clip, min_size: tuple[int, int]) -> str | None:
    """Return why a clip cannot be used; None where it can. All frames of a folder are read, and two of a video."""
    try:
        if clip.frames:
            check_num_frames(clip, len(clip.frames))
            first = read_image({"path": clip.frames[0]}, min_size, clip.path)
            for path in clip.frames[1:]:
                frame = read_image({"path": path}, min_size, clip.path)
                check_sizes(clip, [first, frame], [Path(name).name for name in (clip.frames[0], path)])
        else:
            draw_frames(clip, 2, min_size)
    except BadImageError as error:
        return str(error)
    return None


def drop_bad_clips(clips: Sequence[Clip], min_size: tuple[int, int]) -> list[Clip]:
    """Leave out the clips that cannot be used, naming and counting them.

    Raises:
        ValueError: If none is left.
    """
    problems = {clip: problem for clip in clips if (problem := find_problem(clip, min_size)) is not None}
    for problem in problems.values():
        logger.warning(problem)
    kept = [clip for clip in clips if clip not in problems]
    if problems:
        logger.warning(f"Left out {len(problems)} of {len(clips)} clips that cannot be used.")
    if not kept:
        raise ValueError("None of the clips can be used.")
    return kept
