"""Clips as folders of frames, and what is wrong with some."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from crate_mae_hf.data.clips import Clip, distant_frames, draw_frames, drop_bad_clips, find_clips
from crate_mae_hf.data.decoding import BadImageError


def write_frames(folder: Path, count: int, size: tuple[int, int] = (12, 10)) -> None:
    """Frames of one grey each, ten times their number, under names that text would sort otherwise."""
    folder.mkdir(parents=True)
    for number in range(count):
        PIL.Image.fromarray(np.full(size, 10 * number, np.uint8)).save(folder / f"frame{number}.png")


def grey(frame: PIL.Image.Image) -> int:
    return int(np.asarray(frame)[0, 0]) // 10


def test_clips_are_found_in_their_order(tmp_path, caplog):
    write_frames(tmp_path / "b10", 2)
    write_frames(tmp_path / "b9" / "inner", 12)
    (tmp_path / "a.mp4").touch()
    (tmp_path / "notes.txt").touch()
    clips = find_clips(tmp_path, "clips_dir")
    assert [Path(clip.path).relative_to(tmp_path).as_posix() for clip in clips] == ["a.mp4", "b9/inner", "b10"]
    assert clips[0].frames == ()
    assert [Path(path).stem for path in clips[1].frames] == [f"frame{number}" for number in range(12)]
    assert "Left out 1 files that are no images" in caplog.text
    assert "a.mp4" not in caplog.text


def test_a_folder_of_images_is_no_folder_of_clips(tmp_path):
    write_frames(tmp_path / "clips" / "one", 3)
    PIL.Image.new("L", (8, 8)).save(tmp_path / "clips" / "loose.png")
    with pytest.raises(
        ValueError, match=r"`clips_dir`: .* images outside of subfolders \('loose\.png'\)\. A clip is a subfolder"
    ):
        find_clips(tmp_path / "clips", "clips_dir")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="`clips_dir`: there are no clips in"):
        find_clips(tmp_path / "empty", "clips_dir")
    with pytest.raises(ValueError, match="`clips_dir`: there is no folder"):
        find_clips(tmp_path / "nowhere", "clips_dir")


@pytest.mark.parametrize(("num_frames", "num_parts"), [(2, 2), (3, 2), (7, 3), (30, 4), (3, 8)])
def test_distant_frames_are_one_each_of_two_parts(num_frames, num_parts):
    parts = np.empty(num_frames, int)
    cut = min(num_parts, num_frames)
    for part in range(cut):
        parts[part * num_frames // cut : (part + 1) * num_frames // cut] = part
    pairs = {distant_frames(num_frames, num_parts) for _ in range(3000)}
    possible = {(i, j) for i in range(num_frames) for j in range(i + 1, num_frames) if parts[i] != parts[j]}
    assert pairs == possible


def test_frames_are_drawn_from_both_halves(tmp_path):
    write_frames(tmp_path / "clip", 8)
    (clip,) = find_clips(tmp_path, "clips_dir")
    for seed in range(20):
        torch.manual_seed(seed)
        first, second = map(grey, draw_frames(clip, 2, (4, 4)))
        assert first < 4 <= second


@pytest.fixture
def bad_clips(tmp_path) -> dict[str, str]:
    """Clips that cannot be used, and why."""
    write_frames(tmp_path / "single", 1)
    write_frames(tmp_path / "small", 2, (3, 3))
    write_frames(tmp_path / "broken", 2)
    (tmp_path / "broken" / "frame1.png").write_bytes(b"no image")
    write_frames(tmp_path / "sizes", 1)
    PIL.Image.new("L", (9, 8)).save(tmp_path / "sizes" / "frame1.png")
    return {
        "broken": r"Cannot read the image .*broken/frame1\.png",
        "single": r"The clip .*single has 1 frame, two are needed",
        "sizes": r"The clip .*sizes has frames of several sizes: frame0\.png is 12 x 10 pixels, frame1\.png 8 x 9",
        "small": r"The image .*small/frame0\.png is 3 x 3 pixels, smaller than a patch of 4 x 4",
    }


def test_what_is_wrong_with_a_clip_is_named(bad_clips, tmp_path):
    clips = {Path(clip.path).name: clip for clip in find_clips(tmp_path, "clips_dir")}
    assert clips.keys() == bad_clips.keys()
    for name, clip in clips.items():
        with pytest.raises(BadImageError, match=bad_clips[name]):
            draw_frames(clip, 2, (4, 4))


def test_bad_clips_are_left_out_on_request(bad_clips, tmp_path, caplog):
    write_frames(tmp_path / "good", 3)
    clips = find_clips(tmp_path, "clips_dir")
    (kept,) = drop_bad_clips(clips, (4, 4))
    assert Path(kept.path).name == "good"
    assert "Left out 4 of 5 clips" in caplog.text
    with pytest.raises(ValueError, match="None of the clips can be used"):
        drop_bad_clips([Clip(str(tmp_path / "single"), (str(tmp_path / "single" / "frame0.png"),))], (4, 4))
