"""The stage that judges a model: its predictions beside the labels of its own images version."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from cxr_spark import (
    artifact,
    delta,
    explain,
    glances,
    learning_curve,
    localisation,
    operating_points,
    tables,
)
from cxr_spark.comparison import Comparison
from cxr_spark.comparison import figures_of as comparison_figures
from cxr_spark.evaluation_words import headline, table
from cxr_spark.figures import HEADLINE, Evaluation, Yardsticks, figures_of, figures_of_split
from cxr_spark.judged_images import (
    SEEN,
    Judged,
    judged,
    read_images,
    scored_rows,
    seen_before,
    train_counts,
)
from cxr_spark.learning_curve import Point
from cxr_spark.material import Material, read_material
from cxr_spark.operating_points import OperatingPoints
from cxr_spark.refusals import (
    NothingToEvaluate,
    check_complete,
    check_rows,
    find_model,
    known_models,
)
from cxr_spark.run import Run
from cxr_spark.scored_rows import ScoredRows
from cxr_spark.slice_figures import Figure
from cxr_spark.tables import Warehouse


def evaluate(
    spark: SparkSession,
    warehouse: Warehouse,
    *,
    run: Run,
    model_version: str | None = None,
    split: str = "test",
    allow_missing: bool = False,
    compare: str | None = None,
    by_share: bool = False,
) -> Evaluation:
    """Judge a model on a split of the images version in its own row, and append the figures.

    The split is always that of the model's images version: a later version may have moved an image
    that this model was trained on into test. Figures that metrics has already aren't doubled.

    Args:
        spark: the session.
        warehouse: holds images, predictions, models; metrics is appended to.
        run: gets counts, versions, outputs and the headline in words.
        model_version: as in models; by default the newest.
        split: train, val or test.
        allow_missing: judge the rows with a usable prediction and count the others, where
            otherwise one such row is an error.
        compare: another model version, to be judged on the same images.
        by_share: also judge the models that learned alike from other shares of train.

    Raises:
        UnknownModel, NothingToEvaluate, OtherPreprocessing: wrong input; nothing was written.
        UnscoredRows: predictions are missing or failed; nothing was written.
    """
    if split not in SEEN:
        raise NothingToEvaluate(f"split {split!r}: expected one of {', '.join(SEEN)}")
    model, other = _find_models(warehouse, model_version, compare)
    # Two runs over one model would both find its figures lacking and append them twice.
    run.lock(warehouse.root, f"evaluate-{model['model_version']}")
    material = read_material(spark, warehouse, model, split)
    run.versions_read.update(
        images=material.images_version, predictions=material.predictions_version
    )
    of_split = material.judged(split, model)
    check_rows(of_split, split, model)
    run.counts.update(of_split.counts)
    check_complete(of_split, material.score_command(model), allow_missing=allow_missing)

    evaluation = _evaluation(
        material, of_split, model, other, run, allow_missing=allow_missing, by_share=by_share
    )
    _append(warehouse, evaluation, run)
    run.outputs["metrics"] = warehouse.path("metrics")
    run.outputs.update({name: evaluation.figure(name).value for name in HEADLINE})
    for line in table(evaluation):
        run.say(line)
    run.say(headline(evaluation))
    return evaluation


def _evaluation(
    material: Material,
    of_split: Judged,
    model: dict[str, Any],
    other: dict[str, Any] | None,
    run: Run,
    *,
    allow_missing: bool,
    by_share: bool,
) -> Evaluation:
    """All that is to be told of a model on the rows of its split; arguments as in `evaluate`."""
    split = material.split
    seen = glances.read_glances(material.pictures, split, material.train_images())
    rows = scored_rows(of_split, glances.brightness(seen))
    if split != "test":  # what an official list says of test images is nothing to the others
        rows = replace(rows, known_as_train=None)
    comparison = (
        None if other is None else _compare(material, rows, other, allow_missing=allow_missing)
    )
    curve = _learning_curve(material, rows, model, allow_missing) if by_share else []
    others = {name: material.judged(name, model) for name in SEEN if name != split}
    yardsticks = Yardsticks(
        train_counts(material.images),
        glances.border_only(seen, rows.image_id),
        _operating_points(material, others.get("val"), model, run),
    )
    return Evaluation(
        model=model,
        split=split,
        images_version=material.images_version,
        predictions_version=material.predictions_version,
        rows=rows,
        figures=[
            *figures_of(rows, yardsticks, of_split.counts),
            *_localisation_figures(material, of_split, rows, model, run),
            *(comparison_figures(comparison) if comparison else ()),
            *learning_curve.figures_of(curve),
        ],
        counts=of_split.counts,
        comparison=comparison,
        learning_curve=curve,
        other_splits={
            name: figures_of_split(scored_rows(rows_there), yardsticks.train_counts)
            for name, rows_there in others.items()
            if rows_there.is_complete
        },
    )


def _find_models(
    warehouse: Warehouse, model_version: str | None, compare: str | None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The model to be judged, and the one to compare it with."""
    model = find_model(warehouse, model_version)
    other = None if compare is None else find_model(warehouse, compare)
    if other is not None and other["model_version"] == model["model_version"]:
        raise NothingToEvaluate(f"{compare} is the model that is judged; compare it with another")
    return model, other


def _operating_points(
    material: Material, of_val: Judged | None, model: Mapping[str, Any], run: Run
) -> OperatingPoints | None:
    """Chosen on all of val, or not at all."""
    if of_val is None or of_val.table.empty:
        return None
    if not of_val.is_complete:
        command = material.score_command(model, "val")
        run.say(f"no operating thresholds, as val isn't all scored: {command}")
        return None
    return operating_points.choose(scored_rows(of_val))


def _learning_curve(
    material: Material, rows: ScoredRows, model: dict[str, Any], allow_missing: bool
) -> list[Point]:
    """What models that learned from shares of train say of the same rows, by share."""
    models = learning_curve.models_of(model, known_models(material.warehouse))
    if len(models) < 2:
        raise NothingToEvaluate(
            f"{model['model_version']} is the only one of its kind; for --by-share train others "
            "with the same options and --train-share 0.5, say, and score them"
        )
    found = {}
    for other in models:
        theirs = material.judged(material.split, other)
        check_complete(theirs, material.score_command(other), allow_missing=allow_missing)
        found[other["model_version"]] = scored_rows(theirs)
    by_all = list(set(rows.image_id).intersection(*(one.image_id for one in found.values())))
    shares = {one["model_version"]: learning_curve.share_of(one) for one in models}
    return [
        Point(
            shares[version],
            material.train_images(shares[version]),
            version,
            scored.where(np.isin(scored.image_id, by_all)),
        )
        for version, scored in found.items()
    ]


def _compare(
    material: Material, rows: ScoredRows, other: dict[str, Any], *, allow_missing: bool
) -> Comparison:
    """What another model says of the rows that it wasn't made with either."""
    its_images = read_images(material.spark, material.warehouse, int(other["images_version"]))
    of_split = material.images.where(F.col("split") == material.split)
    seen = seen_before(its_images, material.split)
    theirs = judged(of_split, seen, material.predictions, other)
    ours = set(rows.image_id)
    theirs = Judged(theirs.table[theirs.table["image_id"].isin(ours)], theirs.related)
    if theirs.table.empty:
        raise NothingToEvaluate(f"{other['model_version']} was made with all of these images")
    check_complete(theirs, material.score_command(other), allow_missing=allow_missing)
    scored = scored_rows(theirs)
    both = rows.where(np.isin(rows.image_id, scored.image_id))
    return Comparison(
        other,
        both,
        scored.probabilities,
        related=len(rows) - len(theirs.table),
        unscored=len(theirs.table) - len(both),
    )


def _localisation_figures(
    material: Material, of_split: Judged, rows: ScoredRows, model: Mapping[str, Any], run: Run
) -> list[Figure]:
    """How the model's heat fits the boxes of the rows, where there are any and it can be asked."""
    if not of_split.table["boxed"].any():
        return []
    try:
        card = artifact.load_card(model["artifact_path"])
        artifact.load_weights(model["artifact_path"], card)
    except artifact.ArtifactError as error:
        run.say(f"no localisation, as the model can't be opened: {error}")
        return []
    pictures = material.pictures.where(F.col("split") == material.split)
    fits = explain.fits_of_boxes(pictures, card.preprocessing["fit"], model["artifact_path"])
    return localisation.figures_of(fits, rows)


def _append(warehouse: Warehouse, evaluation: Evaluation, run: Run) -> None:
    """Append those figures that metrics lacks."""
    of_evaluation: Mapping[str, Any] = {
        "model_version": evaluation.model["model_version"],
        "images_version": evaluation.images_version,
        "predictions_version": evaluation.predictions_version,
    }
    key = tables.contract("metrics").key
    there: set[tuple[Any, ...]] = set()
    if warehouse.exists("metrics"):
        known = delta.read_rows(warehouse.path("metrics"), key)
        there = {tuple(row[name] for name in key) for row in known}
    names = ("slice", "class", "metric", "value", "ci_low", "ci_high", "n")
    figures = {evaluation.split: evaluation.figures, **evaluation.other_splits}
    rows = [
        {**of_evaluation, "split": split, **dict(zip(names, figure, strict=True))}
        for split, found in figures.items()
        for figure in found
    ]
    lacking = [row for row in rows if tuple(row[name] for name in key) not in there]
    if lacking:
        made = {"run_id": run.run_id, "evaluated_at": datetime.now(UTC)}
        version = warehouse.append_rows("metrics", [row | made for row in lacking])
        run.versions_written["metrics"] = version
