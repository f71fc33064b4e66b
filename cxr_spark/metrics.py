"""CCE, accuracy, calibration error, ROC curves and the confusion matrix on numpy arrays."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxr_spark.labels import CLASSES

N_CLASSES = len(CLASSES)
SMALLEST_PROBABILITY = 1e-15
SUM_TOLERANCE = 1e-3

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


class MetricInputError(ValueError):
    """The arrays given to a metric do not fit each other or are no probabilities."""


def is_distribution(probabilities: ArrayLike) -> Booleans:
    """(N,) True where a row of (N, 9) holds finite values in [0, 1] that sum to 1 within 1e-3."""
    given = np.asarray(probabilities, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        in_range = np.all((given >= 0) & (given <= 1 + SUM_TOLERANCE), axis=1)
        return np.asarray(in_range & (np.abs(given.sum(axis=1) - 1) <= SUM_TOLERANCE))


def log_losses(probabilities: ArrayLike, label_index: ArrayLike) -> Floats:
    """The negative natural logarithm of p(true class) of each row, p clipped to [1e-15, 1].

    Args:
        probabilities: (N, 9), each row a distribution (see is_distribution).
        label_index: (N,) integers 0 to 8.

    Raises:
        MetricInputError: shapes do not fit, a label is none, a row is no distribution.
    """
    given, labels = _checked(probabilities, label_index)
    of_true_class = given[np.arange(len(labels)), labels]
    return -np.log(np.clip(of_true_class, SMALLEST_PROBABILITY, 1.0))


def cce(probabilities: ArrayLike, label_index: ArrayLike) -> float:
    """Categorical cross-entropy: the mean of log_losses, in nats; NaN without rows."""
    losses = log_losses(probabilities, label_index)
    return float(losses.mean()) if len(losses) else float("nan")


def correct(probabilities: ArrayLike, label_index: ArrayLike) -> Booleans:
    """(N,) True where the largest probability is the true class's; of equals the first counts."""
    given, labels = _checked(probabilities, label_index)
    return np.asarray(given.argmax(axis=1) == labels)


def accuracy(probabilities: ArrayLike, label_index: ArrayLike) -> float:
    """Share of rows that are correct; NaN without rows."""
    hits = correct(probabilities, label_index)
    return float(hits.mean()) if len(hits) else float("nan")


def confusion_matrix(probabilities: ArrayLike, label_index: ArrayLike) -> Integers:
    """(9, 9) counts: row = true class, column = class of the largest probability."""
    given, labels = _checked(probabilities, label_index)
    cells = labels * N_CLASSES + given.argmax(axis=1)
    return np.bincount(cells, minlength=N_CLASSES**2).reshape(N_CLASSES, N_CLASSES)


def ece(probabilities: ArrayLike, label_index: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599); NaN without rows.

    The confidence of a row is its largest probability. Confidences from 0 to 1 are divided into
    bins of equal width, closed below and open above, the last one closed; the error is the mean
    over rows of |accuracy - mean confidence| of a row's bin.

    Args:
        probabilities: (N, 9), each row a distribution.
        label_index: (N,) integers 0 to 8.
        bins: their number.

    Raises:
        MetricInputError: as log_losses.
    """
    given, labels = _checked(probabilities, label_index)
    if not len(labels):
        return float("nan")
    confidence = given.max(axis=1)
    gaps = confidence - (given.argmax(axis=1) == labels)
    by_bin = np.bincount(confidence_bin(confidence, bins), weights=gaps, minlength=bins)
    return float(np.abs(by_bin).sum() / len(labels))


def confidence_bin(confidence: ArrayLike, bins: int) -> Integers:
    """(N,) the bin of each confidence in 0 to 1, see `ece`."""
    inner_edges = np.linspace(0.0, 1.0, bins + 1)[1:-1]
    return np.digitize(np.asarray(confidence, np.float64), inner_edges).astype(np.int64)


def roc_points(scores: ArrayLike, positive: ArrayLike) -> tuple[Floats, Floats]:
    """False and true positive rates at every threshold, from (0, 0) to (1, 1).

    Args:
        scores: (N,) greater means more likely positive; equal scores share one point.
        positive: (N,) bool.

    Returns:
        Two (K,) arrays; NaN throughout the rate that has no rows to be a share of.
    """
    given, truth = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    _, place = np.unique(-given, return_inverse=True)
    with np.errstate(invalid="ignore"):
        hits = np.cumsum(np.bincount(place, weights=truth)) / truth.sum()
        alarms = np.cumsum(np.bincount(place, weights=~truth)) / (~truth).sum()
    return np.concatenate(([0.0], alarms)), np.concatenate(([0.0], hits))


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Area under roc_points by trapezoids (ties count half); NaN unless both kinds occur."""
    truth = np.asarray(positive, dtype=bool)
    if truth.all() or not truth.any():
        return float("nan")
    false_positive_rate, true_positive_rate = roc_points(scores, truth)
    return float(np.trapz(true_positive_rate, false_positive_rate))


def auroc_per_class(probabilities: ArrayLike, label_index: ArrayLike) -> Floats:
    """(9,) one-vs-rest AUROC; NaN where a class, or every other class, is absent."""
    given, labels = _checked(probabilities, label_index)
    return np.array([auroc(given[:, index], labels == index) for index in range(N_CLASSES)])


def _checked(probabilities: ArrayLike, label_index: ArrayLike) -> tuple[Floats, Integers]:
    given, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(label_index)
    if given.ndim != 2 or given.shape != (len(labels), N_CLASSES):
        wanted = f"({len(labels)}, {N_CLASSES})"
        raise MetricInputError(f"probabilities: expected shape {wanted}, got {given.shape}")
    if len(labels) and (labels.min() < 0 or labels.max() >= N_CLASSES):
        raise MetricInputError(f"label_index: expected 0 to {N_CLASSES - 1}, got {labels}")
    bad = np.flatnonzero(~is_distribution(given))
    if len(bad):
        raise MetricInputError(f"probabilities: row {bad[0]} is no distribution: {given[bad[0]]}")
    return given, labels.astype(np.int64)
