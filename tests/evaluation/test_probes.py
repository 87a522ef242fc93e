import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from crate_mae_hf.evaluation.probes import C_GRID, linear_probe


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
