"""The figures of an evaluation: of all its images, of slices, within sources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from cxr_spark import baselines, metrics
from cxr_spark.comparison import Comparison
from cxr_spark.labels import CLASS_COLUMNS, CLASSES
from cxr_spark.learning_curve import Point
from cxr_spark.metrics import Floats, Integers
from cxr_spark.operating_points import OperatingPoints
from cxr_spark.scored_rows import ScoredRows
from cxr_spark.slice_figures import Figure, slice_figures
from cxr_spark.slices import in_order

HEADLINE = ("cce", "cce_prior", "cce_source_only", "cce_border_only", "accuracy")


class Yardsticks(NamedTuple):
    """What the rows are judged by.

    Attributes:
        train_counts: (9,) rows of each class in train, by source.
        border_only: (N, 9) what a glance at border and thumbnail says; None: there is no such
            model.
        operating_points: chosen on val; None: they can't be.
    """

    train_counts: Mapping[str, Integers]
    border_only: Floats | None = None
    operating_points: OperatingPoints | None = None


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation read and found; a report is made of it.

    Attributes:
        model: the model's row of the models table.
        split: train, val or test.
        images_version: version of images, the one in the model's row.
        predictions_version: version of predictions that was read.
        rows: the rows that the figures are about.
        figures: the figures, one for each row of metrics.
        counts: rows of the split: n judged, and left out as missing (no prediction), errors (a
            failed one), related (by group or content to rows that the model was made with).
        comparison: with another model, if one was asked for.
        learning_curve: models of shares of train, if they were asked for.
        other_splits: figures over all images of those other splits that are all scored, by split.
    """

    model: dict[str, Any]
    split: str
    images_version: int
    predictions_version: int
    rows: ScoredRows
    figures: list[Figure]
    counts: dict[str, int]
    comparison: Comparison | None = None
    learning_curve: Sequence[Point] = ()
    other_splits: Mapping[str, list[Figure]] = field(default_factory=dict)
    _places: dict[tuple[str, str, str], Figure] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        places = {(f.slice_name, f.class_name, f.metric): f for f in self.figures}
        object.__setattr__(self, "_places", places)

    def figure(self, metric: str, *, slice_name: str = "all", class_name: str = "all") -> Figure:
        """The figure of that name; without value and rows where there is none."""
        key = (slice_name, class_name, metric)
        return self._places.get(key) or Figure(*key, None, None, None, 0)

    def value(self, metric: str, *, slice_name: str = "all", class_name: str = "all") -> float:
        """The value of that figure; NaN where it has none."""
        found = self.figure(metric, slice_name=slice_name, class_name=class_name).value
        return float("nan") if found is None else found

    def slice_names(self, prefix: str = "") -> list[str]:
        """The slices that begin so, in their order."""
        return [
            name
            for name in dict.fromkeys(figure.slice_name for figure in self.figures)
            if name.startswith(prefix) and name != "all"
        ]


def figures_of(rows: ScoredRows, yardsticks: Yardsticks, counts: Mapping[str, int]) -> list[Figure]:
    """Every figure: of all rows, of each slice, within sources, confusion counts, rows left out.

    Args:
        rows: N rows, at least one.
        yardsticks: what they are judged by.
        counts: as in Evaluation.
    """
    guesses = _guesses(rows, yardsticks)
    points = yardsticks.operating_points
    found = slice_figures("all", rows, guesses, points)
    for kind, names in rows.slices.items():
        for name in in_order(names):
            of = names == name
            guesses_there = {metric: guess[of] for metric, guess in guesses.items()}
            found += slice_figures(f"{kind}={name}", rows.where(of), guesses_there, points)
    return [
        *found,
        *_within_sources(rows, guesses, yardsticks.train_counts),
        *_threshold_figures(points),
        *_confusion_figures(rows),
        *_left_out_figures(counts),
    ]


def figures_of_split(rows: ScoredRows, train_counts: Mapping[str, Integers]) -> list[Figure]:
    """The figures of all rows of a split that is told beside the one that is judged.

    Args:
        rows: N rows, at least one.
        train_counts: see Yardsticks.
    """
    return slice_figures("all", rows, _guesses(rows, Yardsticks(train_counts)))


def _guesses(rows: ScoredRows, yardsticks: Yardsticks) -> dict[str, Floats]:
    """The baselines' probabilities (N, 9), by the metric that is their CCE."""
    labels, train_counts = rows.label_index, yardsticks.train_counts
    overall = np.sum([np.zeros(len(CLASSES)), *train_counts.values()], axis=0)
    guesses = {
        "cce_prior": baselines.prior_probabilities(overall, labels),
        "cce_source_only": baselines.source_only_probabilities(train_counts, rows.source, labels),
    }
    if yardsticks.border_only is not None:
        guesses["cce_border_only"] = yardsticks.border_only
    return guesses


def _within_sources(
    rows: ScoredRows, guesses: Mapping[str, Floats], train_counts: Mapping[str, Integers]
) -> list[Figure]:
    """Figures of each source that has several classes, where only its own classes are possible.

    The source tells nothing then. Where it has official lists, only its own test images count.
    """
    found: list[Figure] = []
    for source, train in sorted(train_counts.items()):
        of = rows.source == source
        if rows.known_as_train is not None:
            of &= ~rows.known_as_train
        occurring = np.bincount(rows.label_index[of], minlength=len(CLASSES)) > 0
        allowed = (train > 0) | occurring
        if of.any() and (train > 0).sum() > 1:
            there = {name: baselines.within(guess[of], allowed) for name, guess in guesses.items()}
            found += slice_figures(f"within={source}", rows.where(of).within(allowed), there)
    return found


def _threshold_figures(points: OperatingPoints | None) -> list[Figure]:
    """The probability from which each class counts as found, and the val rows behind it."""
    if points is None:
        return []
    return [
        Figure("all", name, "threshold", float(threshold), None, None, points.n)
        for name, threshold in zip(CLASSES, points.thresholds, strict=True)
        if not np.isnan(threshold)
    ]


def _confusion_figures(rows: ScoredRows) -> list[Figure]:
    matrix = metrics.confusion_matrix(rows.probabilities, rows.label_index)
    return [
        Figure("all", name, f"predicted_as_{column}", float(cell), None, None, int(counts.sum()))
        for name, counts in zip(CLASSES, matrix, strict=True)
        for column, cell in zip(CLASS_COLUMNS, counts, strict=True)
    ]


def _left_out_figures(counts: Mapping[str, int]) -> list[Figure]:
    """Rows of the split that the figures are not about, so that survivors can't pass for all."""
    total = sum(counts.values())
    return [
        Figure("all", "all", name, float(counts[name]), None, None, total)
        for name in ("missing", "errors", "related")
    ]
