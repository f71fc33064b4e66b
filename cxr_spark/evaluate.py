"""The stage that judges a model: its predictions beside the labels of its own images version."""

import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from cxr_spark import delta, metrics, tables
from cxr_spark.figures import MEANS, Evaluation, ScoredRows, figures_of, headline
from cxr_spark.labels import CLASS_COLUMNS, CLASSES
from cxr_spark.metrics import Integers
from cxr_spark.tables import Warehouse

# What a model saw before it meets a split: rows related to these by identity don't count there.
SEEN: dict[str, tuple[str, ...]] = {"train": (), "val": ("train",), "test": ("train", "val")}
IDENTITIES = ("group_id", "content_sha256", "pixel_sha256")
IDS_IN_MESSAGE = 3


class UnknownModel(ValueError):
    """No such model version, or no model at all."""


class NothingToEvaluate(ValueError):
    """The split has no rows, or there are no predictions to read."""


class OtherPreprocessing(ValueError):
    """The images were prepared in another way than the model expects."""


class UnscoredRows(RuntimeError):
    """Rows of the split have no usable prediction, so there is no headline."""


def evaluate(
    spark: SparkSession,
    warehouse: Warehouse,
    *,
    run: Any,
    model_version: str | None = None,
    split: str = "test",
    allow_missing: bool = False,
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

    Raises:
        UnknownModel, NothingToEvaluate, OtherPreprocessing: wrong input; nothing was written.
        UnscoredRows: predictions are missing or failed; nothing was written.
    """
    if split not in SEEN:
        raise NothingToEvaluate(f"split {split!r}: expected one of {', '.join(SEEN)}")
    model = find_model(warehouse, model_version)
    # Two runs over one model would both find its figures lacking and append them twice.
    run.lock(warehouse.root, f"evaluate-{model['model_version']}")
    command = _score_command(warehouse, model, split)
    predictions_version = warehouse.version("predictions")
    if predictions_version is None:
        raise NothingToEvaluate(f"{warehouse.root} has no predictions yet. Score first: {command}")
    images_version = int(model["images_version"])
    run.versions_read.update(images=images_version, predictions=predictions_version)

    images = warehouse.read(spark, "images", images_version).drop("pixels", "boxes")
    predictions = warehouse.read(spark, "predictions", predictions_version)
    of_split = with_predictions(
        flag_related(images, split), latest_predictions(predictions, model)
    ).toPandas()
    judged = _judged(of_split, split, model)
    rows, counts = _counted(judged, related=len(of_split) - len(judged))
    run.counts.update(counts)
    _check_complete(judged, counts, command, allow_missing=allow_missing)

    evaluation = Evaluation(
        model=model,
        split=split,
        images_version=images_version,
        predictions_version=predictions_version,
        rows=rows,
        figures=figures_of(rows, train_counts(images), counts),
        counts=counts,
    )
    _append(warehouse, evaluation, run)
    run.outputs.update({name: evaluation.figure(name).value for name in MEANS})
    run.say(headline(evaluation))
    return evaluation


def find_model(warehouse: Warehouse, model_version: str | None) -> dict[str, Any]:
    """The row of models with that version; the newest row without one.

    Raises:
        UnknownModel: there is none.
    """
    known: list[dict[str, Any]] = []
    if warehouse.exists("models"):
        known = delta.read_rows(warehouse.path("models"), tables.schema("models").names)
    known.sort(key=lambda row: (row["created_at"], row["model_version"]))
    if not known:
        raise UnknownModel(f"{warehouse.root} has no model yet; run jobs/train.py first")
    wanted = known[-1]["model_version"] if model_version is None else model_version
    found = [row for row in known if row["model_version"] == wanted]
    if not found:
        newest = ", ".join(row["model_version"] for row in known[-5:])
        raise UnknownModel(f"no model version {wanted!r} in {warehouse.root}; newest: {newest}")
    return found[-1]


def latest_predictions(predictions: DataFrame, model: Mapping[str, Any]) -> DataFrame:
    """The newest prediction of each image and content by this model (ties: greatest run_id).

    A prediction made with another preprocessing than the model's gets that as its error.
    """
    by_age = Window.partitionBy("image_id", "content_sha256").orderBy(
        F.desc_nulls_last("scored_at"), F.desc("run_id")
    )
    of_another_kind = F.col("preprocessing") != F.lit(model["preprocessing"])
    return (
        predictions.where(F.col("model_version") == F.lit(model["model_version"]))
        .withColumn("place", F.row_number().over(by_age))
        .where(F.col("place") == 1)
        .select(
            "image_id",
            "content_sha256",
            "probabilities",
            F.when(of_another_kind, "other_preprocessing").otherwise(F.col("error")).alias("error"),
            F.lit(True).alias("scored"),
        )
    )


def flag_related(images: DataFrame, split: str) -> DataFrame:
    """The rows of a split; `related` where the model saw their group or content in another split.

    By the laws of images there are none: this holds even for a version that breaks them.
    """
    seen = images.where(F.col("split").isin(*SEEN[split]))
    rows = images.where(F.col("split") == split)
    related = F.lit(False)
    for identity in IDENTITIES:
        met = seen.select(identity, F.lit(True).alias(f"met_{identity}")).distinct()
        rows = rows.join(met, on=identity, how="left")
        related = related | F.coalesce(f"met_{identity}", F.lit(False))
    return rows.withColumn("related", related)


def with_predictions(rows: DataFrame, predictions: DataFrame) -> DataFrame:
    """Each row once, with its prediction or `scored` false; narrow enough for the driver."""
    return rows.join(predictions, on=["image_id", "content_sha256"], how="left").select(
        "image_id",
        "source",
        F.coalesce("group_id", "image_id").alias("group_id"),
        "label_index",
        "preprocessing",
        "related",
        F.coalesce("scored", F.lit(False)).alias("scored"),
        "error",
        "probabilities.*",
    )


def train_counts(images: DataFrame) -> dict[str, Integers]:
    """(9,) rows of each class in train, by source."""
    groups = images.where(F.col("split") == "train").groupBy("source", "label_index").count()
    counts: dict[str, Integers] = {}
    for source, label_index, n in groups.collect():
        counts.setdefault(source, np.zeros(len(CLASSES), dtype=np.int64))[label_index] = n
    return counts


def _judged(of_split: pd.DataFrame, split: str, model: Mapping[str, Any]) -> pd.DataFrame:
    """The rows that may count, in the order of image_id.

    Raises:
        NothingToEvaluate: no row may count.
        OtherPreprocessing: the rows aren't prepared as the model expects.
    """
    judged = of_split[~of_split["related"]].sort_values("image_id", ignore_index=True)
    images = f"version {model['images_version']} of images"
    if judged.empty:
        raise NothingToEvaluate(
            f"{images} has no row in {split} to judge model {model['model_version']} by "
            f"({len(of_split)} are related to rows it was made with)"
        )
    kinds = set(judged["preprocessing"])
    if kinds != {model["preprocessing"]}:
        raise OtherPreprocessing(
            f"{images} holds the preprocessing {sorted(map(str, kinds))}, model "
            f"{model['model_version']} expects {model['preprocessing']}: its row in models names "
            "the wrong version of images"
        )
    return judged


def _counted(table: pd.DataFrame, *, related: int) -> tuple[ScoredRows, dict[str, int]]:
    """The rows with a usable prediction; how many are and are not.

    A prediction that is no distribution gets that as its error in `table`.
    """
    given = table[list(CLASS_COLUMNS)].to_numpy(dtype=np.float64)
    broken = table["scored"] & table["error"].isna() & ~metrics.is_distribution(given)
    table.loc[broken, "error"] = "no_distribution"
    usable = (table["scored"] & table["error"].isna()).to_numpy()
    kept = table[usable]
    rows = ScoredRows(
        image_id=kept["image_id"].to_numpy(dtype=str),
        source=kept["source"].to_numpy(dtype=str),
        group_id=kept["group_id"].to_numpy(dtype=str),
        label_index=kept["label_index"].to_numpy(dtype=np.int64),
        probabilities=given[usable],
    )
    missing, errors = int((~table["scored"]).sum()), int(table["error"].notna().sum())
    return rows, {"n": len(kept), "missing": missing, "errors": errors, "related": related}


def _check_complete(
    table: pd.DataFrame, counts: Mapping[str, int], command: str, *, allow_missing: bool
) -> None:
    """Refuse a headline over survivors."""
    left_out = table[~table["scored"] | table["error"].notna()]
    if not len(left_out) or (allow_missing and counts["n"]):
        return
    few = [
        f"{row.image_id} ({row.error if row.scored else 'no prediction'})"
        for row in left_out.head(IDS_IN_MESSAGE).itertuples()
    ]
    raise UnscoredRows(
        f"{len(left_out)} of {len(table)} rows can't be judged: {counts['missing']} without a "
        f"prediction, {counts['errors']} with an error, first {', '.join(few)}. Score them: "
        f"{command} (or --allow-missing to judge the {counts['n']} others)"
    )


def _score_command(warehouse: Warehouse, model: Mapping[str, Any], split: str) -> str:
    options = {
        "--warehouse": warehouse.root,
        "--model": model["artifact_path"],
        "--split": split,
        "--images-version": model["images_version"],
    }
    return shlex.join(["jobs/score.py", *(str(word) for pair in options.items() for word in pair)])


def _append(warehouse: Warehouse, evaluation: Evaluation, run: Any) -> None:
    """Append those figures that metrics lacks."""
    of_evaluation = {
        "model_version": evaluation.model["model_version"],
        "images_version": evaluation.images_version,
        "predictions_version": evaluation.predictions_version,
        "split": evaluation.split,
    }
    key = tables.contract("metrics").key
    there: set[tuple[Any, ...]] = set()
    if warehouse.exists("metrics"):
        known = delta.read_rows(warehouse.path("metrics"), key)
        there = {tuple(row[name] for name in key) for row in known}
    names = ("slice", "class", "metric", "value", "ci_low", "ci_high", "n")
    rows = [of_evaluation | dict(zip(names, f, strict=True)) for f in evaluation.figures]
    lacking = [row for row in rows if tuple(row[name] for name in key) not in there]
    if lacking:
        made = {"run_id": run.run_id, "evaluated_at": datetime.now(UTC)}
        version = warehouse.append_rows("metrics", [row | made for row in lacking])
        run.versions_written["metrics"] = version
