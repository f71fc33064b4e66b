"""The rows that a model may be judged by: their facts, its predictions, and which are left out."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from cxr_spark import metrics
from cxr_spark.labels import CLASS_COLUMNS, CLASSES
from cxr_spark.metrics import Integers
from cxr_spark.scored_rows import ScoredRows
from cxr_spark.slices import slices_of
from cxr_spark.tables import Warehouse

# What a model saw before it meets a split: rows related to these by identity don't count there.
SEEN: dict[str, tuple[str, ...]] = {"train": (), "val": ("train",), "test": ("train", "val")}
IDENTITIES = ("group_id", "content_sha256", "pixel_sha256")
FACTS = ("source", "label_index", "preprocessing", "sex", "age_years", "view", "width", "height")
NARROW = ("image_id", "split", *IDENTITIES, *FACTS)
OF_FILES = ("format", "official_split")
KEPT = ("image_id", "content_sha256", *FACTS, "boxed", *OF_FILES, "related")


class Judged(NamedTuple):
    """The rows of a split that may count.

    Attributes:
        table: one row an image, in the order of image_id: KEPT, group_id, scored, error and the
            nine probabilities.
        related: how many were left out, as the model saw their group or content.
    """

    table: pd.DataFrame
    related: int

    @property
    def usable(self) -> pd.Series:
        """Whether a row has a usable prediction."""
        return self.table["scored"] & self.table["error"].isna()

    @property
    def counts(self) -> dict[str, int]:
        """As in figures.Evaluation."""
        missing, errors = (~self.table["scored"]).sum(), self.table["error"].notna().sum()
        return {
            "n": int(self.usable.sum()),
            "missing": int(missing),
            "errors": int(errors),
            "related": self.related,
        }

    @property
    def is_complete(self) -> bool:
        """Whether there are rows, all with a usable prediction."""
        return bool(len(self.table) and self.usable.all())


def read_images(spark: SparkSession, warehouse: Warehouse, version: int) -> DataFrame:
    """The images of a version without pixels, with what their files are.

    Returns:
        NARROW, `boxed` (whether there are boxes) and OF_FILES.
    """
    has_boxes = F.coalesce(F.size("boxes") > 0, F.lit(False))
    images = warehouse.read(spark, "images", version).select(*NARROW, has_boxes.alias("boxed"))
    curated = warehouse.find_curate_run(version)
    if curated is None:
        return images.select("*", *(F.lit(None).cast("string").alias(name) for name in OF_FILES))
    files = warehouse.read(spark, "images_raw", curated.versions["images_raw"])
    return images.join(files.select("image_id", *OF_FILES), on="image_id", how="left")


def judged(
    rows: DataFrame, seen: DataFrame, predictions: DataFrame, model: Mapping[str, Any]
) -> Judged:
    """The rows that a model can't have seen, with its predictions.

    By the laws of images no row of a split is related to those of another: this holds even for a
    version that breaks them. A prediction that is no distribution has that as its error.

    Args:
        rows: of a split, as read_images gives them.
        seen: the images that the model was made with, as seen_before gives them.
        predictions: the table.
        model: its row of models.
    """
    flagged = flag_related(rows, seen)
    of_split: pd.DataFrame = with_predictions(
        flagged, latest_predictions(predictions, model)
    ).toPandas()
    table = of_split[~of_split["related"]].sort_values("image_id", ignore_index=True)
    given = table[list(CLASS_COLUMNS)].to_numpy(dtype=np.float64)
    broken = table["scored"] & table["error"].isna() & ~metrics.is_distribution(given)
    table.loc[broken, "error"] = "no_distribution"
    return Judged(table, len(of_split) - len(table))


def seen_before(images: DataFrame, split: str) -> DataFrame:
    """The images of a model's own version that it was made with before it met a split."""
    return images.where(F.col("split").isin(*SEEN[split]))


def scored_rows(rows: Judged, brightness: pd.Series | None = None) -> ScoredRows:
    """Those with a usable prediction.

    Args:
        rows: of a split.
        brightness: mean grey level by image_id, where it is known.
    """
    kept = rows.table[rows.usable]
    levels = pd.Series(dtype=np.float64) if brightness is None else brightness
    facts = kept.assign(brightness=kept["image_id"].map(levels))
    return ScoredRows(
        image_id=kept["image_id"].to_numpy(dtype=str),
        source=kept["source"].to_numpy(dtype=str),
        group_id=kept["group_id"].to_numpy(dtype=str),
        label_index=kept["label_index"].to_numpy(dtype=np.int64),
        probabilities=kept[list(CLASS_COLUMNS)].to_numpy(dtype=np.float64),
        slices=slices_of(facts),
        known_as_train=(kept["official_split"] == "train_val").to_numpy(dtype=bool),
    )


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


def flag_related(rows: DataFrame, seen: DataFrame) -> DataFrame:
    """The rows, with `related`: an identity of theirs, or of a row of their group, is among those
    seen.

    Another version of images may have another name for the group.
    """
    related = F.lit(False)
    for identity in IDENTITIES:
        met = seen.select(identity, F.lit(True).alias(f"met_{identity}")).distinct()
        rows = rows.join(met, on=identity, how="left")
        related = related | F.coalesce(f"met_{identity}", F.lit(False))
    of_group = Window.partitionBy(F.coalesce("group_id", "image_id"))
    return rows.withColumn("related", F.max(related).over(of_group))


def with_predictions(rows: DataFrame, predictions: DataFrame) -> DataFrame:
    """Each row once, with its prediction or `scored` false; narrow enough for the driver."""
    return rows.join(predictions, on=["image_id", "content_sha256"], how="left").select(
        *KEPT,
        F.coalesce("group_id", "image_id").alias("group_id"),
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
