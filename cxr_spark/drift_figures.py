"""How far figures of scored images are from a reference, and how far chance alone moves them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cxr_spark.labels import CLASSES

# How far a figure may move from the reference, in its own unit.
LIMITS = {"class_shares": 0.15, "confidence": 0.05, "errors": 0.02, "unusual": 0.04}
WORDS = {
    "class_shares": "class shares (total variation)",
    "confidence": "mean confidence",
    "errors": "share of errors",
    "unusual": "share with an entropy that one in a hundred of the reference has",
}
RISES_ONLY = {"errors", "unusual"}
MIN_IMAGES = 100
UNUSUAL_SHARE = 0.01
# Of all figures together: of a thousand runs on images like the reference's, one may seem to
# differ by more than chance.
FALSE_ALARMS = 1e-3
DRAWS = 10_000
# Bins of each histogram: classes, confidence from 0 to 1, entropy from 0 to ln 9, error or not.
BINS = {"classes": len(CLASSES), "confidence": 100, "entropy": 220, "errors": 2}

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
YES = np.array([0.0, 1.0])


class Histograms(NamedTuple):
    """Counts of rows; those with an error are in `errors` only."""

    classes: Counts
    confidence: Counts
    entropy: Counts
    errors: Counts

    @property
    def images(self) -> int:
        """Rows, those with an error among them."""
        return int(self.errors.sum())


class Figure(NamedTuple):
    """A figure of the reference and of a run; `by_chance` is the most that sampling explains."""

    name: str
    reference: float
    now: float
    moved: float
    allowed: float
    by_chance: float
    detail: str = ""

    @property
    def beyond(self) -> bool:
        """Whether it moved by more than is allowed, and by more than chance moves it."""
        return self.moved > max(self.allowed, self.by_chance)

    @property
    def words(self) -> str:
        """The figure in a line."""
        detail = self.detail or f"{self.reference:.3f} before, {self.now:.3f} now"
        return (
            f"{WORDS[self.name]}: {detail}; moved by {self.moved:.3f}, "
            f"allowed {self.allowed:g}, by chance up to {self.by_chance:.3f}"
        )


def compare(now: Histograms, reference: Histograms, limits: dict[str, float]) -> list[Figure]:
    """The figures that both sides have enough images for.

    Args:
        now, reference: of the run, and of what it is compared with.
        limits: how far each figure of LIMITS may move.
    """
    figures: list[Figure] = []
    if min(now.images, reference.images) >= MIN_IMAGES:
        figures.append(_mean("errors", now.errors, reference.errors, YES, limits))
    if min(now.classes.sum(), reference.classes.sum()) >= MIN_IMAGES:
        middles = (np.arange(BINS["confidence"]) + 0.5) / BINS["confidence"]
        last = _last_usual(reference.entropy)
        unusual = _split(now.entropy, last), _split(reference.entropy, last)
        figures += [
            _class_shares(now.classes, reference.classes, limits),
            _mean("confidence", now.confidence, reference.confidence, middles, limits),
            _mean("unusual", *unusual, YES, limits),
        ]
    return figures


def _last_usual(entropy: Counts) -> int:
    """The bin above which the upper hundredth of the rows lies."""
    below = np.cumsum(entropy) / entropy.sum()
    return int(np.argmax(below >= 1 - UNUSUAL_SHARE))


def _split(counts: Counts, last: int) -> Counts:
    """Rows up to a bin, and above it."""
    return np.array([counts[: last + 1].sum(), counts[last + 1 :].sum()])


def _class_shares(now: Counts, reference: Counts, limits: dict[str, float]) -> Figure:
    """Half the summed differences of the class shares: the least share that changed class."""
    before, after = _shares(reference), _shares(now)
    moved = float(0.5 * np.abs(after - before).sum())
    drawn, others = _draws(now, reference)
    chance = 0.5 * np.abs(_shares(drawn) - _shares(others)).sum(axis=1)
    order = np.argsort(-np.abs(after - before), kind="stable")
    furthest = [i for i in order[:3] if after[i] != before[i]]
    changes = [f"{CLASSES[i]} {before[i]:.3f} to {after[i]:.3f}" for i in furthest]
    detail = ", ".join(changes) or "as before"
    limit = limits["class_shares"]
    return Figure("class_shares", 0.0, moved, moved, limit, _most(chance), detail)


def _mean(
    name: str, now: Counts, reference: Counts, values: Floats, limits: dict[str, float]
) -> Figure:
    """The mean over bins that have a value each."""
    before, after = float(_shares(reference) @ values), float(_shares(now) @ values)
    drawn, others = _draws(now, reference)
    chance = (_shares(drawn) - _shares(others)) @ values
    moved = after - before
    if name not in RISES_ONLY:
        moved, chance = abs(moved), np.abs(chance)
    return Figure(name, before, after, moved, limits[name], _most(chance))


def _draws(now: Counts, reference: Counts) -> tuple[Counts, Counts]:
    """As many rows as the run has, drawn from all rows, and the others; (DRAWS, bins) each.

    A permutation test on counts: if both sides are of one kind, any rows could be the run's.
    """
    pooled = now + reference
    drawn = np.random.default_rng(0).multivariate_hypergeometric(
        pooled, int(now.sum()), size=DRAWS, method="marginals"
    )
    return drawn, pooled - drawn


def _shares(counts: Counts) -> Floats:
    return counts / counts.sum(axis=-1, keepdims=True)


def _most(chance: Floats) -> float:
    return float(np.quantile(chance, 1 - FALSE_ALARMS / len(LIMITS)))
