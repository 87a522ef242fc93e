import re

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from transformers import ConvNextConfig, ConvNextImageProcessor, ConvNextModel, ViTImageProcessor

from crate_mae_hf import CrateMaeImageProcessor, CrateMaeImageProcessorPil, CrateMaeModel
from crate_mae_hf.evaluation import comparison
from crate_mae_hf.evaluation.cache import FeatureCache
from crate_mae_hf.evaluation.comparison import (
    DecodedImages,
    Encoder,
    ProbeImages,
    ProbeSettings,
    compare,
    load_encoders,
)
from crate_mae_hf.evaluation.features import image_batches
from crate_mae_hf.image_processing_crate_mae import CrateMaeImageProcessorMixin


def make_split(folder, count: int) -> datasets.Dataset:
    """Images of two classes, dark and light ones."""
    folder.mkdir()
    generator = np.random.default_rng(count)
    paths, labels = [], []
    for number in range(count):
        pixels = generator.integers(0, 40, (32, 32, 3)) + 180 * (number % 2)
        paths.append(str(folder / f"{number}.png"))
        PIL.Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
        labels.append(number % 2)
    return datasets.Dataset.from_dict({"image": paths, "label": labels}).cast_column(
        "image", datasets.Image(decode=False)
    )


@pytest.fixture
def images(tmp_path) -> ProbeImages:
    return ProbeImages(make_split(tmp_path / "train", 20), make_split(tmp_path / "test", 6))


@pytest.fixture
def encoder(config) -> Encoder:
    return Encoder("ours", "trained", CrateMaeModel(config).eval(), CrateMaeImageProcessor.from_config(config))


def settings(**changes) -> ProbeSettings:
    return ProbeSettings(**{"k": 3, "device": "cpu", **changes})


def test_one_row_per_encoder_and_kind_of_features(encoder, images):
    rows = compare([encoder], images, settings(raw_pixels=True))
    assert [(row["model"], row["features"], row["width"]) for row in rows] == [
        ("ours", "cls", 32),
        ("ours", "mean", 32),
        ("ours", "cls_mean", 64),
        ("ours", "grid", 128),
        ("raw pixels", "pixels", 3 * 32 * 32),
    ]
    assert rows[0]["weights"] == "trained"
    assert rows[0]["parameters"] == encoder.model.num_parameters()
    assert (rows[-1]["linear"], rows[-1]["knn"]) == (1.0, 1.0)  # brightness is easy to see
    (row,) = compare([encoder], images, settings(features=["mean"], layer="1", norm=False))
    assert (row["features"], row["layer"], row["norm"]) == ("mean", "1", "no")


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("processor_class", [CrateMaeImageProcessor, CrateMaeImageProcessorPil, ViTImageProcessor])
def test_jpegs_come_as_pixels_where_the_processor_is_on_torchvision(tmp_path, processor_class, num_channels):
    """To the same pixel values; pictures that are no plain JPEG stay Pillow's beside them."""
    colour = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    pictures = {"a.jpg": colour, "b.jpg": colour.convert("L"), "c.jpg": colour.convert("CMYK"), "d.png": colour}
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
    images = datasets.Dataset.from_dict({"image": [str(tmp_path / name) for name in pictures]})
    images = images.cast_column("image", datasets.Image(decode=False))
    size, half = {"height": 32, "width": 32}, [0.5] * num_channels
    processor = processor_class(size=size, crop_size=size, image_mean=half, image_std=half)
    if isinstance(processor, CrateMaeImageProcessorMixin):
        processor.num_channels = num_channels
    decoded = DecodedImages(images, processor)
    is_quick = processor_class is not CrateMaeImageProcessorPil
    assert [isinstance(decoded[i], torch.Tensor) for i in range(4)] == [is_quick, is_quick, False, False]
    (actual,) = image_batches(decoded, processor, num_channels)
    (expected,) = image_batches(DecodedImages(images), processor, num_channels)
    assert actual.shape == (4, num_channels, 32, 32)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


def test_few_labels_are_columns_of_their_own(encoder, images, monkeypatch):
    (plain,) = compare([encoder], images, settings(features=["mean"]))
    used, original = [], comparison.linear_probe

    def linear_probe(train, train_labels, *others):
        used.append(np.bincount(train_labels).tolist())
        return original(train, train_labels, *others)

    monkeypatch.setattr(comparison, "linear_probe", linear_probe)
    row, pixels = compare([encoder], images, settings(features=["mean"], few_labels=[16, 10], raw_pixels=True))
    assert used == [[10, 10], [8, 8], [5, 5]] * 2
    assert {name: row[name] for name in plain} == plain
    assert set(row) - set(plain) == {"C_16", "linear_16", "C_10", "linear_10"}
    assert (pixels["linear_16"], pixels["linear_10"]) == (1.0, 1.0)


def test_a_cache_is_filled_and_read(encoder, images, tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path / "features")
    rows = compare([encoder], images, settings(), cache)
    assert len(list((tmp_path / "features").iterdir())) == 2
    monkeypatch.setattr(comparison, "extract_features", lambda *args: pytest.fail("was computed again"))
    assert compare([encoder], images, settings(), cache) == rows


def test_models_with_fresh_weights_follow_the_trained_ones(encoder, tmp_path):
    encoder.model.save_pretrained(tmp_path / "model")
    encoder.processor.save_pretrained(tmp_path / "model")
    name = str(tmp_path / "model")
    assert [found.weights for found in load_encoders([name])] == ["trained"]
    trained, fresh = load_encoders([name], random_seed=1)
    (_, again), (_, other) = load_encoders([name], random_seed=1), load_encoders([name], random_seed=2)
    assert (trained.name, fresh.name, fresh.weights) == (name, name, "random")

    def dictionary(found):
        return found.model.layers[0].ista.dictionary

    assert dictionary(trained).equal(dictionary(encoder))
    assert dictionary(fresh).equal(dictionary(again))
    assert not dictionary(fresh).equal(dictionary(other))


def test_everything_is_checked_before_features_are_extracted(encoder, images, monkeypatch):
    monkeypatch.setattr(comparison, "extract_features", lambda *args: pytest.fail("was extracted"))
    with pytest.raises(ValueError, match="`k` must be at most 20, the number of training images, got 21"):
        compare([encoder], images, settings(k=21))
    with pytest.raises(ValueError, match=r"ours: `layer` must lie in \[-4, 3\]"):
        compare([encoder], images, settings(layer="4"))
    for count, message in ((21, r"21: `count` must lie in \[1, 20\]"), (9, "9: `train_labels` must be at least 10")):
        with pytest.raises(ValueError, match=f"`few_labels` {message}"):
            compare([encoder], images, settings(few_labels=[10, count]))
    with pytest.raises(ValueError, match="`features`: ours has no towers, so there is no lightness"):
        compare([encoder], images, settings(features=["mean", "lightness"]))
    convnext = ConvNextModel(ConvNextConfig(hidden_sizes=[4, 4, 8, 8], depths=[1, 1, 1, 1])).eval()
    processor = ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0)
    with pytest.raises(ValueError, match="`features`: theirs has no cls token, so there is no cls_mean"):
        compare([encoder, Encoder("theirs", "trained", convnext, processor)], images, settings(features=["cls_mean"]))
    with pytest.raises(ValueError, match="`features`: the 1 patch tokens of theirs are no grid of quarters"):
        compare([Encoder("theirs", "trained", convnext, processor)], images, settings(features=["mean", "grid"]))


def test_a_layer_may_be_a_number():
    assert [settings(layer=layer).layer_index for layer in (2, "2", "-3", "last")] == [2, 2, -3, -1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": ["mean", "avg"]}, "`features` must be of cls, mean, cls_mean, grid, lightness, color, got avg"),
        ({"layer": "first"}, "`layer` must be an integer or \"last\", got 'first'"),
        ({"k": 0}, "`k` must be at least 1, got 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"num_workers": -1}, "`num_workers` must not be negative, got -1"),
        ({"temperature": 0.0}, "`temperature` must be positive, got 0.0"),
        ({"device": "nowhere"}, "`device` nowhere: "),
    ],
)
def test_settings_have_ranges(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        settings(**changes)


def test_labels_have_to_do_for_a_probe(images, tmp_path):
    test = images.splits["test"]
    with pytest.raises(ValueError, match="`train_labels` must have at least 2 classes, got 1"):
        ProbeImages(images.splits["train"].filter(lambda label: label == 0, input_columns="label"), test)


def test_digests_are_those_of_the_files(images, tmp_path):
    before = images.digests
    PIL.Image.new("RGB", (32, 32)).save(tmp_path / "test" / "0.png")
    after = ProbeImages(**images.splits).digests
    assert after["train"] == before["train"]
    assert after["test"] != before["test"]
