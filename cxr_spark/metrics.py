"""CCE and its baselines, AUROC, confusion matrix and bootstrap intervals on numpy arrays."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxr_spark.labels import CLASSES

N_CLASSES = len(CLASSES)
SMALLEST_PROBABILITY = 1e-15
SUM_TOLERANCE = 1e-3
RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)
DRAWS_AT_ONCE = 4_000_000

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


def class_shares(train_counts: ArrayLike, needed: ArrayLike) -> Floats:
    """Shares of the nine classes among train rows, smoothed only where they must be.

    Args:
        train_counts: (9,) rows of each class in train.
        needed: (9,) bool, the classes that occur among the rows to be judged.

    Returns:
        (9,) shares that sum to 1. Where a needed class never occurs in train, its share would be
        0 and the CCE a matter of the clip, so one row is added to every class.
    """
    counts = np.asarray(train_counts, dtype=np.float64)
    if np.any(counts[np.asarray(needed, dtype=bool)] == 0):
        counts = counts + 1
    return counts / counts.sum()


def prior_probabilities(train_counts: ArrayLike, label_index: ArrayLike) -> Floats:
    """(N, 9) probabilities that know only the class shares of train: the same in every row."""
    labels = np.asarray(label_index, dtype=np.int64)
    return np.tile(class_shares(train_counts, _occurring(labels)), (len(labels), 1))


def source_only_probabilities(
    train_counts: Mapping[str, ArrayLike], source: ArrayLike, label_index: ArrayLike
) -> Floats:
    """(N, 9) probabilities that know only each image's source: that source's class shares in train.

    Args:
        train_counts: (9,) rows of each class in train, by source.
        source: (N,) source of each row.
        label_index: (N,) true classes, which decide the sources whose shares are smoothed (see
            class_shares). A source without any row in train gets the same share for all nine.
    """
    sources, labels = np.asarray(source, dtype=str), np.asarray(label_index, dtype=np.int64)
    probabilities = np.empty((len(labels), N_CLASSES))
    for name in np.unique(sources):
        of_source = sources == name
        counts = train_counts.get(str(name), np.zeros(N_CLASSES))
        probabilities[of_source] = class_shares(counts, _occurring(labels[of_source]))
    return probabilities


def share_of_gain(cce_prior: float, cce_source_only: float, cce_model: float) -> float | None:
    """The part of a model's gain over the prior that the source alone gives; None: no gain."""
    gain = cce_prior - cce_model
    return (cce_prior - cce_source_only) / gain if gain > 0 else None


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


def bootstrap_means(
    values: ArrayLike, groups: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """Means over rows when whole groups are drawn with replacement.

    Images of one patient are alike, so drawing images would make intervals too narrow. The columns
    of `values` share the draws: differences between them can be taken draw by draw.

    Args:
        values: (N, M) one column a quantity.
        groups: (N,) group of each row; as many groups are drawn as there are.
        resamples: number of draws.
        seed: the same seed, values and groups give the same means, in any order of the rows.

    Returns:
        (resamples, M) float64.
    """
    given = np.asarray(values, dtype=np.float64)
    names, group_of_row = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(group_of_row)
    sums = np.column_stack([np.bincount(group_of_row, weights=column) for column in given.T])
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, given.shape[1]))
    step = max(1, DRAWS_AT_ONCE // len(names))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = generator.integers(0, len(names), size=(count, len(names)))
        drawn += np.arange(count)[:, None] * len(names)
        times = np.bincount(drawn.ravel(), minlength=count * len(names)).reshape(count, -1)
        means[start : start + count] = (times @ sums) / (times @ sizes)[:, None]
    return means


def intervals(values: ArrayLike, groups: ArrayLike, *, seed: int = 0) -> Floats:
    """(2, M) low and high end of each column's percentile 95 % interval over groups.

    NaN where there are fewer than two groups: nothing can be said then.
    """
    given = np.asarray(values, dtype=np.float64)
    if len(np.unique(np.asarray(groups))) < 2:
        return np.full((2, given.shape[1]), np.nan)
    return np.percentile(bootstrap_means(given, groups, seed=seed), PERCENTILES, axis=0)


def _occurring(label_index: Integers) -> Booleans:
    return np.bincount(label_index, minlength=N_CLASSES) > 0


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
