"""The HTML report of an evaluation: one file, no outside request, every text from data escaped."""

import base64
import io
import os
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from cxr_spark import ledger, metrics
from cxr_spark.figures import MEANS, Evaluation, Figure, ScoredRows
from cxr_spark.labels import CLASS_COLUMNS, CLASSES
from cxr_spark.reasons import REASONS
from cxr_spark.tables import CurateRun, Warehouse

MISTAKES = 12
THUMBNAIL_SIDE = 160
UNKNOWN = "\N{EN DASH}"
BASELINES = {
    "cce": "This model",
    "cce_source_only": "Source only",
    "cce_prior": "Class prior",
}


class ReportError(ValueError):
    """The report can't be written where it was asked for."""


class Shown(NamedTuple):
    """A scored image that the report shows, its labels in words."""

    image_id: str
    source: str
    truth: str
    predicted: str
    confidence: float
    of_truth: float


class Roc(NamedTuple):
    """One panel of the ROC figure; `path` is an SVG path in a 100 x 100 box, "" without a curve."""

    name: str
    path: str
    auroc: float | None
    positives: int


def target(path: str | Path) -> Path:
    """The absolute path of a report to be written, checked before any work is done.

    Raises:
        ReportError: a folder is there, or what should be its folder is none.
    """
    place = Path(path).absolute()
    if place.is_dir():
        raise ReportError(f"--report {path}: this is a folder; name a file, as {place}/report.html")
    existing = next(folder for folder in place.parents if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ReportError(f"--report {path}: {existing} isn't a folder that can be written to")
    return place


def write(spark: SparkSession, warehouse: Warehouse, evaluation: Evaluation, path: Path) -> None:
    """Write the report of an evaluation; the file appears whole or not at all."""
    shown = [*confident_mistakes(evaluation.rows), *clear_hits(evaluation.rows)]
    thumbnails = read_thumbnails(spark, warehouse, evaluation, [s.image_id for s in shown])
    curated = warehouse.find_curate_run(evaluation.images_version)
    page = render(evaluation, thumbnails, made_at=datetime.now(UTC), curated=curated)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        unfinished.write_text(page, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def render(
    evaluation: Evaluation,
    thumbnails: Mapping[str, str],
    *,
    made_at: datetime,
    curated: CurateRun | None = None,
) -> str:
    """The whole page.

    Args:
        evaluation: what to tell.
        thumbnails: data URIs by image_id, for confident_mistakes and clear_hits.
        made_at: when, in UTC.
        curated: the run that published the images; its ledger and its rules are shown.
    """
    environment = Environment(
        loader=PackageLoader("cxr_spark"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_known,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "percent": _percent, "interval": _interval}
    rows, value = evaluation.rows, evaluation.value
    return environment.get_template("evaluation.html").render(
        evaluation=evaluation,
        made_at=made_at,
        n_groups=len(np.unique(rows.group_id)),
        bars=_bars(evaluation),
        share=metrics.share_of_gain(value("cce_prior"), value("cce_source_only"), value("cce")),
        curated=curated,
        ledger=ledger.lines(curated.counts) if curated else [],
        reasons=REASONS,
        classes=CLASSES,
        confusion=_confusion(rows),
        per_class=_per_class(evaluation),
        per_source=_per_source(evaluation),
        rocs=roc_panels(rows),
        mistakes=confident_mistakes(rows),
        hits=clear_hits(rows),
        thumbnails=thumbnails,
        resamples=metrics.RESAMPLES,
        clip=metrics.SMALLEST_PROBABILITY,
    )


def confident_mistakes(rows: ScoredRows) -> list[Shown]:
    """The wrong rows whose predicted class has the greatest probability, greatest first."""
    wrong = np.flatnonzero(rows.probabilities.argmax(axis=1) != rows.label_index)
    order = np.argsort(-rows.probabilities[wrong].max(axis=1), kind="stable")
    return _shown(rows, wrong[order][:MISTAKES])


def clear_hits(rows: ScoredRows) -> list[Shown]:
    """For each class the right row with the greatest probability, where there is one."""
    right = rows.probabilities.argmax(axis=1) == rows.label_index
    confidence = np.where(right, rows.probabilities.max(axis=1), -1.0)
    best = []
    for index in range(len(CLASSES)):
        of_class = np.flatnonzero(right & (rows.label_index == index))
        if len(of_class):
            best.append(of_class[confidence[of_class].argmax()])
    return _shown(rows, best)


def read_thumbnails(
    spark: SparkSession, warehouse: Warehouse, evaluation: Evaluation, image_ids: list[str]
) -> dict[str, str]:
    """PNG data URIs by image_id, from the pixels that the model was given."""
    images = warehouse.read(spark, "images", evaluation.images_version)
    wanted = (F.col("split") == evaluation.split) & F.col("image_id").isin(image_ids)
    found = images.where(wanted).select("image_id", "image_size", "pixels").collect()
    return {row.image_id: thumbnail(bytes(row.pixels), row.image_size) for row in found}


def thumbnail(pixels: bytes, image_size: int) -> str:
    """A PNG data URI of uint8 grey pixels (image_size², row-major), at most 160 px a side."""
    grey = np.frombuffer(pixels, dtype=np.uint8).reshape(image_size, image_size)
    picture = Image.fromarray(grey)
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    png = io.BytesIO()
    picture.save(png, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode('ascii')}"


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


def _shown(rows: ScoredRows, places: Iterable[int]) -> list[Shown]:
    return [
        Shown(
            image_id=str(rows.image_id[i]),
            source=str(rows.source[i]),
            truth=CLASSES[rows.label_index[i]],
            predicted=CLASSES[rows.probabilities[i].argmax()],
            confidence=float(rows.probabilities[i].max()),
            of_truth=float(rows.probabilities[i, rows.label_index[i]]),
        )
        for i in places
    ]


def _bars(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The CCE and its baselines as bars on one scale; left, width and so on in percent."""
    figures = {name: evaluation.figure(name) for name in BASELINES}
    ends = [x for f in figures.values() for x in (f.value, f.ci_high) if x is not None]
    scale = 100 / max(*ends, 1e-9)
    bars = []
    for name, label in BASELINES.items():
        figure = figures[name]
        low, high = figure.ci_low, figure.ci_high
        whisker = None if low is None or high is None else (low * scale, (high - low) * scale)
        width = (figure.value or 0.0) * scale
        bars.append(
            {"name": name, "label": label, "figure": figure, "width": width, "whisker": whisker}
        )
    return bars


def _confusion(rows: ScoredRows) -> list[dict[str, Any]]:
    """Rows of the confusion matrix: the class, its count, and (count, share of the row) cells."""
    table = []
    for name, counts in zip(CLASSES, _matrix(rows), strict=True):
        n = int(counts.sum())
        shares = counts / n if n else np.zeros(len(CLASSES))
        cells = list(zip(counts.tolist(), shares.tolist(), strict=True))
        table.append({"name": name, "n": n, "cells": cells})
    return table


def _matrix(rows: ScoredRows) -> metrics.Integers:
    return metrics.confusion_matrix(rows.probabilities, rows.label_index)


def _per_class(evaluation: Evaluation) -> list[dict[str, Any]]:
    table = []
    for index, name in enumerate(CLASSES):
        counts = [
            int(evaluation.value(f"predicted_as_{column}", class_name=name))
            for column in CLASS_COLUMNS
        ]
        n = sum(counts)
        others = [count if place != index else 0 for place, count in enumerate(counts)]
        mistaken_for = CLASSES[int(np.argmax(others))] if any(others) else None
        table.append(
            {
                "name": name,
                "cce": evaluation.figure("cce", class_name=name),
                "auroc": evaluation.figure("auroc", class_name=name).value,
                "sensitivity": counts[index] / n if n else None,
                "mistaken_for": mistaken_for,
                "mistaken": max(others),
            }
        )
    return table


def _per_source(evaluation: Evaluation) -> list[dict[str, Any]]:
    slices = dict.fromkeys(f.slice_name for f in evaluation.figures if f.slice_name != "all")
    return [
        {"name": name.split("=", 1)[1]}
        | {metric: evaluation.figure(metric, slice_name=name) for metric in MEANS}
        for name in slices
    ]


def _number(value: float | None, digits: int = 3) -> str:
    return UNKNOWN if value is None or np.isnan(value) else f"{value:,.{digits}f}"


def _percent(value: float | None, digits: int = 0) -> str:
    if value is None or np.isnan(value):
        return UNKNOWN
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def _interval(figure: Figure) -> str:
    if figure.ci_low is None or figure.ci_high is None:
        return "no interval"
    if figure.metric == "accuracy":
        return f"{100 * figure.ci_low:.1f} to {_percent(figure.ci_high, 1)}"
    return f"{_number(figure.ci_low)} to {_number(figure.ci_high)}"


def _known(value: object) -> object:
    return UNKNOWN if value is None else value
