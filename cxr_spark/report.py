"""The HTML report of an evaluation: one file, no outside request, every text from data escaped."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from cxr_spark import bootstrap, charts, explain, html_pages, ledger, metrics
from cxr_spark.artifact import ArtifactError, Card, load_card, load_weights
from cxr_spark.figures import Evaluation
from cxr_spark.html_pages import UNKNOWN, percent
from cxr_spark.judged_images import SEEN
from cxr_spark.labels import CLASS_COLUMNS, CLASSES, LABEL_INDEX
from cxr_spark.localisation import METRICS as LOCALISATION
from cxr_spark.metrics import Booleans, Floats
from cxr_spark.operating_points import SPECIFICITY
from cxr_spark.reasons import REASONS
from cxr_spark.scored_rows import ScoredRows
from cxr_spark.slice_figures import ECE_BINS, SHARE_OF_GAIN, SMALLEST_SLICE, Figure
from cxr_spark.tables import CurateRun, Warehouse

MISTAKES = 12
CHANGED = 6
OF_A_SPLIT = ("cce", "cce_prior", "accuracy", "ece")
SHARES = frozenset(
    {
        "accuracy",
        "balanced_accuracy",
        "accuracy_difference",
        "sensitivity",
        "precision",
        "sensitivity_at_threshold",
        "specificity_at_threshold",
        "sensitivity_at_specificity_90",
        "sensitivity_at_specificity_95",
        "pointing_game",
        "pointing_game_by_chance",
        SHARE_OF_GAIN,
    }
)
"""Metrics that are told in percent."""


class Shown(NamedTuple):
    """A scored image that the report shows, its labels in words."""

    image_id: str
    source: str
    truth: str
    predicted: str
    confidence: float
    of_truth: float


class Pictures(NamedTuple):
    """PNG data URIs by image_id: the image, and the heat of the class read laid over it."""

    thumbnails: Mapping[str, str]
    overlays: Mapping[str, str]


def write(spark: SparkSession, warehouse: Warehouse, evaluation: Evaluation, path: Path) -> None:
    """Write the report of an evaluation; the file appears whole or not at all."""
    page = render(
        evaluation,
        read_pictures(spark, warehouse, evaluation),
        made_at=datetime.now(UTC),
        curated=warehouse.find_curate_run(evaluation.images_version),
        card=_find_card(evaluation),
    )
    html_pages.write(path, page)


def render(
    evaluation: Evaluation,
    pictures: Pictures,
    *,
    made_at: datetime,
    curated: CurateRun | None = None,
    card: Card | None = None,
) -> str:
    """The whole page.

    Args:
        evaluation: what to tell.
        pictures: of the images in pictured.
        made_at: when, in UTC.
        curated: the run that published the images; its ledger and its rules are shown.
        card: of the model's artifact; its intended use and limits are shown.
    """
    environment = html_pages.environment()
    environment.filters |= {"number": _number, "interval": _interval, "told": _told}
    rows = evaluation.rows
    forest = charts.forest(evaluation)
    return environment.get_template("evaluation.html").render(
        evaluation=evaluation,
        made_at=made_at,
        n_groups=len(np.unique(rows.group_id)),
        bars=charts.bars(evaluation),
        share=evaluation.figure(SHARE_OF_GAIN),
        forest=forest,
        forest_scale=charts.scale_of([row.cce.figure for row in forest]),
        within=evaluation.slice_names("within="),
        learning=charts.learning(evaluation),
        splits=_splits(evaluation),
        per_class=_per_class(evaluation),
        confusion=charts.confusion(rows),
        rocs=charts.roc_panels(rows),
        reliability=charts.reliability(rows),
        localised=_localised(evaluation),
        changed=_changed(evaluation),
        mistakes=confident_mistakes(rows),
        hits=clear_hits(rows),
        pictures=pictures,
        card=card,
        curated=curated,
        ledger=ledger.lines(curated.counts) if curated else [],
        reasons=REASONS,
        classes=CLASSES,
        resamples=bootstrap.RESAMPLES,
        clip=metrics.SMALLEST_PROBABILITY,
        ece_bins=ECE_BINS,
        smallest=SMALLEST_SLICE,
        specificity=SPECIFICITY,
    )


def pictured(evaluation: Evaluation) -> dict[str, Shown]:
    """The images that the page shows, by image_id."""
    changed = _changed(evaluation)
    of_comparison = [*changed["gained"], *changed["lost"]] if changed else []
    rows = evaluation.rows
    shown = [*confident_mistakes(rows), *clear_hits(rows), *of_comparison]
    return {one.image_id: one for one in shown}


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


def read_pictures(spark: SparkSession, warehouse: Warehouse, evaluation: Evaluation) -> Pictures:
    """The pictures that the page needs, from the pixels that the model was given.

    There are no overlays where the model's weights can't be opened.
    """
    shown = pictured(evaluation)
    images = warehouse.read(spark, "images", evaluation.images_version)
    wanted = (F.col("split") == evaluation.split) & F.col("image_id").isin([*shown])
    found = images.where(wanted).select("image_id", "pixels")
    thumbnails = {row.image_id: html_pages.thumbnail(bytes(row.pixels)) for row in found.collect()}
    folder = evaluation.model["artifact_path"]
    try:
        load_weights(folder, load_card(folder))
    except ArtifactError:
        return Pictures(thumbnails, {})
    classes = {image_id: LABEL_INDEX[one.predicted] for image_id, one in shown.items()}
    overlays = explain.overlays(spark, found, classes, folder) if shown else {}
    return Pictures(thumbnails, {n: html_pages.data_uri(png) for n, png in overlays.items()})


def _find_card(evaluation: Evaluation) -> Card | None:
    try:
        return load_card(evaluation.model["artifact_path"])
    except ArtifactError:
        return None


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


def _splits(evaluation: Evaluation) -> list[dict[str, Any]]:
    """CCE, accuracy and calibration error of each split that has been scored, train first."""
    figures = {**evaluation.other_splits, evaluation.split: evaluation.figures}
    found = []
    for split in (name for name in SEEN if name in figures):
        of_all = {
            figure.metric: figure
            for figure in figures[split]
            if (figure.slice_name, figure.class_name) == ("all", "all")
        }
        found.append({"name": split, **{name: of_all[name] for name in OF_A_SPLIT}})
    return found


def _per_class(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The classes, and what each is mostly mistaken for."""
    table = []
    for index, name in enumerate(CLASSES):
        counts = [
            int(evaluation.value(f"predicted_as_{column}", class_name=name))
            for column in CLASS_COLUMNS
        ]
        others = [count if place != index else 0 for place, count in enumerate(counts)]
        mistaken_for = CLASSES[int(np.argmax(others))] if any(others) else None
        table.append(
            {
                "name": name,
                "n": sum(counts),
                "mistaken_for": mistaken_for,
                "mistaken": max(others),
            }
        )
    return table


def _localised(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Figures of heat and boxes, of all classes and of each that has boxes."""
    table = []
    for name in ("all", *CLASSES):
        figures = {m: evaluation.figure(m, class_name=name) for m in LOCALISATION.values()}
        n = figures["pointing_game"].n
        if n:
            table.append({"name": "All with boxes" if name == "all" else name, "n": n, **figures})
    return table


def _changed(evaluation: Evaluation) -> dict[str, list[Shown]]:
    """Images gained and lost against the other model, those of the greatest difference first."""
    compared = evaluation.comparison
    if compared is None:
        return {}
    labels = compared.rows.label_index
    at = (np.arange(len(labels)), labels)
    difference = np.abs(compared.rows.probabilities[at] - compared.theirs[at])
    return {
        name: _shown(compared.rows, _greatest(difference, which))
        for name, which in (("gained", compared.gained), ("lost", compared.lost))
    }


def _greatest(difference: Floats, which: Booleans) -> list[int]:
    places = np.flatnonzero(which)
    order = np.argsort(-difference[places], kind="stable")
    return [int(place) for place in places[order][:CHANGED]]


def _number(value: float | None, digits: int = 3) -> str:
    return UNKNOWN if value is None or np.isnan(value) else f"{value:,.{digits}f}"


def _told(figure: Figure) -> str:
    """A figure's value; one of too few images, or that isn't defined, says so in its place."""
    if figure.value is None and figure.lack == "too few" and figure.n:
        return f"too few ({figure.n:,})"
    if figure.value is None:
        return "undefined" if figure.n else UNKNOWN
    return percent(figure.value, 1) if figure.metric in SHARES else _number(figure.value)


def _interval(figure: Figure) -> str:
    if figure.value is None:
        return ""
    if figure.ci_low is None or figure.ci_high is None:
        return "no interval"
    if figure.metric in SHARES:
        return f"{100 * figure.ci_low:.1f} to {percent(figure.ci_high, 1)}"
    return f"{_number(figure.ci_low)} to {_number(figure.ci_high)}"
