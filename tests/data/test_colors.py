"""Images for a model that learns from colour: which ones there are, and which are refused."""

import numpy as np
import PIL.Image
import pytest
import torch

from crate_mae_hf import CrateMaeImageProcessor, CrateSplitBrainConfig
from crate_mae_hf.data.augmentation import build_eval_transform, build_train_transform
from crate_mae_hf.data.colors import ColorDataset
from crate_mae_hf.data.images import BadImageError, DataArguments
from crate_mae_hf.data.masks import load_seeded

COLOURED = {"RGB": "png", "RGBA": "png", "P": "gif", "CMYK": "jpg"}


@pytest.fixture
def processor() -> CrateMaeImageProcessor:
    return CrateMaeImageProcessor.from_config(CrateSplitBrainConfig(image_size=16, patch_size=4))


@pytest.fixture
def folder(tmp_path):
    """Three images of each coloured mode."""
    (tmp_path / "images").mkdir()
    for number, mode in enumerate(3 * list(COLOURED)):
        pixels = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        image = PIL.Image.fromarray(pixels).resize((24, 20)).convert(mode)
        image.save(tmp_path / "images" / f"{number:02}.{COLOURED[mode]}")
    return tmp_path / "images"


@pytest.fixture
def load(folder, processor, tmp_path):
    def load(**arguments):
        def make(transform):
            return lambda records: ColorDataset(records, transform, (4, 4), seed=0)

        args = DataArguments(
            train_dir=str(folder), train_val_split=0.25, cache_dir=str(tmp_path / "cache"), **arguments
        )
        transforms = build_train_transform(processor, 0.5), build_eval_transform(processor)
        return load_seeded(args, (4, 4), *map(make, transforms), seed=0, needs_color=True)

    return load


def test_images_of_every_coloured_mode(load):
    train, test = load()
    assert (len(train), len(test)) == (9, 3)
    for dataset in (train, test):
        for item in (dataset[index] for index in range(len(dataset))):
            assert item.keys() == {"pixel_values"}
            values = item["pixel_values"]
            assert values.shape == (3, 16, 16)
            assert (values >= -0.1).all()  # not normalised; bicubic scaling may overshoot by a little
            assert (values <= 1.1).all()
            assert values.std(dim=0).max() > 0.05


@pytest.mark.parametrize(("mode", "ending"), [("L", "png"), ("LA", "png"), ("1", "png"), ("I;16", "png"), ("L", "jpg")])
def test_a_grey_image_is_named(load, folder, mode, ending):
    PIL.Image.new(mode, (20, 20)).save(folder / f"grey.{ending}")
    train, test = load()
    with pytest.raises(BadImageError, match=rf"grey\.{ending} is grey .*no colour to learn from. `--skip_bad_images`"):
        [dataset[index] for dataset in (train, test) for index in range(len(dataset))]
    train, test = load(skip_bad_images=True)
    assert len(train) + len(test) == 12


def test_grey_images_of_a_stream_are_left_out(load, folder):
    for number in range(3):
        PIL.Image.new("L", (20, 20)).save(folder / f"grey{number}.png")
    train, test = load(streaming=True, skip_bad_images=True, max_eval_samples=4)
    assert len(test) == 4
    items = iter(train)
    assert all(next(items)["pixel_values"].shape == (3, 16, 16) for _ in range(20))


def test_transforms_and_processor_agree(processor):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    expected = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    image = PIL.Image.fromarray(pixels)
    for transform in (build_train_transform(processor, 1.0, False), build_eval_transform(processor)):
        torch.testing.assert_close(transform(image), expected)
        with pytest.raises(ValueError, match=r"`images` must be in colour, got a grey one \(mode L\)"):
            transform(image.convert("L"))
