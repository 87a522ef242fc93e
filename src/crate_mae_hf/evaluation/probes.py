"""Linear probes: how much of a label can be read off features by a linear map."""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

# Inverse regularisation strengths to choose from.
C_GRID = (0.001, 0.01, 0.1, 1.0)


@dataclass
class ProbeResult:
    """Accuracy on the test set, and the regularisation that the training set chose."""

    accuracy: float
    C: float


def build_probe(C: float) -> Pipeline:
    """Return multinomial logistic regression on standardised features."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, tol=1e-3, max_iter=1000))


def linear_probe(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    seed: int = 0,
) -> ProbeResult:
    """Fit a linear classifier to features and score it.

    C is chosen on a fifth of the training set, stratified by label; the test set is scored once.

    Args:
        train_features: `(num_train, num_features)`.
        train_labels: `(num_train,)`.
        test_features: `(num_test, num_features)`.
        test_labels: `(num_test,)`.
        seed: Decides which fifth.

    Raises:
        ValueError: If there is only one class, or a test label that the training set does not have.
    """
    classes = np.unique(train_labels)
    if len(classes) < 2:
        raise ValueError(f"`train_labels` must have at least 2 classes, got {len(classes)}.")
    if unseen := sorted(set(test_labels.tolist()) - set(classes.tolist())):
        raise ValueError(f"`test_labels` has {unseen}, which `train_labels` does not.")
    fit_x, held_x, fit_y, held_y = train_test_split(
        train_features, train_labels, test_size=0.2, random_state=seed, stratify=train_labels
    )
    scores = {C: build_probe(C).fit(fit_x, fit_y).score(held_x, held_y) for C in C_GRID}
    best = max(scores, key=lambda C: scores[C])
    accuracy = build_probe(best).fit(train_features, train_labels).score(test_features, test_labels)
    return ProbeResult(accuracy=float(accuracy), C=best)
