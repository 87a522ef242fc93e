import numpy as np
import PIL.Image
import pytest
import torch
from transformers import ViTImageProcessor

from crate_mae_hf import CrateMaeConfig, CrateMaeImageProcessor
from crate_mae_hf.data.augmentation import MixingCollator, build_eval_transform, build_train_transform
from crate_mae_hf.data.labels import LabelledDataset


def picture(number: int, mode: str = "RGB") -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)).convert(
        mode
    )


@pytest.fixture
def processor(config):
    return CrateMaeImageProcessor.from_config(config)


@pytest.mark.parametrize("channels", [1, 3])
def test_rand_augment_and_random_erasing(config, channels):
    processor = CrateMaeImageProcessor.from_config(
        CrateMaeConfig(**{**config.to_dict(), "num_channels": channels}), [0.5] * channels, [0.25] * channels
    )
    plain = build_train_transform(processor, 1.0, False)
    image = picture(0)
    augmented = build_train_transform(processor, 1.0, False, rand_augment_num_ops=2, rand_augment_magnitude=14)
    results = [augmented(image) for _ in range(10)]
    assert all(result.shape == (channels, 32, 32) for result in results)
    assert sum(not torch.equal(result, plain(image)) for result in results) >= 5
    erased = build_train_transform(processor, 1.0, False, random_erasing=1.0)(image)
    changed = erased != plain(image)
    assert 0 < changed.float().mean() < 0.5
    assert (erased[changed] == 0).all()  # the mean colour


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rand_augment_num_ops": -1}, "`rand_augment_num_ops` must not be negative, got -1"),
        ({"rand_augment_magnitude": 31}, r"`rand_augment_magnitude` must lie in \[0, 30\], got 31"),
        ({"random_erasing": 1.5}, r"`random_erasing` must lie in \[0, 1\], got 1.5"),
        ({"rand_augment_num_ops": 1, "num_channels": 5}, "needs images in grey or colour, these have 5 channels"),
    ],
)
def test_augmentation_has_ranges(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_train_transform(processor, **arguments)


def test_processors_of_other_models():
    processor = ViTImageProcessor(size={"height": 16, "width": 24})
    for mode in ("L", "RGB", "RGBA"):
        assert build_eval_transform(processor, 3)(picture(0, mode)).shape == (3, 16, 24)
        assert build_train_transform(processor, num_channels=3)(picture(0, mode)).shape == (3, 16, 24)
    expected = processor(picture(0), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(build_eval_transform(processor, 3)(picture(0)), expected)
    with pytest.raises(ValueError, match="one height and width"):
        build_train_transform(ViTImageProcessor(size={"shortest_edge": 16}), num_channels=3)


def batch(num_images: int = 6) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"pixel_values": torch.rand(3, 8, 8, generator=generator), "labels": index % 4, "mixing_seed": torch.tensor(5)}
        for index in range(num_images)
    ]


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_labels_are_the_shares_of_the_images(alphas):
    collate = MixingCollator(4, *alphas)
    items = batch()
    mixed = collate(items)
    images, labels = mixed["pixel_values"], mixed["labels"]
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(6))
    assert ((labels > 0).sum(dim=1) == 2).all()
    share = labels[0, 0]
    own, other = items[0]["pixel_values"], items[5]["pixel_values"]
    blended = torch.allclose(images[0], share * own + (1 - share) * other, atol=1e-6)
    pasted = (images[0] == own) | (images[0] == other)
    assert blended or (pasted.all() and (images[0] == own).float().mean() == pytest.approx(share.item()))

    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(collate(items)["pixel_values"], images)
    assert torch.equal(torch.get_rng_state(), state)
    for item in items:
        item["mixing_seed"] += 1
    assert not torch.equal(collate(items)["pixel_values"], images)


def test_images_of_an_evaluation_are_not_mixed():
    items = [{"pixel_values": torch.rand(3, 8, 8), "labels": index} for index in range(3)]
    result = MixingCollator(4, 0.8)(items)
    assert set(result) == {"pixel_values", "labels"}
    assert torch.equal(result["pixel_values"], torch.stack([item["pixel_values"] for item in items]))
    assert result["labels"].tolist() == [0, 1, 2]
    for arguments, message in (((-1.0,), "`mixup_alpha` must not be negative"), ((0.0, 0.0), "are both 0")):
        with pytest.raises(ValueError, match=message):
            MixingCollator(4, *arguments)


def test_items_depend_on_seed_epoch_and_index(processor, tmp_path):
    records = []
    for number in range(4):
        picture(number).save(tmp_path / f"{number}.png")
        content = (tmp_path / f"{number}.png").read_bytes()
        records.append({"image": {"bytes": content, "path": None}, "label": number % 2})
    transform = build_train_transform(processor, rand_augment_num_ops=2)
    dataset = LabelledDataset(records, transform, (8, 8), seed=0, with_mixing_seed=True)
    first = [dataset[index] for index in range(4)]
    again = [dataset[index] for index in reversed(range(4))][::-1]
    assert [item["labels"] for item in first] == [0, 1, 0, 1]
    assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(first, again, strict=True))
    assert [a["mixing_seed"] for a in first] == [b["mixing_seed"] for b in again]
    dataset.set_epoch(1)
    assert not any(torch.equal(dataset[i]["pixel_values"], first[i]["pixel_values"]) for i in range(4))
    assert "mixing_seed" not in LabelledDataset(records, transform, (8, 8), seed=0)[0]
