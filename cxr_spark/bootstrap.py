"""Figures under many bootstrap draws at once: of sums by one matrix product, of ranks by one sort.

Whole groups are drawn, as images of one patient are alike and drawing images would make intervals
too narrow. Column 0 of every result is the data as they are, the others are draws of them.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)
DRAWN_AT_ONCE = 4_000_000
CELLS_AT_ONCE = 500_000  # of a few such arrays, which then stay in a core's cache
ROUNDING = 1e-9

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Draws:
    """How often each group is in each draw.

    Attributes:
        group_of_row: (N,) place of each row's group, 0 to G - 1.
        times: (G, 1 + R) float64; column 0 is 1 throughout.
    """

    group_of_row: Integers
    times: Floats

    @cached_property
    def _rows_of_group(self) -> sparse.csr_matrix:
        n = len(self.group_of_row)
        places = (self.group_of_row, np.arange(n))
        return sparse.csr_matrix((np.ones(n), places), shape=(len(self.times), n))

    def sums(self, values: ArrayLike) -> Floats:
        """(M, 1 + R) sums of the columns of `values` (N, M) over the rows of each draw."""
        of_groups = self._rows_of_group @ np.asarray(values, dtype=np.float64)
        return np.asarray(of_groups.T @ self.times)

    def counts(self, wanted: ArrayLike) -> Floats:
        """(1 + R,) rows of each draw that are True in `wanted` (N,)."""
        return self.sums(np.asarray(wanted)[:, None])[0]


class RankFigures(NamedTuple):
    """What the order of scores gives, (1 + R,) each; NaN where a draw lacks what it is about.

    Attributes:
        auroc: area under the ROC curve; ties count half.
        average_precision: precision at each threshold, weighted by the recall gained there.
        sensitivities: the greatest sensitivity at a threshold with at least that specificity, one
            array for each specificity asked for.
    """

    auroc: Floats
    average_precision: Floats
    sensitivities: tuple[Floats, ...]


def draw_groups(groups: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Draws:
    """Draw as many groups as there are, with replacement, many times.

    Args:
        groups: (N,) group of each row, N at least 1.
        resamples: number of draws.
        seed: the same seed and groups give the same draws, in any order of the rows.
    """
    names, group_of_row = np.unique(np.asarray(groups), return_inverse=True)
    n_groups = len(names)
    times = np.ones((n_groups, 1 + resamples))
    generator = np.random.default_rng(seed)
    step = max(1, DRAWN_AT_ONCE // n_groups)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = generator.integers(0, n_groups, size=(count, n_groups))
        drawn += np.arange(count)[:, None] * n_groups
        of_draw = np.bincount(drawn.ravel(), minlength=count * n_groups).reshape(count, n_groups)
        times[:, 1 + start : 1 + start + count] = of_draw.T
    return Draws(group_of_row, times)


def interval(of_draws: Floats, n_groups: int) -> tuple[float, float] | None:
    """The percentile 95 % interval of a figure (1 + R,), without its column 0.

    None where it would say nothing: fewer than two groups bear the figure, or half of the draws
    lack what it is about.
    """
    known = of_draws[1:][~np.isnan(of_draws[1:])]
    if n_groups < 2 or 2 * len(known) <= len(of_draws) - 1:
        return None
    low, high = np.percentile(known, PERCENTILES)
    return float(low), float(high)


def rank_figures(
    scores: ArrayLike, positive: ArrayLike, draws: Draws, specificities: tuple[float, ...] = ()
) -> RankFigures:
    """AUROC, average precision and sensitivities of all draws, from one sort.

    In a draw's curves only thresholds at which a positive row lies matter. So rows are counted by
    the places between these, which is a product of sparse matrices with `draws.times`.

    Args:
        scores: (N,), greater means more likely positive.
        positive: (N,) bool.
        draws: of the N rows.
        specificities: 0 to 1.
    """
    truth = np.asarray(positive, dtype=bool)
    _, place = np.unique(-np.asarray(scores, dtype=np.float64), return_inverse=True)
    has_positive = np.bincount(place, weights=truth) > 0
    n_thresholds = int(has_positive.sum())
    # Of negatives between two such thresholds: the next one; behind the last: one more place.
    threshold = np.cumsum(has_positive)[place] - has_positive[place]

    def counted(rows: NDArray[np.bool_]) -> sparse.csr_matrix:
        places = (threshold[rows], draws.group_of_row[rows])
        shape = (n_thresholds + 1, len(draws.times))
        return sparse.csr_matrix((np.ones(int(rows.sum())), places), shape=shape)

    tied = has_positive[place]
    positives, equal, between = (counted(rows) for rows in (truth, ~truth & tied, ~truth & ~tied))
    step = max(1, CELLS_AT_ONCE // (n_thresholds + 1))
    pieces = []
    for start in range(0, draws.times.shape[1], step):
        some = draws.times[:, start : start + step]
        pieces.append(_rank_figures(positives @ some, equal @ some, between @ some, specificities))
    auroc, average_precision, *sensitivities = (
        np.concatenate(f) for f in zip(*pieces, strict=True)
    )
    return RankFigures(auroc, average_precision, tuple(sensitivities))


def _rank_figures(
    positives: Floats, tied: Floats, between: Floats, specificities: tuple[float, ...]
) -> list[Floats]:
    """Figures of some draws from counts (thresholds + 1, draws), the highest threshold first."""
    found = np.cumsum(positives, axis=0)
    alarms = np.cumsum(tied + between, axis=0)
    n_positive, n_negative = found[-1], alarms[-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        below = n_negative - alarms + tied / 2
        auroc = (positives * below).sum(axis=0) / (n_positive * n_negative)
        precision = found / np.maximum(found + alarms, 1)
        average_precision = (positives * precision).sum(axis=0) / n_positive
        sensitivities = []
        for specificity in specificities:
            allowed = alarms <= (1 - specificity) * n_negative + ROUNDING
            sensitivity = (positives * allowed).sum(axis=0) / n_positive
            sensitivities.append(np.where(n_negative > 0, sensitivity, np.nan))
    return [auroc, average_precision, *sensitivities]
