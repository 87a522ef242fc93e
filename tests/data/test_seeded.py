"""Batches without an end are a function of the seed and their number."""

import itertools

from crate_mae_hf.data.seeded import EndlessBatches


def take(count: int, *args) -> list[list[tuple[int, int]]]:
    return list(itertools.islice(EndlessBatches(*args), count))


def test_an_epoch_has_each_image_once():
    batches = take(5, 8, 4, 0)
    assert [epoch for batch in batches for epoch, _ in batch] == [0] * 8 + [1] * 8 + [2] * 4
    epochs = [[index for _, index in batches[i] + batches[i + 1]] for i in (0, 2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(8))
    assert epochs[0] != epochs[1]


def test_batches_are_the_same_wherever_one_begins():
    whole = take(9, 10, 3, 5)
    for start in range(9):
        assert take(9 - start, 10, 3, 5, start) == whole[start:]
    assert take(9, 10, 3, 6) != whole


def test_all_batches_are_of_one_size():
    assert {len(batch) for batch in take(7, 10, 4, 0)} == {4}
    assert {len(batch) for batch in take(7, 3, 8, 0)} == {3}
