"""Frames of video files, decoded by torchcodec through `datasets`, or by PyAV where torchcodec does not import."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import datasets
import PIL.Image
from torchvision.transforms.v2 import functional as F

from .decoding import BadImageError

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv"})


class TorchcodecFrames(Sequence):
    """The frames of a video as pictures, by torchcodec."""

    def __init__(self, decoder: Any):
        self.decoder = decoder

    def __len__(self) -> int:
        return len(self.decoder)

    def __getitem__(self, index: Any) -> Any:
        return F.to_pil_image(self.decoder.get_frame_at(index).data)


class PyavFrames(Sequence):
    """The frames of a video as pictures, by PyAV; the times of all are read first, so that each can be sought."""

    def __init__(self, container: Any):
        self.container = container
        self.stream = container.streams.video[0]
        packets = container.demux(self.stream)
        self.times: list[int] = sorted(packet.pts for packet in packets if packet.pts is not None)

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, index: Any) -> Any:
        self.container.seek(self.times[index], stream=self.stream)  # to a key frame at that time or before it
        for frame in self.container.decode(self.stream):
            if frame.pts is not None and frame.pts >= self.times[index]:
                return frame.to_image()
        raise ValueError(f"it ends before frame {index}")


def load_backend() -> str:
    """Return the name of the library that decodes videos.

    Raises:
        ValueError: If there is none.
    """
    if datasets.config.TORCHCODEC_AVAILABLE:
        try:
            import torchcodec.decoders  # noqa: F401

            return "torchcodec"
        except (ImportError, RuntimeError, OSError):  # it needs the libraries of FFmpeg, in a version that fits
            pass
    if find_spec("av") is not None:
        return "av"
    raise ValueError(
        "Videos need torchcodec, with FFmpeg, or PyAV: `pip install crate-mae-hf[video]`. Folders of frames do not."
    )


@contextmanager
def open_video(path: str) -> Iterator[Sequence[PIL.Image.Image]]:
    """Context manager: the frames of a video file as pictures, decoded when they are asked for.

    Raises:
        BadImageError: If the file is no video, or breaks off where it is read; names it.
        ValueError: If no library that decodes videos is installed.
    """
    backend = load_backend()
    try:
        if backend == "torchcodec":
            yield TorchcodecFrames(datasets.Video().decode_example({"path": path, "bytes": None}))
        else:
            import av

            with av.open(path) as container:
                yield PyavFrames(container)
    except BadImageError:
        raise
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        IndexError,
    ) as error:  # what both libraries raise of broken files
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise BadImageError(f"Cannot read the video {path}: {reason}.") from error
