"""The figures of an evaluation: which metrics, over which slices and classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cxr_spark import metrics
from cxr_spark.labels import CLASS_COLUMNS, CLASSES
from cxr_spark.metrics import Floats, Integers

MEANS = ("cce", "cce_prior", "cce_source_only", "accuracy")


class Figure(NamedTuple):
    """One figure of an evaluation; `class_name` and `slice_name` are "all" for every row."""

    slice_name: str
    class_name: str
    metric: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int


@dataclass(frozen=True)
class ScoredRows:
    """Images with their true class and the probabilities a model gave them, N rows each.

    Attributes:
        image_id: (N,) str.
        source: (N,) str.
        group_id: (N,) str, patients joined with duplicates.
        label_index: (N,) int64, the true class's place in labels.CLASSES.
        probabilities: (N, 9) float64, in the order of labels.CLASSES.
    """

    image_id: NDArray[np.str_]
    source: NDArray[np.str_]
    group_id: NDArray[np.str_]
    label_index: Integers
    probabilities: Floats


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
    """

    model: dict[str, Any]
    split: str
    images_version: int
    predictions_version: int
    rows: ScoredRows
    figures: list[Figure]
    counts: dict[str, int]

    def figure(self, metric: str, *, slice_name: str = "all", class_name: str = "all") -> Figure:
        """The one figure of that name; StopIteration where there is none."""
        wanted = (slice_name, class_name, metric)
        return next(figure for figure in self.figures if figure[:3] == wanted)

    def value(self, metric: str, *, slice_name: str = "all", class_name: str = "all") -> float:
        """The value of that figure; NaN where it has none."""
        found = self.figure(metric, slice_name=slice_name, class_name=class_name).value
        return float("nan") if found is None else found


def figures_of(
    rows: ScoredRows, train_counts: Mapping[str, Integers], counts: Mapping[str, int]
) -> list[Figure]:
    """Every figure: means with intervals over groups, AUROC, confusion counts, rows left out.

    Args:
        rows: N rows, at least one.
        train_counts: (9,) rows of each class in train, by source; all that the baselines know.
        counts: as in Evaluation.
    """
    labels = rows.label_index
    overall = np.sum([np.zeros(len(CLASSES)), *train_counts.values()], axis=0)
    prior = metrics.prior_probabilities(overall, labels)
    source_only = metrics.source_only_probabilities(train_counts, rows.source, labels)
    losses = [metrics.log_losses(p, labels) for p in (rows.probabilities, prior, source_only)]
    hits = metrics.correct(rows.probabilities, labels)
    values: Floats = np.column_stack([*losses, hits.astype(np.float64)])
    found = _means("all", "all", MEANS, values, rows.group_id)
    for source in np.unique(rows.source):
        of = rows.source == source
        found += _means(f"source={source}", "all", MEANS, values[of], rows.group_id[of])
    for index, name in enumerate(CLASSES):
        of = labels == index
        found += _means("all", name, ("cce",), values[of, :1], rows.group_id[of])
    return found + _auroc_figures(rows) + _confusion_figures(rows) + _left_out_figures(counts)


def headline(evaluation: Evaluation) -> str:
    """The CCE beside its baselines, in one line."""
    cce, prior, source_only, accuracy = (evaluation.value(name) for name in MEANS)
    low, high, n = evaluation.figure("cce")[4:]
    interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    share = metrics.share_of_gain(prior, source_only, cce)
    source = (
        "the model gains nothing over the prior"
        if share is None
        else f"the source alone gives {share:.0%} of the model's gain over the prior"
    )
    return (
        f"{evaluation.model['model_version']} on {evaluation.split}: CCE {cce:.3f}{interval} on "
        f"{n:,} images, class prior {prior:.3f}, source only {source_only:.3f}: {source}; "
        f"accuracy {accuracy:.1%}"
    )


def _means(
    slice_name: str, class_name: str, names: tuple[str, ...], values: Floats, groups: NDArray[Any]
) -> list[Figure]:
    """One figure a column of values (N, M) with its interval; without rows none has a value."""
    n = len(values)
    if not n:
        return [Figure(slice_name, class_name, name, None, None, None, 0) for name in names]
    ends = metrics.intervals(values, groups).T
    return [
        Figure(slice_name, class_name, name, float(mean), _known(low), _known(high), n)
        for name, mean, (low, high) in zip(names, values.mean(axis=0), ends, strict=True)
    ]


def _auroc_figures(rows: ScoredRows) -> list[Figure]:
    """One-vs-rest AUROC a class, and as class "all" the mean over those that have one."""
    per_class = metrics.auroc_per_class(rows.probabilities, rows.label_index)
    known = per_class[~np.isnan(per_class)]
    macro = float(known.mean()) if len(known) else float("nan")
    n = len(rows.label_index)
    return [
        Figure("all", name, "auroc", _known(value), None, None, n)
        for name, value in (("all", macro), *zip(CLASSES, per_class, strict=True))
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


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
