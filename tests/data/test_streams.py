"""Images read from files one after the other, by any number of data loader workers."""

import io
import itertools
from multiprocessing.reduction import ForkingPickler

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from crate_mae_hf import CrateMaeImageProcessor
from crate_mae_hf.data import masks
from crate_mae_hf.data.augmentation import MixingCollator, build_eval_transform, build_train_transform
from crate_mae_hf.data.images import DataArguments, Split
from crate_mae_hf.data.labels import LabelledDataset
from crate_mae_hf.data.masks import MaskingDataset, load_datasets

NUM_IMAGES, NUM_HELD_OUT = 24, 5


@pytest.fixture
def records() -> list[dict]:
    """Encoded images of one grey each, which tells them apart."""
    found = []
    for number in range(NUM_IMAGES):
        PIL.Image.fromarray(np.full((40, 36, 3), 10 * number, np.uint8)).save(buffer := io.BytesIO(), "png")
        found.append({"image": {"bytes": buffer.getvalue(), "path": None}, "label": number % 2})
    return found


@pytest.fixture
def processor(config):
    return CrateMaeImageProcessor.from_config(config)


@pytest.fixture
def load(records, processor, config, monkeypatch):
    """Load the images as from five files, streamed; true files of a few images would be read slowly."""
    stream = datasets.Dataset.from_list(records).cast_column("image", datasets.Image()).to_iterable_dataset(5)
    monkeypatch.setattr(masks, "load_splits", lambda *args: (Split("train", stream, "five files"), None))

    def load(seed=0, **arguments):
        settings = {"streaming": True, "max_eval_samples": NUM_HELD_OUT, "shuffle_buffer_size": 6, **arguments}
        transforms = build_train_transform(processor), build_eval_transform(processor)
        return load_datasets(DataArguments(**settings), config, *transforms, seed)

    return load


def numbers(batches, processor) -> list[int]:
    """Tell the images of batches by their grey."""
    values = torch.cat([batch["pixel_values"][:, 0, 0, 0] for batch in batches])
    grey = (values * processor.image_std[0] + processor.image_mean[0]) * 255
    return (grey / 10).round().int().tolist()


def first_batches(stream, number: int, num_workers: int = 0) -> list[dict[str, torch.Tensor]]:
    return list(itertools.islice(DataLoader(stream, batch_size=1, num_workers=num_workers), number))


def equal(first, second) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a[key], b[key]) for a, b in pairs for key in ("pixel_values", "noise"))


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_no_worker_trains_on_what_is_held_out(load, processor, num_workers):
    stream, evaluation = load()
    assert numbers(DataLoader(evaluation), processor) == list(range(NUM_HELD_OUT))
    seen = numbers(first_batches(stream, 100, num_workers), processor)
    assert set(seen) == set(range(NUM_HELD_OUT, NUM_IMAGES))
    if num_workers < 2:  # every pass has each image once, in an order of its own
        passes = [seen[start : start + 19] for start in (0, 19, 38)]
        assert all(sorted(each) == list(range(NUM_HELD_OUT, NUM_IMAGES)) for each in passes)
        assert passes[0] != passes[1] != passes[2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_draws_are_those_of_seed_pass_and_position(load, num_workers):
    stream = load()[0]
    first = first_batches(stream, 45, num_workers)
    torch.manual_seed(99)
    assert equal(first_batches(stream, 45, num_workers), first)
    assert equal(first_batches(load()[0], 45, num_workers), first)
    assert not equal(first_batches(load(seed=1)[0], 45, num_workers), first)
    noise = [tuple(batch["noise"].flatten().tolist()) for batch in first]
    assert len(set(noise)) == 45


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # where there are fewer processors
def test_more_workers_than_files(load):
    assert len(first_batches(load()[0], 60, 6)) == 60


def test_limits_and_empty_streams(load, processor):
    seen = numbers(first_batches(load(max_train_samples=4)[0], 12), processor)
    assert set(seen) == {5, 6, 7, 8}  # of those that are not held out
    with pytest.raises(ValueError, match=r"The stream has no images to train on: .*`max_eval_samples`"):
        load(max_eval_samples=NUM_IMAGES)


def datasets_of_all_kinds(load, records, config, processor) -> list:
    transform = build_train_transform(processor, rand_augment_num_ops=1, random_erasing=0.5)
    return [
        MaskingDataset(records, transform, config, seed=0),
        MaskingDataset(records, build_eval_transform(processor), config, seed=0),
        LabelledDataset(records, transform, (8, 8), 0, with_mixing_seed=True),
        load(skip_bad_images=True)[0],
    ]


def test_workers_that_do_not_inherit_memory_can_have_everything(load, records, config, processor):
    for each in [*datasets_of_all_kinds(load, records, config, processor), MixingCollator(2, 0.8, 1.0)]:
        assert ForkingPickler.dumps(each)


class Beginning(IterableDataset):
    """The first images of every worker's share: one that is at its end sends nothing when the loader stops it.

    A spawned worker that is sending a tensor then is aborted by Python, before 3.14: its threads are ended
    inside of PyTorch's C++.
    """

    def __init__(self, stream, number: int) -> None:
        self.stream, self.number = stream, number

    def __iter__(self):
        return itertools.islice(self.stream, self.number)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_do_not_inherit_memory_draw_the_same(load, records, config, processor, method):
    *maps, stream = datasets_of_all_kinds(load, records, config, processor)
    workers = {"num_workers": 2, "multiprocessing_context": method, "persistent_workers": True}
    for dataset in maps:
        collate = MixingCollator(2, 0.8) if isinstance(dataset, LabelledDataset) else None
        loaders = [DataLoader(dataset, batch_size=4, collate_fn=collate, **args) for args in ({}, workers)]
        epochs = []
        for epoch in (0, 1):
            dataset.set_epoch(epoch)  # has to reach workers that were started before
            epochs.append([list(loader) for loader in loaders])
        for plain, parallel in epochs:
            for a, b in zip(plain, parallel, strict=True):
                assert all(torch.equal(a[key], b[key]) for key in a)
        key = "noise" if isinstance(dataset, MaskingDataset) else "pixel_values"
        assert not torch.equal(epochs[0][1][0][key], epochs[1][1][0][key])
    beginning = Beginning(stream, 20)
    assert equal(DataLoader(beginning, batch_size=1, **workers), first_batches(stream, 40, num_workers=2))
