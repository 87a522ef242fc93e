"""Pairs of views, of images and of clips."""

import io

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader

from crate_mae_hf import CrateMaeConfig, CrateMaeImageProcessor
from crate_mae_hf.data.clips import Clip
from crate_mae_hf.data.pairs import (
    PairArguments,
    PairAugmentationArguments,
    PairDataset,
    build_view_transforms,
    load_pairs,
    split_clips,
)

OFF = {"color_jitter": 0.0, "grayscale": 0.0, "blur": 0.0, "solarize": 0.0, "min_crop_scale": 1.0}
OFF |= {"horizontal_flip": False, "clip_min_crop_scale": 1.0}


def processor_for(channels: int = 3) -> CrateMaeImageProcessor:
    config = CrateMaeConfig(image_size=16, patch_size=4, num_channels=channels, hidden_size=8, num_attention_heads=2)
    return CrateMaeImageProcessor.from_config(config, [0.0] * channels, [1.0] * channels)


CONFIG = CrateMaeConfig(image_size=16, patch_size=4, hidden_size=8, num_attention_heads=2)


def encode(pixels: np.ndarray) -> dict:
    PIL.Image.fromarray(pixels).save(buffer := io.BytesIO(), "png")
    return {"image": {"bytes": buffer.getvalue(), "path": None}}


@pytest.fixture
def folders(tmp_path):
    """Six images and five clips of four frames."""
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(6):
        pixels = generator.integers(0, 256, (18, 20, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    for number in range(5):
        (tmp_path / "clips" / str(number)).mkdir(parents=True)
        for frame in range(4):
            pixels = np.full((18, 20), 50 * number + 10 * frame, np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / "clips" / str(number) / f"{frame}.png")
    return tmp_path


@pytest.fixture
def load(folders):
    def load(*kinds, seed=0, **arguments):
        named = {"images": {"train_dir": str(folders / "images")}, "clips": {"clips_dir": str(folders / "clips")}}
        settings = {name: value for kind in kinds for name, value in named[kind].items()}
        augmentation = {name: arguments.pop(name) for name in list(arguments) if name in OFF}
        args = PairArguments(**settings, cache_dir=str(folders / "cache"), **arguments)
        return load_pairs(args, PairAugmentationArguments(**augmentation), processor_for(), CONFIG, seed)

    return load


@pytest.mark.parametrize(("kinds", "sizes"), [(["images"], (5, 1)), (["clips"], (4, 1)), (["images", "clips"], (9, 2))])
def test_images_clips_and_both(load, kinds, sizes):
    train, held_out = load(*kinds)
    assert (len(train), len(held_out)) == sizes
    (batch,) = DataLoader(train, batch_size=len(train))
    assert batch["pixel_values"].shape == (len(train), 2, 3, 16, 16)
    assert batch["noise"].shape == (len(train), 2, 16)
    assert not torch.equal(batch["noise"][:, 0], batch["noise"][:, 1])
    assert not torch.equal(batch["pixel_values"][:, 0], batch["pixel_values"][:, 1])


def test_views_of_a_clip_are_frames_of_its_halves(load):
    train, _ = load("clips", **OFF)
    for index in range(len(train)):
        first, second = (round(float(view.mean()) * 255) for view in train[index]["pixel_values"])
        assert first // 50 == second // 50, "of one clip"
        assert first % 50 // 10 < 2 <= second % 50 // 10


def same(first: list[dict], second: list[dict]) -> bool:
    return all(torch.equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in a)


def test_draws_depend_on_seed_epoch_and_index_alone(load):
    train, held_out = load("images", "clips")
    items = [train[index] for index in range(len(train))]
    torch.manual_seed(1)
    assert same([train[index] for index in reversed(range(len(train)))][::-1], items)
    again, _ = load("images", "clips")
    assert same(list(DataLoader(again, batch_size=None)), items)
    again.set_epoch(1)
    assert not same([again[0]], items[:1])
    assert not same([again[8]], items[8:])
    assert not same([load("images", "clips", seed=1)[0][0]], items[:1])
    assert same([held_out[0], held_out[1]], [held_out[0], held_out[1]])


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_draw_the_same(load, context):
    train, _ = load("images", "clips")
    items = list(DataLoader(train, batch_size=None))
    workers = DataLoader(train, batch_size=None, num_workers=2, multiprocessing_context=context)
    assert same(list(workers), items)


def test_both_are_streamed_or_refused(load):
    train, held_out = load("images", streaming=True, max_eval_samples=2, shuffle_buffer_size=2)
    assert len(held_out) == 2
    assert next(iter(train))["pixel_values"].shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="`clips_dir` cannot be streamed"):
        load("clips", streaming=True)


def test_blur_is_on_the_first_view_and_solarization_on_the_second():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(pixels)
    plain = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    blurred, sharp = build_view_transforms(processor_for(), PairAugmentationArguments(**{**OFF, "blur": 1.0}))
    torch.testing.assert_close(sharp(image), plain)
    assert blurred(image).std() < 0.95 * plain.std()
    same_view, solarized = build_view_transforms(processor_for(), PairAugmentationArguments(**{**OFF, "solarize": 1.0}))
    torch.testing.assert_close(same_view(image), plain)
    torch.testing.assert_close(solarized(image), torch.where(plain * 255 >= 128, 1 - plain, plain))


def test_grey_images_of_one_channel_are_augmented():
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(50, 200, (16, 16), dtype=np.uint8))
    args = PairAugmentationArguments(color_jitter=1.0, grayscale=1.0, solarize=1.0, max_shift=0.2, random_erasing=1.0)
    views = [transform(image) for transform in build_view_transforms(processor_for(1), args)]
    assert [view.shape for view in views] == [(1, 16, 16)] * 2
    jitter = PairAugmentationArguments(**{**OFF, "color_jitter": 1.0})
    view = build_view_transforms(processor_for(1), jitter)[0](image)
    assert not torch.equal(view, torch.from_numpy(np.array(image))[None] / 255)


def test_shifts_move_the_image():
    pixels = np.zeros((16, 16), np.uint8)
    pixels[6:10, 6:10] = 255
    args = PairAugmentationArguments(**OFF, max_shift=0.25)
    transform, _ = build_view_transforms(processor_for(1), args)
    views = torch.cat([transform(PIL.Image.fromarray(pixels)) for _ in range(40)])
    assert (views.sum(dim=(1, 2)) == 16).all()
    assert len({tuple(view.nonzero()[0].tolist()) for view in views}) > 10


@pytest.mark.parametrize(
    ("arguments", "channels", "message"),
    [
        ({"blur": 1.5}, 3, r"`blur` must lie in \[0, 1\], got 1.5"),
        ({"max_shift": -1.0}, 3, r"`max_shift` must lie in \[0, 1\], got -1.0"),
        ({"color_jitter_strength": [0.4, 0.4]}, 3, "`color_jitter_strength` must be four numbers"),
        ({"color_jitter_strength": [0.4, 0.4, 0.2, 0.6]}, 3, "hue at most 0.5"),
        ({}, 4, "`color_jitter` needs images in grey or colour, these have 4 channels"),
    ],
)
def test_bad_settings(arguments, channels, message):
    with pytest.raises(ValueError, match=message):
        build_view_transforms(processor_for(channels), PairAugmentationArguments(**arguments))


def test_bad_clips(load, folders):
    with pytest.raises(ValueError, match="`clip_parts` must be at least 2, got 1"):
        load("clips", clip_parts=1)
    (folders / "clips" / "bad").mkdir()
    PIL.Image.new("L", (16, 16)).save(folders / "clips" / "bad" / "0.png")
    train, held_out = load("clips")
    with pytest.raises(ValueError, match=r"bad has 1 frame, two are needed\. `--skip_bad_images` leaves such out"):
        list(DataLoader(ConcatDataset([train, held_out]), batch_size=None))
    assert sum(map(len, load("clips", skip_bad_images=True))) == 5
    with pytest.raises(ValueError, match="a single clip cannot be split"):
        split_clips([Clip("a")], 0.15, 0)
    with pytest.raises(ValueError, match=r"`train_val_split` must lie between 0 and 1, got 1\.5"):
        load("clips", train_val_split=1.5)


def test_a_picture_without_pairs_is_named():
    transforms = build_view_transforms(processor_for(), PairAugmentationArguments())
    dataset = PairDataset([encode(np.zeros((3, 3), np.uint8))], transforms, transforms[0], CONFIG, 2, 0)
    with pytest.raises(ValueError, match="The image number 0 is 3 x 3 pixels"):
        dataset[0]
