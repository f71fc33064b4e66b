"""The geometry of the evaluation's charts: ROC, reliability, forest plot, bars, confusion."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cxr_spark import bootstrap, metrics
from cxr_spark.figures import Evaluation
from cxr_spark.labels import CLASSES
from cxr_spark.learning_curve import Point
from cxr_spark.scored_rows import ScoredRows
from cxr_spark.slice_figures import ECE_BINS, Figure

BASELINES = {
    "cce": "This model",
    "cce_border_only": "Border only",
    "cce_source_only": "Source only",
    "cce_prior": "Class prior",
}
KINDS = {
    "source": "Source",
    "sex": "Sex",
    "age": "Age, years",
    "view": "View",
    "size": "Shorter side",
    "format": "File format",
    "brightness": "Brightness",
}


class Roc(NamedTuple):
    """One panel of the ROC figure; `path` is an SVG path in a 100 x 100 box, "" without a curve."""

    name: str
    path: str
    auroc: float | None
    positives: int


class Bin(NamedTuple):
    """The rows whose confidence is between two edges; no intervals where they say nothing."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float
    interval: tuple[float, float] | None


class Mark(NamedTuple):
    """A figure on a scale: where its value and its interval lie, in percent of the width."""

    figure: Figure
    at: float | None
    whisker: tuple[float, float] | None  # where it begins, how wide it is


class ForestRow(NamedTuple):
    """One slice of the forest plot, with its other figures beside."""

    kind: str
    name: str
    cce: Mark
    accuracy: Figure
    auroc: Figure


class LearningRow(NamedTuple):
    """One model of the learning curve."""

    point: Point
    cce: Mark
    accuracy: Figure


def roc_panels(rows: ScoredRows) -> list[Roc]:
    """One-vs-rest ROC curves of the nine classes, thinned to what a panel can show."""
    panels = []
    areas = metrics.auroc_per_class(rows.probabilities, rows.label_index)
    for index, (name, area) in enumerate(zip(CLASSES, areas, strict=True)):
        positive = rows.label_index == index
        known = not np.isnan(area)
        path = _path(*metrics.roc_points(rows.probabilities[:, index], positive)) if known else ""
        panels.append(Roc(name, path, float(area) if known else None, int(positive.sum())))
    return panels


def _path(false_positive_rate: metrics.Floats, true_positive_rate: metrics.Floats) -> str:
    points = np.column_stack([100 * false_positive_rate, 100 - 100 * true_positive_rate])
    places = dict.fromkeys(f"{x:.1f} {y:.1f}" for x, y in points)
    return "M" + "L".join(places)


def reliability(rows: ScoredRows) -> list[Bin]:
    """Accuracy beside confidence, in those bins of metrics.ece that have rows."""
    confidence = rows.probabilities.max(axis=1)
    hits = metrics.correct(rows.probabilities, rows.label_index)
    place = metrics.confidence_bin(confidence, ECE_BINS)
    draws = bootstrap.draw_groups(rows.group_id)
    found = []
    for index in np.unique(place):
        there = place == index
        with np.errstate(invalid="ignore"):
            accuracy = draws.counts(there & hits) / draws.counts(there)
        interval = bootstrap.interval(accuracy, len(np.unique(rows.group_id[there])))
        low, high = index / ECE_BINS, (index + 1) / ECE_BINS
        mean = float(confidence[there].mean())
        found.append(Bin(low, high, int(there.sum()), mean, float(accuracy[0]), interval))
    return found


def bars(evaluation: Evaluation) -> list[tuple[str, str, Mark]]:
    """The CCE and its baselines on one scale from 0: metric, label, mark."""
    figures = [evaluation.figure(name) for name in BASELINES]
    known = [figure for figure in figures if figure.value is not None]
    marks = _marks(known, 0.0, scale_of(known)[1])
    return [(mark.figure.metric, BASELINES[mark.figure.metric], mark) for mark in marks]


def forest(evaluation: Evaluation) -> list[ForestRow]:
    """The slices by kind, all rows first, their CCE on one scale."""
    names = ["all"] + [name for kind in KINDS for name in evaluation.slice_names(f"{kind}=")]
    figures = [evaluation.figure("cce", slice_name=name) for name in names]
    marks = _marks(figures, *scale_of(figures))
    rows = []
    for name, mark in zip(names, marks, strict=True):
        kind, _, value = name.partition("=")
        beside = (evaluation.figure(metric, slice_name=name) for metric in ("accuracy", "auroc"))
        rows.append(ForestRow(KINDS.get(kind, ""), value or "All images", mark, *beside))
    return rows


def learning(evaluation: Evaluation) -> list[LearningRow]:
    """The models of shares of train, their CCE on one scale that reaches to the prior's."""
    points = evaluation.learning_curve
    figures = [evaluation.figure("cce", slice_name=point.slice_name) for point in points]
    marks = _marks(figures, 0.0, scale_of([*figures, evaluation.figure("cce_prior")])[1])
    return [
        LearningRow(point, mark, evaluation.figure("accuracy", slice_name=point.slice_name))
        for point, mark in zip(points, marks, strict=True)
    ]


def scale_of(figures: Sequence[Figure]) -> tuple[float, float]:
    """The least and the greatest of the values and interval ends."""
    ends = [end for f in figures for end in (f.value, f.ci_low, f.ci_high) if end is not None]
    least, greatest = (min(ends), max(ends)) if ends else (0.0, 1.0)
    return least, max(greatest, least + 1e-9)


def _marks(figures: Sequence[Figure], start: float, end: float) -> list[Mark]:
    scale = 100 / (end - start)
    marks = []
    for figure in figures:
        low, high = figure.ci_low, figure.ci_high
        whisker = None
        if low is not None and high is not None:
            whisker = ((low - start) * scale, (high - low) * scale)
        at = None if figure.value is None else (figure.value - start) * scale
        marks.append(Mark(figure, at, whisker))
    return marks


def confusion(rows: ScoredRows) -> list[dict[str, Any]]:
    """Rows of the confusion matrix: the class, its count, and (count, share of the row) cells."""
    table = []
    matrix = metrics.confusion_matrix(rows.probabilities, rows.label_index)
    for name, counts in zip(CLASSES, matrix, strict=True):
        n = int(counts.sum())
        shares = counts / n if n else np.zeros(len(CLASSES))
        cells = list(zip(counts.tolist(), shares.tolist(), strict=True))
        table.append({"name": name, "n": n, "cells": cells})
    return table
