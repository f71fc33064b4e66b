"""All figures of one set of images with their intervals: losses, ranks, thresholds, calibration."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cxr_spark import bootstrap, metrics
from cxr_spark.baselines import share_of_gain
from cxr_spark.bootstrap import Draws
from cxr_spark.labels import CLASSES
from cxr_spark.metrics import Booleans, Floats
from cxr_spark.operating_points import OperatingPoints
from cxr_spark.scored_rows import ScoredRows

SMALLEST_SLICE = 20
"""Images under which a slice, and a class within a slice, has no value."""
SPECIFICITIES = {"sensitivity_at_specificity_90": 0.90, "sensitivity_at_specificity_95": 0.95}
ECE_BINS = 15
MEANS_OVER_CLASSES = {
    "sensitivity": "balanced_accuracy",
    "auroc": "auroc",
    "average_precision": "average_precision",
    "f1": "f1",
}
OVERALL = ("accuracy", "brier", *MEANS_OVER_CLASSES.values(), "ece")
SHARE_OF_GAIN = "source_share_of_gain"


class Figure(NamedTuple):
    """One figure of an evaluation; `class_name` and `slice_name` are "all" for every row."""

    slice_name: str
    class_name: str
    metric: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int

    @property
    def lack(self) -> str | None:
        """Why there is no value, in two words at the most; None where there is one."""
        if self.value is not None:
            return None
        return "undefined" if self.slice_name == "all" or self.n >= SMALLEST_SLICE else "too few"


class Spread(NamedTuple):
    """A figure under all draws, (1 + R,), the data as they are first; (N,) the rows it is about."""

    class_name: str
    metric: str
    of_draws: Floats
    about: Booleans


class Ratio(NamedTuple):
    """A figure that is a sum over rows divided by another; (N,) each."""

    class_name: str
    metric: str
    numerator: NDArray[Any]
    denominator: NDArray[Any]


def slice_figures(
    name: str,
    rows: ScoredRows,
    guesses: Mapping[str, Floats],
    points: OperatingPoints | None = None,
) -> list[Figure]:
    """The figures of some rows: over all classes, and of each class that occurs.

    A slice of fewer than 20 images has no values, and neither has a class of fewer within a slice.
    The slice `all` has values however few its images are, and all classes.

    Args:
        name: of the slice.
        rows: N rows, at least one.
        guesses: what baselines say, (N, 9), by the metric that is their CCE.
        points: where a class counts as found.
    """
    is_whole = name == "all"
    if not is_whole and len(rows) < SMALLEST_SLICE:
        names = ("cce", *guesses, *OVERALL)
        return [Figure(name, "all", metric, None, None, None, len(rows)) for metric in names]
    sizes = np.bincount(rows.label_index, minlength=len(CLASSES))
    images_of = {"all": len(rows), **dict(zip(CLASSES, sizes.tolist(), strict=True))}
    draws = bootstrap.draw_groups(rows.group_id)
    ratios = of_ratios(list(_ratios(rows, guesses, points)), draws)
    ranks = _of_ranks(rows, draws)
    means = [*_over_classes([*ratios, *ranks]), _ece(rows, draws), *_share_of_gain(ratios)]
    found = []
    for spread in (*ratios, *means, *ranks):
        enough = 1 if is_whole else SMALLEST_SLICE
        if is_whole or images_of[spread.class_name]:
            has_value = images_of[spread.class_name] >= enough
            found.append(figure_of(name, spread, rows.group_id, has_value=has_value))
    return found


def figure_of(name: str, spread: Spread, groups: NDArray[Any], *, has_value: bool = True) -> Figure:
    """A spread in the slice of that name, its interval over groups (N,)."""
    class_name, metric, of_draws, about = spread
    value, n = float(of_draws[0]), int(about.sum())
    if not has_value or np.isnan(value):
        return Figure(name, class_name, metric, None, None, None, n)
    ends = bootstrap.interval(of_draws, len(np.unique(groups[about])))
    low, high = ends or (None, None)
    return Figure(name, class_name, metric, value, low, high, n)


def _ratios(
    rows: ScoredRows, guesses: Mapping[str, Floats], points: OperatingPoints | None
) -> Iterator[Ratio]:
    given, labels = rows.probabilities, rows.label_index
    truth = np.eye(len(CLASSES))[labels]
    predicted = np.eye(len(CLASSES))[given.argmax(axis=1)]
    everyone = np.ones(len(rows))
    losses = {name: metrics.log_losses(p, labels) for name, p in {"cce": given, **guesses}.items()}
    for name, loss in losses.items():
        yield Ratio("all", name, loss, everyone)
    yield Ratio("all", "accuracy", (truth * predicted).sum(axis=1), everyone)
    yield Ratio("all", "brier", ((given - truth) ** 2).sum(axis=1), everyone)
    for index, name in enumerate(CLASSES):
        is_it, read = truth[:, index], predicted[:, index]
        for metric, loss in losses.items():
            yield Ratio(name, metric, loss * is_it, is_it)
        yield Ratio(name, "sensitivity", is_it * read, is_it)
        yield Ratio(name, "precision", is_it * read, read)
        yield Ratio(name, "f1", 2 * is_it * read, is_it + read)
        yield Ratio(name, "brier", (given[:, index] - is_it) ** 2, everyone)
        if points is not None and not np.isnan(points.thresholds[index]):
            found = given[:, index] >= points.thresholds[index]
            yield Ratio(name, "sensitivity_at_threshold", is_it * found, is_it)
            yield Ratio(name, "specificity_at_threshold", (1 - is_it) * ~found, 1 - is_it)


def classes_of(rows: ScoredRows) -> list[tuple[str, Floats]]:
    """`all` and the classes that occur, each with 1 for the rows (N,) that it is about, else 0."""
    truth = np.eye(len(CLASSES))[rows.label_index]
    of_classes = [(n, of) for n, of in zip(CLASSES, truth.T, strict=True) if of.any()]
    return [("all", np.ones(len(rows))), *of_classes]


def of_ratios(ratios: Sequence[Ratio], draws: Draws) -> list[Spread]:
    """The ratios under all draws; NaN where a draw has nothing to divide by."""
    above, below = (
        draws.sums(np.column_stack(columns))
        for columns in ([r.numerator for r in ratios], [r.denominator for r in ratios])
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        values = above / below
    return [
        Spread(ratio.class_name, ratio.metric, value, ratio.denominator > 0)
        for ratio, value in zip(ratios, values, strict=True)
    ]


def _share_of_gain(ratios: Sequence[Spread]) -> Iterator[Spread]:
    """See baselines.share_of_gain, where its baselines are among the ratios."""
    cce = {spread.metric: spread for spread in ratios if spread.class_name == "all"}
    if {"cce_prior", "cce_source_only"} <= cce.keys():
        prior, source_only, model = (
            cce[name].of_draws for name in ("cce_prior", "cce_source_only", "cce")
        )
        shares = share_of_gain(prior, source_only, model)
        yield Spread("all", SHARE_OF_GAIN, shares, cce["cce"].about)


def _of_ranks(rows: ScoredRows, draws: Draws) -> list[Spread]:
    """Figures of one class against the rest by the order of its probabilities."""
    found = []
    everyone = np.ones(len(rows), dtype=bool)
    for index, name in enumerate(CLASSES):
        is_it = rows.label_index == index
        ranks = bootstrap.rank_figures(
            rows.probabilities[:, index], is_it, draws, tuple(SPECIFICITIES.values())
        )
        found += [
            Spread(name, "auroc", ranks.auroc, everyone),
            Spread(name, "average_precision", ranks.average_precision, everyone),
            *[
                Spread(name, metric, sensitivity, is_it)
                for metric, sensitivity in zip(SPECIFICITIES, ranks.sensitivities, strict=True)
            ],
        ]
    return found


def _over_classes(of_classes: Sequence[Spread]) -> Iterator[Spread]:
    """Means over the classes that have a figure, every class counting the same."""
    for metric, mean in MEANS_OVER_CLASSES.items():
        spreads = [s for s in of_classes if s.metric == metric and s.class_name != "all"]
        stacked = np.stack([spread.of_draws for spread in spreads])
        known = ~np.isnan(stacked)
        with np.errstate(invalid="ignore"):
            means = np.where(known, stacked, 0.0).sum(axis=0) / known.sum(axis=0)
        yield Spread("all", mean, means, np.ones_like(spreads[0].about))


def _ece(rows: ScoredRows, draws: Draws) -> Spread:
    """See metrics.ece; the gaps of a bin's rows add up before their size counts."""
    confidence = rows.probabilities.max(axis=1)
    gaps = confidence - metrics.correct(rows.probabilities, rows.label_index)
    in_bin = np.eye(ECE_BINS)[metrics.confidence_bin(confidence, ECE_BINS)]
    everyone = np.ones(len(rows), dtype=bool)
    error = np.abs(draws.sums(gaps[:, None] * in_bin)).sum(axis=0) / draws.counts(everyone)
    return Spread("all", "ece", error, everyone)
