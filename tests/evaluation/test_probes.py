import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from crate_mae_hf.evaluation import probes
from crate_mae_hf.evaluation.probes import C_GRID, draw_evenly, linear_probe, nearest_neighbours


@pytest.fixture
def digits():
    features, labels = load_digits(return_X_y=True)
    return features[:600], labels[:600], features[600:1000], labels[600:1000]


def test_accuracy_is_that_of_scikit_learn(digits):
    result = linear_probe(*digits, seed=0)
    train_x, train_y, test_x, test_y = digits
    scaler = StandardScaler().fit(train_x)
    classifier = LogisticRegression(C=result.C, tol=1e-3, max_iter=1000).fit(scaler.transform(train_x), train_y)
    assert result.accuracy == classifier.score(scaler.transform(test_x), test_y)
    assert result.C in C_GRID
    assert result.converged
    assert result.accuracy > 0.85
    assert linear_probe(*digits, seed=0) == result


def test_the_test_set_decides_nothing_but_the_score(digits):
    train_x, train_y, test_x, test_y = digits
    rng = np.random.default_rng(0)
    shuffled = linear_probe(train_x, train_y, test_x, rng.permutation(test_y))
    assert shuffled.C == linear_probe(*digits).C
    assert shuffled.accuracy < 0.3


def test_bad_labels_get_a_clear_error(digits):
    train_x, train_y, test_x, test_y = digits
    with pytest.raises(ValueError, match="`train_labels` must have at least 2 classes, got 1"):
        linear_probe(train_x, np.zeros(600), test_x, np.zeros(400))
    with pytest.raises(ValueError, match=r"`test_labels` has \[9\], which `train_labels` does not"):
        linear_probe(train_x, np.minimum(train_y, 8), test_x, test_y)


def test_too_few_examples_get_a_clear_error(digits):
    train_x, train_y, test_x, test_y = digits
    lonely = np.where(np.arange(600) == 7, 10, train_y)
    with pytest.raises(ValueError, match="each class at least twice, got 10 once"):
        linear_probe(train_x, lonely, test_x, test_y)
    few = np.concatenate([np.flatnonzero(train_y == c)[:2] for c in range(10)])
    with pytest.raises(ValueError, match=r"must be at least 50 for 10 classes.*got 20"):
        linear_probe(train_x[few], train_y[few], test_x, test_y)


def test_examples_are_drawn_evenly_and_by_seed():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [50, 30, 4]))
    for count, expected in ((12, [4, 4, 4]), (20, [8, 8, 4]), (84, [50, 30, 4])):
        drawn = draw_evenly(labels, count, seed=1)
        assert np.bincount(labels[drawn]).tolist() == expected
        assert len(set(drawn.tolist())) == count
    assert sorted(np.bincount(labels[draw_evenly(labels, 11, seed=1)]).tolist()) == [3, 4, 4]
    assert np.array_equal(draw_evenly(labels, 12, seed=1), draw_evenly(labels, 12, seed=1))
    assert not np.array_equal(draw_evenly(labels, 12, seed=1), draw_evenly(labels, 12, seed=2))
    assert set(draw_evenly(labels, 12, seed=1)) < set(draw_evenly(labels, 20, seed=1))
    with pytest.raises(ValueError, match=r"`count` must lie in \[1, 84\].*got 85"):
        draw_evenly(labels, 85, seed=1)


def test_a_hundred_labels_do_for_ten_classes(digits, monkeypatch):
    train_x, train_y, test_x, test_y = digits
    few, fitted = draw_evenly(train_y, 100, seed=0), []

    def fit_probe(C, features, labels):
        fitted.append(labels)
        return original(C, features, labels)

    original = probes.fit_probe
    monkeypatch.setattr(probes, "fit_probe", fit_probe)
    assert linear_probe(train_x[few], train_y[few], test_x, test_y).accuracy > 0.75
    assert [len(labels) for labels in fitted] == [80] * len(C_GRID) + [100]
    assert all((np.bincount(labels) == len(labels) / 10).all() for labels in fitted)  # of each class alike


def test_a_fit_that_does_not_converge_is_reported(digits, monkeypatch):
    monkeypatch.setattr(
        probes, "LogisticRegression", lambda **settings: LogisticRegression(**{**settings, "max_iter": 2})
    )
    assert not linear_probe(*digits).converged


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 1.0), (20, 0.001)])
def test_neighbours_vote_as_in_a_plain_loop(digits, k, temperature):
    train_x, train_y, test_x, _ = (part.astype(np.float32) if part.dtype == float else part for part in digits)
    train_x, test_x = train_x - 8, test_x[:100] - 8
    predicted = nearest_neighbours(train_x, train_y, test_x, k, temperature, chunk_size=33)
    for x, prediction in zip(test_x, predicted, strict=True):
        similarities = [float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for y in train_x.astype(np.float64)]
        votes = np.zeros(10)
        for index in sorted(range(len(train_x)), key=lambda index: -similarities[index])[:k]:
            votes[train_y[index]] += np.exp((similarities[index] - max(similarities)) / temperature)
        assert prediction == votes.argmax()


def test_bad_settings_of_neighbours_get_a_clear_error(digits):
    train_x, train_y, test_x, _ = digits
    with pytest.raises(ValueError, match=r"`k` must lie in \[1, 600\].*got 601"):
        nearest_neighbours(train_x, train_y, test_x, k=601)
    with pytest.raises(ValueError, match="`temperature` must be positive, got 0"):
        nearest_neighbours(train_x, train_y, test_x, temperature=0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_neighbours_of_what_is_no_number(value):
    features = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    broken = features.copy()
    broken[3, 1] = broken[7, 0] = value
    labels = np.arange(30) % 2
    with pytest.raises(ValueError, match="`train_features` must be finite, 2 of 30 images"):
        nearest_neighbours(broken, labels, features, k=3)
    with pytest.raises(ValueError, match="`test_features` must be finite"):
        nearest_neighbours(features, labels, broken, k=3)
