import io
import itertools

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from crate_mae_hf import CrateMaeImageProcessor
from crate_mae_hf.data.augmentation import build_eval_transform, build_train_transform
from crate_mae_hf.data.images import BadImageError, DataArguments
from crate_mae_hf.data.masks import MaskingDataset, load_datasets


def picture(number: int, mode: str = "RGB", size: tuple[int, int] = (40, 36)) -> PIL.Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


@pytest.fixture
def folder(tmp_path):
    """Twelve good images in two subfolders."""
    for number in range(12):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    return tmp_path / "images"


@pytest.fixture
def processor(config):
    return CrateMaeImageProcessor.from_config(config)


@pytest.fixture
def load(config, processor, tmp_path):
    def load(seed=0, **arguments):
        return load_datasets(
            DataArguments(cache_dir=str(tmp_path / "cache"), **arguments),
            config,
            build_train_transform(processor),
            build_eval_transform(processor),
            seed,
        )

    return load


def items(dataset, epoch=0) -> list[dict[str, torch.Tensor]]:
    dataset.set_epoch(epoch)
    return [dataset[index] for index in range(len(dataset))]


def equal(first, second) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all(torch.equal(a[key], b[key]) for a, b in pairs for key in ("pixel_values", "noise"))


# --- crops and masks


def test_everything_random_depends_on_seed_epoch_and_index(load, folder):
    train, evaluation = load(train_dir=str(folder))
    assert (len(train), len(evaluation)) == (10, 2)
    first = items(train)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert equal(first, items(train))
    assert torch.equal(state, torch.get_rng_state())  # the model's own draws are left alone
    assert equal(first[::-1], [train[index] for index in reversed(range(10))])  # not the order of access
    for other in (items(train, epoch=1), items(load(seed=1, train_dir=str(folder))[0])):
        assert not any(torch.equal(a["noise"], b["noise"]) for a, b in zip(first, other, strict=True))
        assert not any(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(first, other, strict=True))
    noises = torch.stack([item["noise"] for item in first])
    assert len(noises.unique(dim=0)) == 10
    assert noises.shape == (10, 16)


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_workers_see_the_epoch(load, folder, persistent_workers):
    train, _ = load(train_dir=str(folder))
    loader = torch.utils.data.DataLoader(train, batch_size=5, num_workers=1, persistent_workers=persistent_workers)
    for epoch in (0, 1, 0):
        expected = torch.stack([item["noise"] for item in items(train, epoch)])
        assert torch.equal(torch.cat([batch["noise"] for batch in loader]), expected)


def test_training_images_are_crops_and_evaluation_images_are_not(load, folder, processor):
    train, evaluation = load(train_dir=str(folder), train_val_split=0.5)
    names = [record["image"]["path"] for record in evaluation.records]
    for item, name in zip(items(evaluation), names, strict=True):
        expected = processor(PIL.Image.open(name), return_tensors="pt").pixel_values[0]
        assert torch.equal(item["pixel_values"], expected)
    assert {record["image"]["path"] for record in train.records}.isdisjoint(names)
    assert all(item["pixel_values"].shape == (3, 32, 32) for item in items(train))


def test_augmentation(processor):
    image = picture(0, size=(32, 32))
    whole = build_train_transform(processor, min_crop_scale=1.0, horizontal_flip=False)
    torch.testing.assert_close(whole(image), build_eval_transform(processor)(image))
    flipped = {tuple(build_train_transform(processor, 1.0)(image)[0, 0].tolist()) for _ in range(40)}
    assert flipped == {tuple(whole(image)[0, 0].tolist()), tuple(whole(image)[0, 0].flip(0).tolist())}
    with pytest.raises(ValueError, match=r"`min_crop_scale` must lie in \(0, 1\], got 0"):
        build_train_transform(processor, min_crop_scale=0)


# --- where images come from


def test_a_dataset_with_any_column_name(load, tmp_path):
    data = {"picture": [picture(number) for number in range(6)], "label": list(range(6))}
    dataset = datasets.Dataset.from_dict(data).cast_column("picture", datasets.Image())
    dataset.to_parquet(tmp_path / "data" / "train.parquet")
    train, evaluation = load(dataset_name=str(tmp_path / "data"), max_train_samples=3, max_eval_samples=1)
    assert (len(train), len(evaluation)) == (3, 1)
    named = load(dataset_name=str(tmp_path / "data"), image_column_name="picture", max_train_samples=3)[0]
    assert equal(items(train), items(named))
    with pytest.raises(ValueError, match="`image_column_name`: there is no column 'image', but picture, label"):
        load(dataset_name=str(tmp_path / "data"), image_column_name="image")
    with pytest.raises(ValueError, match="`image_column_name`: the column 'label' holds"):
        load(dataset_name=str(tmp_path / "data"), image_column_name="label")
    with pytest.raises(ValueError, match="`train_split_name`: there is no split 'training', but train"):
        load(dataset_name=str(tmp_path / "data"), train_split_name="training")


@pytest.mark.parametrize("name", [None, "validation", "test"])
def test_a_validation_folder(load, folder, caplog, name):
    arguments = {"validation_split_name": name, "train_split_name": "images"}  # which say nothing about folders
    train, evaluation = load(train_dir=str(folder / "a"), validation_dir=str(folder / "b"), **arguments)
    assert (len(train), len(evaluation)) == (6, 6)
    assert all("/b/" in record["image"]["path"] for record in evaluation.records)
    assert (
        f"Training on 6 images of the folder {folder / 'a'}; evaluating on 6 images of the folder {folder / 'b'}."
        in (caplog.text)
    )


def test_a_validation_split(load, tmp_path, caplog):
    for split in ("train", "test"):
        data = datasets.Dataset.from_dict({"image": [picture(number) for number in range(4)]})
        data.to_parquet(tmp_path / "data" / f"{split}.parquet")
    folder = str(tmp_path / "data")
    train, evaluation = load(dataset_name=folder, train_val_split=0.25)  # there is no "validation"
    assert (len(train), len(evaluation)) == (3, 1)
    assert f"evaluating on 1 images of the split 'train' of {folder}, held out of the training images." in caplog.text
    train, evaluation = load(dataset_name=folder, validation_split_name="test")
    assert (len(train), len(evaluation)) == (4, 4)
    assert f"evaluating on 4 images of the split 'test' of {folder}." in caplog.text
    with pytest.raises(ValueError, match="`validation_split_name`: there is no split 'dev', but train, test"):
        load(dataset_name=folder, validation_split_name="dev")


def test_streaming(load, folder, config):
    train, evaluation = load(train_dir=str(folder), streaming=True, max_eval_samples=3)
    images = list(itertools.islice(train, 20))  # a stream has no end
    assert all(torch.as_tensor(item["pixel_values"]).shape == (3, 32, 32) for item in images)
    assert len(evaluation) == 3
    assert equal(items(evaluation), items(evaluation))


# --- bad input


def test_no_images_named_or_twice(load):
    with pytest.raises(ValueError, match="`--dataset_name` or `--train_dir`"):
        load()
    for name in ("train_dir", "validation_dir"):
        with pytest.raises(ValueError, match=f"`dataset_name` and `{name}` name images in two ways"):
            load(**{"dataset_name": "a", name: "b"})
    with pytest.raises(ValueError, match="`validation_dir` needs `train_dir`"):
        load(validation_dir="a")


def test_missing_and_empty_folders(load, tmp_path):
    with pytest.raises(ValueError, match=r"`train_dir`: there is no folder .*nowhere"):
        load(train_dir=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"`train_dir`: there are no images in .*empty"):
        load(train_dir=str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"`dataset_name`: cannot load .*nowhere"):
        load(dataset_name=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="`train_val_split` must lie between 0 and 1, got 1"):
        load(train_dir=str(tmp_path), train_val_split=1)


def broken_images() -> dict[str, bytes]:
    buffer = io.BytesIO()
    picture(0).save(buffer, "png")
    tiny = io.BytesIO()
    picture(0, size=(6, 36)).save(tiny, "png")
    return {
        "truncated.png": buffer.getvalue()[:700],
        "text.png": b"not an image at all",
        "empty.jpg": b"",
        "tiny.png": tiny.getvalue(),
    }


@pytest.mark.parametrize("name", broken_images())
def test_bad_images_are_named(load, folder, name):
    (folder / name).write_bytes(broken_images()[name])
    train, evaluation = load(train_dir=str(folder), validation_dir=str(folder))
    message = "36 pixels, smaller than a patch" if name == "tiny.png" else "Cannot read the image"
    with pytest.raises(BadImageError, match=rf"{message}") as caught:
        items(evaluation)
    assert name in str(caught.value)
    loader = torch.utils.data.DataLoader(train, batch_size=20, num_workers=1)
    with pytest.raises(BadImageError, match=name):
        list(loader)


def test_bad_images_are_skipped_and_counted(load, folder, caplog):
    for name, content in broken_images().items():
        (folder / name).write_bytes(content)
    (folder / "notes.txt").write_text("about these images")
    caplog.set_level("WARNING")
    train, evaluation = load(train_dir=str(folder), validation_dir=str(folder), skip_bad_images=True)
    assert (len(train), len(evaluation)) == (12, 12)
    assert all(torch.isfinite(item["pixel_values"]).all() for item in items(train))
    assert "Left out 4 of 16 images" in caplog.text
    for name in [*broken_images(), "notes.txt"]:
        assert name in caplog.text


def test_bad_images_are_named_every_time(load, folder, caplog):
    (folder / "text.png").write_bytes(b"not an image at all")
    for _ in range(2):
        caplog.clear()
        load(train_dir=str(folder), validation_dir=str(folder), skip_bad_images=True)
        assert caplog.text.count("Cannot read the image") == 2
        assert caplog.text.count("Left out 1 of 13 images") == 2
        assert "object at 0x" not in caplog.text
    picture(1).save(folder / "text.png")  # mended in place
    assert len(load(train_dir=str(folder), validation_dir=str(folder), skip_bad_images=True)[0]) == 13


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_without_an_image_are_named_and_skipped(load, tmp_path, caplog, streaming):
    paths: list[str | None] = [str(tmp_path / f"{number}.png") for number in range(8)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    paths[2], paths[5] = None, None
    rows = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    rows.to_parquet(tmp_path / "data" / "train.parquet")
    arguments = {"dataset_name": str(tmp_path / "data"), "streaming": streaming, "max_eval_samples": 2}
    if streaming:
        train, _ = load(**arguments)
        with pytest.raises(BadImageError, match=r"There is no image \d of pass 0 of the stream: its row is empty"):
            list(itertools.islice(train, 8))
    else:
        with pytest.raises(ValueError, match=r"2 of 8 rows of the split 'train' of .* have no image: 2, 5 \(counted"):
            load(**arguments)
    train, evaluation = load(**arguments, skip_bad_images=True)
    items = list(itertools.islice(train, 4)) if streaming else train  # a stream begins again and again
    assert len(items) + len(evaluation) == 6
    assert len({item["pixel_values"].sum().item() for item in items}) == len(items)
    assert ("have no image: 2, 5" in caplog.text) != streaming


def test_rows_that_name_a_missing_file_are_named_and_skipped(load, tmp_path, caplog):
    for number in range(6):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "data").mkdir()
    names = [*(str(tmp_path / f"{number}.png") for number in range(6)), str(tmp_path / "gone.png"), ""]
    (tmp_path / "data" / "train.csv").write_text("\n".join(["image,kind", *(f"{name},a" for name in names)]))
    arguments = {"dataset_name": str(tmp_path / "data"), "image_column_name": "image", "skip_bad_images": True}
    train, evaluation = load(**arguments)
    assert len(train) + len(evaluation) == 6
    assert "gone.png: No such file or directory." in caplog.text
    assert "1 of 8 rows of the split 'train' " in caplog.text


def test_all_images_bad(load, tmp_path):
    (tmp_path / "bad").mkdir()
    for number in range(3):
        (tmp_path / "bad" / f"{number}.png").write_bytes(b"text")
    with pytest.raises(ValueError, match="None of the images can be used"):
        load(train_dir=str(tmp_path / "bad"), skip_bad_images=True)


def test_any_mode_among_rgb_images(load, folder):
    for mode in ("L", "P", "RGBA", "CMYK", "I;16"):
        image = picture(1, "I").point(lambda v: v * 257).convert("I;16") if mode == "I;16" else picture(1, mode)
        image.save(folder / f"{mode.replace(';', '')}.tif")
    train, _ = load(train_dir=str(folder), validation_dir=str(folder))
    assert all(item["pixel_values"].shape == (3, 32, 32) for item in items(train))


def test_dataset_of_records_in_memory(config):
    buffer = io.BytesIO()
    picture(0).save(buffer, "png")
    dataset = MaskingDataset(
        [{"image": {"bytes": buffer.getvalue(), "path": None}}, {"image": {"bytes": b"x", "path": None}}],
        lambda image: torch.zeros(3, 32, 32),
        config,
        seed=0,
    )
    assert dataset[0]["noise"].shape == (16,)
    with pytest.raises(BadImageError, match="Cannot read the image number 1"):
        dataset[1]
