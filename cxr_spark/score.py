"""Images in, rows of predictions out: a pandas UDF that loads the model once a worker."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyspark import Accumulator, Broadcast
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import to_arrow_schema

from cxr_spark import commits, delta, tables
from cxr_spark.artifact import Card, load_card, load_weights
from cxr_spark.images import Preprocessing, facts_of_file
from cxr_spark.labels import CLASS_COLUMNS, CLASSES
from cxr_spark.sources import list_folder
from cxr_spark.tables import Warehouse

# Images through the network at once: more gains nothing on a core and costs memory.
IMAGES_AT_ONCE = 16
ROWS_PER_TASK = 256
BATCH_BYTES = 64 << 20
LISTED = ("image_id", "path", "size_bytes", "modified_at", "reason", "detail")
SAME_FILE = ("image_id", "size_bytes", "modified_at")
RESULT = T.StructType(
    [
        *[T.StructField(name, T.StringType()) for name in ("content_sha256", "error", "detail")],
        T.StructField("predicted_label", T.StringType()),
        T.StructField("confidence", T.DoubleType()),
        T.StructField("entropy", T.DoubleType()),
        *[T.StructField(name, T.DoubleType()) for name in CLASS_COLUMNS],
    ]
)


class ScoreError(ValueError):
    """Something that can't be scored as asked; the message says what was expected."""


class Progress(Protocol):
    """The part of a job's run that this stage uses."""

    run_id: str
    counts: dict[str, int | float]
    versions_read: dict[str, int]
    versions_written: dict[str, int]

    def say(self, text: str) -> None: ...


class Plan(NamedTuple):
    """What workers are sent: the artifact, how files become pixels, what needs no inference."""

    model_folder: str
    preprocessing: Preprocessing
    known: Broadcast[dict[str, NDArray[np.float64]]]
    model_loads: Accumulator[int]
    inferred: Accumulator[int]


class Pixels(NamedTuple):
    """An image ready for the network, or, without pixels, the reason why it is none."""

    content_sha256: str
    pixels: bytes | None
    error: str | None = None
    detail: str | None = None


def score_images(
    spark: SparkSession,
    warehouse: Warehouse,
    model_folder: str | Path,
    run: Progress,
    *,
    split: str = "all",
    images_version: int | None = None,
) -> None:
    """Score the images of a split (or `all`) that this model version has not scored yet.

    Args:
        model_folder: the artifact.
        images_version: of images; by default the published one.

    Raises:
        ScoreError: the images were preprocessed in another way than the model expects.
    """
    card = _card(model_folder)
    version = warehouse.current("images") if images_version is None else images_version
    versions = warehouse.published_with(version).versions
    images = warehouse.read(spark, "images", version)
    if split != "all":
        images = images.where(F.col("split") == split)
    _check_preprocessing(images, card)
    run.versions_read |= {"images": version, "images_raw": versions["images_raw"]}
    places = warehouse.read(spark, "images_raw", versions["images_raw"])
    rows = images.select("image_id", "content_sha256", "pixels").join(
        F.broadcast(places.select("image_id", "path", "size_bytes", "modified_at")),
        on="image_id",
        how="inner",
    )
    scored = _scored(spark, warehouse, card).select("image_id", "content_sha256")
    todo = rows.join(scored, on=["image_id", "content_sha256"], how="left_anti")
    run.counts["listed"] = images.count()
    nothing = F.lit(None).cast("string")
    columns = {"images_version": F.lit(version).cast("long"), "reason": nothing, "detail": nothing}
    _score(spark, warehouse, todo.withColumns(columns), model_folder, card, run)


def score_folders(
    spark: SparkSession,
    warehouse: Warehouse,
    model_folder: str | Path,
    folders: Sequence[str | Path],
    run: Progress,
) -> None:
    """Score the image files below the folders that this model version has not scored yet.

    A file with the same path, size and modification time as one that was scored is not opened.

    Raises:
        SourceError: a folder is missing or can't be listed.
    """
    card = _card(model_folder)
    listed = {file.image_id: file for folder in folders for file in list_folder(folder)}
    schema = T.StructType([tables.schema("images_raw")[name] for name in LISTED])
    rows = [{name: getattr(file, name) for name in LISTED} for file in listed.values()]
    files = spark.createDataFrame(pa.Table.from_pylist(rows, to_arrow_schema(schema)), schema)
    scored = _scored(spark, warehouse, card).where("images_version IS NULL").select(*SAME_FILE)
    todo = files.join(scored, on=list(SAME_FILE), how="left_anti")
    run.counts["listed"] = len(listed)
    columns = {
        "images_version": F.lit(None).cast("long"),
        "content_sha256": F.lit(None).cast("string"),
        "pixels": F.lit(None).cast("binary"),
    }
    _score(spark, warehouse, todo.withColumns(columns), model_folder, card, run)


def _card(model_folder: str | Path) -> Card:
    """The card of an artifact whose weights are what it says, checked before anything runs."""
    card = load_card(model_folder)
    load_weights(model_folder, card)
    return card


def _check_preprocessing(images: DataFrame, card: Card) -> None:
    found = [row.preprocessing for row in images.select("preprocessing").distinct().collect()]
    if found and found != [card.preprocessing_fingerprint]:
        raise ScoreError(
            f"{card.model_version} expects images of preprocessing {card.preprocessing} and these "
            "have another; curate with the same --image-size, or train a model on these"
        )


def _scored(spark: SparkSession, warehouse: Warehouse, card: Card) -> DataFrame:
    if not warehouse.exists("predictions"):
        return spark.createDataFrame([], tables.schema("predictions"))
    predictions = warehouse.read(spark, "predictions")
    return predictions.where(F.col("model_version") == card.model_version)


def _score(
    spark: SparkSession,
    warehouse: Warehouse,
    todo: DataFrame,
    model_folder: str | Path,
    card: Card,
    run: Progress,
) -> None:
    """Score the rows and append them to predictions in one commit."""
    waiting = todo.count()
    run.counts |= {"skipped": run.counts["listed"] - waiting, "scored": waiting, "errors": 0}
    run.say(f"{waiting:,} of {run.counts['listed']:,} to score with {card.model_version}")
    if waiting == 0:
        return
    plan = Plan(
        str(Path(model_folder).absolute()),
        Preprocessing.from_json(card.preprocessing),
        spark.sparkContext.broadcast(_known_contents(_scored(spark, warehouse, card))),
        spark.sparkContext.accumulator(0),
        spark.sparkContext.accumulator(0),
    )
    batch_rows = min(ROWS_PER_TASK, max(1, BATCH_BYTES // card.image_size**2))
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", str(batch_rows))
    tasks = max(spark.sparkContext.defaultParallelism, -(-waiting // ROWS_PER_TASK))
    rows = predict_rows(todo.repartition(tasks), plan).select(
        "*",
        F.lit(card.model_version).alias("model_version"),
        F.lit(card.preprocessing_fingerprint).alias("preprocessing"),
        F.current_timestamp().alias("scored_at"),
        F.lit(run.run_id).alias("run_id"),
    )
    staged = warehouse.stage("predictions", rows)
    run.counts["errors"] = delta.read_staged(spark, staged).where("error IS NOT NULL").count()
    run.counts |= {"model_loads": plan.model_loads.value, "inferred": plan.inferred.value}
    version = commits.commit(staged, run_id=run.run_id, sequence=0)
    run.versions_written["predictions"] = version


def _known_contents(scored: DataFrame) -> dict[str, NDArray[np.float64]]:
    """Probabilities by content: the same content is never inferred twice by a model version."""
    rows = scored.where("error IS NULL").select("content_sha256", "probabilities.*")
    return {row[0]: np.array(row[1:]) for row in rows.toLocalIterator()}


def predict_rows(rows: DataFrame, plan: Plan) -> DataFrame:
    """Predictions of images that come as pixels or as paths.

    Args:
        rows: image_id, path, size_bytes, modified_at, images_version, and content_sha256 and
            pixels (uint8, image_size x image_size) or null, where the path is read; reason, detail
            (not null: nothing to read).

    Returns:
        The columns of predictions that an image decides.
    """
    image = F.struct("path", "reason", "detail", "content_sha256", "pixels")
    kept = ("image_id", "path", "size_bytes", "modified_at", "images_version")
    scored = rows.select(*kept, _predictor(plan)(image).alias("result"))
    # Tasks that met the same content at once differ in the last digits: the first row's count.
    content = F.coalesce("result.content_sha256", "image_id")
    same_content = Window.partitionBy(content).orderBy("image_id")
    scored = scored.withColumn("result", F.first("result").over(same_content))
    has_error = F.col("result.error").isNotNull()
    probabilities = F.struct(*[F.col(f"result.{name}") for name in CLASS_COLUMNS])
    results = [F.col(f"result.{f.name}") for f in RESULT if f.name not in CLASS_COLUMNS]
    return scored.select(*kept, *results, F.when(~has_error, probabilities).alias("probabilities"))


def _predictor(plan: Plan) -> Any:
    @F.pandas_udf(RESULT)  # type: ignore[call-overload]
    def predict(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            images = [_pixels(row, plan.preprocessing) for row in batch.itertuples()]
            yield _results(images, _probabilities(images, plan))

    return predict


def _pixels(row: Any, preprocessing: Preprocessing) -> Pixels:
    if row.reason is not None:
        return Pixels("", None, row.reason, row.detail)
    if row.pixels is not None:
        return Pixels(row.content_sha256, row.pixels)
    facts = facts_of_file(row.path, preprocessing)
    return Pixels(facts.content_sha256 or "", facts.pixels, facts.reason, facts.detail)


def _probabilities(images: list[Pixels], plan: Plan) -> dict[str, NDArray[np.float64]]:
    """Probabilities by content, of those known and those inferred now, each content once."""
    known = plan.known.value
    good = {image.content_sha256: image.pixels for image in images if image.pixels is not None}
    found = {key: known[key] for key in good if key in known}
    new = {key: pixels for key, pixels in good.items() if key not in known}
    if not new:
        return found
    size = plan.preprocessing.size
    pixels = np.frombuffer(b"".join(new.values()), np.uint8).reshape(-1, size, size)
    predict = _loaded_model(plan)
    rows = [predict(pixels[at : at + IMAGES_AT_ONCE]) for at in range(0, len(new), IMAGES_AT_ONCE)]
    plan.inferred.add(len(new))
    return found | dict(zip(new, np.concatenate(rows), strict=True))


# Of this worker process: one model, kept from task to task.
_loaded: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.float64]]] = {}


def _loaded_model(plan: Plan) -> Callable[[NDArray[np.uint8]], NDArray[np.float64]]:
    if plan.model_folder not in _loaded:
        # Drivers never come here, so they never pay for importing torch.
        import torch

        from cxr_spark import models

        torch.set_num_threads(1)  # Spark runs a worker a core
        model, card = models.load_model(plan.model_folder)
        _loaded.clear()
        _loaded[plan.model_folder] = partial(models.predict, model, card)
        plan.model_loads.add(1)
    return _loaded[plan.model_folder]


def _results(images: list[Pixels], found: dict[str, NDArray[np.float64]]) -> pd.DataFrame:
    unscored = np.full(len(CLASSES), np.nan)
    table = np.stack([unscored if i.error else found[i.content_sha256] for i in images])
    best = table.argmax(axis=1)
    confidence = table[np.arange(len(table)), best]
    plogp = table * np.log(np.clip(table, 1e-300, None))
    return pd.DataFrame(
        {
            "content_sha256": [image.content_sha256 or None for image in images],
            "error": [image.error for image in images],
            "detail": [image.detail for image in images],
            "predicted_label": [
                None if image.error else CLASSES[index]
                for image, index in zip(images, best, strict=True)
            ],
            "confidence": confidence,
            "entropy": -plogp.sum(axis=1),
            **{name: table[:, place] for place, name in enumerate(CLASS_COLUMNS)},
        }
    )
