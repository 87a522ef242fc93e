"""Probes: how much of a label can be read off features, by a linear map or from the nearest neighbours."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

# Inverse regularisation strengths to choose from.
C_GRID = (0.001, 0.01, 0.1, 1.0)
# Share of the training set on which one is chosen.
HELD_OUT = 0.2


@dataclass
class ProbeResult:
    """Accuracy on the test set, the regularisation that the training set chose, and whether the final fit converged."""

    accuracy: float
    C: float
    converged: bool


def build_probe(C: float) -> Pipeline:
    """Return multinomial logistic regression on standardised features."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, tol=1e-3, max_iter=1000))


def fit_probe(C: float, features: np.ndarray, labels: np.ndarray) -> tuple[Pipeline, bool]:
    """Fit a probe, and say whether it converged."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        probe = build_probe(C).fit(features, labels)
    converged = True
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            converged = False
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return probe, converged


def check_labels(train_labels: np.ndarray, test_labels: np.ndarray) -> None:
    """Raise ValueError unless there are two classes, every test label among them, and enough to hold some out."""
    classes, counts = np.unique(train_labels, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"`train_labels` must have at least 2 classes, got {len(classes)}.")
    if unseen := sorted(set(test_labels.tolist()) - set(classes.tolist())):
        raise ValueError(f"`test_labels` has {unseen}, which `train_labels` does not.")
    if counts.min() < 2:
        raise ValueError(f"`train_labels` must have each class at least twice, got {classes[counts.argmin()]} once.")
    if HELD_OUT * len(train_labels) < len(classes):
        raise ValueError(
            f"`train_labels` must be at least {len(classes) / HELD_OUT:.0f} for {len(classes)} classes, so that one of "
            f"each can be held out to choose C; got {len(train_labels)}."
        )


def draw_evenly(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw examples, equally many of each class as far as there are, and return where they stand, in their order.

    Those drawn for a smaller count are among those for a larger one.

    Args:
        labels: `(num_examples,)`.
        count: Number of examples to draw.
        seed: Seed that decides which.

    Raises:
        ValueError: If there are not so many.
    """
    if not 1 <= count <= len(labels):
        raise ValueError(f"`count` must lie in [1, {len(labels)}], the number of examples, got {count}.")
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)  # of each example within its class
    for label in np.unique(labels):
        members = labels[order] == label
        turn[members] = np.arange(members.sum())
    return np.sort(order[np.argsort(turn, kind="stable")[:count]])


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
        seed: Seed that decides which fifth.

    Raises:
        ValueError: If there is only one class, too few examples of one, or a test label that the training set does not
            have.
    """
    check_labels(train_labels, test_labels)
    fit_x, held_x, fit_y, held_y = train_test_split(
        train_features, train_labels, test_size=HELD_OUT, random_state=seed, stratify=train_labels
    )
    scores = {C: fit_probe(C, fit_x, fit_y)[0].score(held_x, held_y) for C in C_GRID}
    best = max(scores, key=lambda C: scores[C])
    probe, converged = fit_probe(best, train_features, train_labels)
    return ProbeResult(float(probe.score(test_features, test_labels)), best, converged)


def nearest_neighbours(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    k: int = 20,
    temperature: float = 0.07,
    chunk_size: int = 1024,
) -> np.ndarray:
    r"""Classify by a weighted vote of the nearest neighbours.

        score(c) = sum over the k nearest n with label c of exp(s_n / temperature),   s_n = cosine similarity

    Wu, Xiong, Yu, Lin: "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018; with
    k = 20 as in DINO (Caron et al., ICCV 2021).

    Args:
        train_features: `(num_train, num_features)`.
        train_labels: Numbers of the classes, from 0, `(num_train,)`.
        test_features: `(num_test, num_features)`.
        k: Number of neighbours that vote.
        temperature: Divisor of the similarities; the smaller, the more the nearest neighbours count.
        chunk_size: Number of test images compared at a time.

    Returns:
        Predicted classes, `(num_test,)`.

    Raises:
        ValueError: If there are fewer than k training images, k or the temperature is not positive, or a feature is
            infinite or no number.
    """
    if not 1 <= k <= len(train_features):
        raise ValueError(f"`k` must lie in [1, {len(train_features)}], the number of training images, got {k}.")
    if not temperature > 0:
        raise ValueError(f"`temperature` must be positive, got {temperature}.")
    for name, values in (("train_features", train_features), ("test_features", test_features)):
        if broken := int((~np.isfinite(values)).any(axis=1).sum()):
            raise ValueError(f"`{name}` must be finite, {broken} of {len(values)} images have a feature that is not.")
    train = torch.nn.functional.normalize(torch.from_numpy(train_features))
    labels = torch.from_numpy(train_labels)
    num_classes = int(labels.max()) + 1
    predictions = []
    for chunk in torch.from_numpy(test_features).split(chunk_size):
        similarities, neighbours = (torch.nn.functional.normalize(chunk) @ train.T).topk(k, dim=1)
        # Relative to the nearest, which changes no vote and cannot overflow at a low temperature.
        weights = ((similarities - similarities[:, :1]) / temperature).exp()
        scores = torch.zeros(len(chunk), num_classes).scatter_add_(1, labels[neighbours], weights)
        predictions.append(scores.argmax(dim=1))
    return torch.cat(predictions).numpy()
