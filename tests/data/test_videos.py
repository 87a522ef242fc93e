"""Videos: real ones, written and read."""

from pathlib import Path

import av
import datasets
import numpy as np
import pytest
import torch

from crate_mae_hf.data import videos
from crate_mae_hf.data.clips import Clip, draw_frames, drop_bad_clips
from crate_mae_hf.data.decoding import BadImageError
from crate_mae_hf.data.videos import TorchcodecFrames, load_backend, open_video

NUM_FRAMES = 20


def write_video(path: Path) -> None:
    """A video whose frames become brighter."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 10 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize("backend", ["av", "torchcodec"])
def test_frames_of_a_video(tmp_path, monkeypatch, backend):
    if backend == "torchcodec" and load_backend() != "torchcodec":
        pytest.skip("torchcodec does not import")
    monkeypatch.setattr(videos, "load_backend", lambda: backend)
    write_video(tmp_path / "clip.mp4")
    with open_video(str(tmp_path / "clip.mp4")) as video:
        assert len(video) == NUM_FRAMES
        for index in (0, 19, 7, 8, 3):  # in any order
            assert video[index].size == (48, 32)
            assert np.asarray(video[index]).mean() == pytest.approx(10 * index, abs=4)
    clip = Clip(str(tmp_path / "clip.mp4"))
    first, second = (np.asarray(frame).mean() for frame in draw_frames(clip, 2, (8, 8)))
    assert first < 100 - 4 < second
    with pytest.raises(BadImageError, match=r"frames of 32 x 48 pixels, smaller than a patch of 64 x 8"):
        draw_frames(clip, 2, (64, 8))
    (tmp_path / "broken.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes()[:500])
    with pytest.raises(BadImageError, match=r"Cannot read the video .*broken\.mp4"):
        draw_frames(Clip(str(tmp_path / "broken.mp4")), 2, (8, 8))
    assert drop_bad_clips([clip, Clip(str(tmp_path / "broken.mp4"))], (8, 8)) == [clip]


class Decoder:
    """What torchcodec gives, of five frames of which the last is broken."""

    def __len__(self) -> int:
        return 5

    def get_frame_at(self, index: int) -> "Decoder":
        if index == 4:
            raise RuntimeError("Could not push packet\nto decoder.")
        self.data = torch.full((3, 8, 6), index, dtype=torch.uint8)
        return self


def test_what_a_decoder_gives_and_how_it_fails(monkeypatch):
    monkeypatch.setattr(videos, "load_backend", lambda: "torchcodec")
    monkeypatch.setattr(datasets.Video, "decode_example", lambda *args: Decoder())
    with open_video("clip.mp4") as video:
        assert isinstance(video, TorchcodecFrames)
        assert len(video) == 5
        assert video[3].size == (6, 8)
        assert np.asarray(video[3]).max() == 3
    message = r"^Cannot read the video clip\.mp4: Could not push packet to decoder\.$"
    with pytest.raises(BadImageError, match=message), open_video("clip.mp4") as video:
        video[4]


def test_without_a_library_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(datasets.config, "TORCHCODEC_AVAILABLE", False)
    monkeypatch.setattr(videos, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install crate-mae-hf\[video\]"), open_video("clip.mp4"):
        pass
