"""Thresholds at which a class counts as found, chosen on one split to be judged on another."""

from typing import NamedTuple

import numpy as np

from cxr_spark.labels import CLASSES
from cxr_spark.metrics import Booleans, Floats
from cxr_spark.scored_rows import ScoredRows

SPECIFICITY = 0.90
"""What a threshold must reach on the rows that it is chosen on."""


class OperatingPoints(NamedTuple):
    """Thresholds of the classes (9,), one against the rest, and the rows they were chosen on.

    A class counts as found where its probability is at least the threshold; NaN: it has none.
    """

    thresholds: Floats
    n: int


def choose(rows: ScoredRows, specificity: float = SPECIFICITY) -> OperatingPoints:
    """The lowest threshold of each class that is specific enough.

    A class where every row is its own, or none is, has no threshold.

    Args:
        rows: to choose on.
        specificity: the share of the other classes' rows that must stay below, at least.
    """
    chosen = np.full(len(CLASSES), np.nan)
    for index in range(len(CLASSES)):
        of_class = rows.label_index == index
        if of_class.any() and not of_class.all():
            chosen[index] = _lowest(rows.probabilities[:, index], of_class, specificity)
    return OperatingPoints(chosen, len(rows))


def _lowest(scores: Floats, positive: Booleans, specificity: float) -> float:
    negatives = np.sort(scores[~positive])
    candidates = np.append(np.unique(scores), np.nextafter(scores.max(), np.inf))
    below = np.searchsorted(negatives, candidates, side="left") / len(negatives)
    return float(candidates[np.argmax(below >= specificity - 1e-12)])
