"""The masked loss by which candidates of lambda are compared."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForPreTraining

from crate_mae_hf.evaluation.lambda_study import compare_lambda, find_images


@pytest.fixture
def images(tmp_path):
    """A folder of 18 images, one of them grey and in a subfolder, beside a file that is none."""
    generator = np.random.default_rng(0)
    (tmp_path / "images" / "more").mkdir(parents=True)
    for name in [f"{i}.png" for i in range(17)] + ["more/grey.png"]:
        shape = (40, 40) if "grey" in name else (40, 50, 3)
        PIL.Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / "images" / name)
    (tmp_path / "images" / "notes.txt").write_text("none")
    return tmp_path / "images"


def test_the_loss_of_each_candidate_is_that_of_the_model(images, pretrained):
    paths = find_images(images)
    losses = compare_lambda(pretrained, [0.1, 5.0], paths)
    written = json.loads((pretrained / "lambda_comparison.json").read_text())
    assert written == {"images": 18, "masked_loss": {str(value): loss for value, loss in losses.items()}}
    processor = AutoImageProcessor.from_pretrained(pretrained)
    pixel_values = processor([PIL.Image.open(path) for path in paths], return_tensors="pt").pixel_values
    # The masks are drawn batch by batch, the same for each candidate.
    generator = torch.Generator().manual_seed(0)
    noise = torch.cat([torch.rand(size, 16, generator=generator) for size in (16, 2)])
    for value, loss in losses.items():
        model = AutoModelForPreTraining.from_pretrained(pretrained, ista_lambda=value)
        assert loss == pytest.approx(model(pixel_values, noise=noise).loss.item(), rel=1e-5)
    assert losses[0.1] != losses[5.0]


def test_pictures_are_turned_and_bad_ones_named(pretrained, tmp_path):
    turned, exif = tmp_path / "turned.png", PIL.Image.Exif()
    exif[0x0112] = 6
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    picture.save(tmp_path / "plain.png")
    picture.transpose(PIL.Image.Transpose.ROTATE_90).save(turned, exif=exif)
    assert compare_lambda(pretrained, [0.5], [turned]) == compare_lambda(pretrained, [0.5], [tmp_path / "plain.png"])
    turned.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"^Cannot read the image .*turned\.png: Pillow knows no format"):
        compare_lambda(pretrained, [0.5], [turned])


def test_a_folder_without_images(tmp_path):
    with pytest.raises(ValueError, match="`images`: there are no images in"):
        find_images(tmp_path)
