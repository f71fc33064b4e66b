"""What the curation report tells: counts, samples and distributions of one published version."""

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from cxr_spark import arrow_batches, tables
from cxr_spark.file_scan import scan
from cxr_spark.tables import Warehouse

OF_A_CLASS = 4
OF_A_REASON = 3
COPY_GROUPS = 4
COPIES_SHOWN = 4
NEAR_PAIRS = 8
PIXELS_READ = 2_000
"""Images whose brightness is measured; in files, which are random samples of their splits."""
SIZE_STEPS = 2
"""Bins of sizes in each doubling."""
GREY_BINS = 16
PICTURE = ("image_id", "source", "content_sha256", "width", "height")


class Picture(NamedTuple):
    """A file that the report shows: what it is, and in words what it is shown for."""

    image_id: str
    source: str
    content_sha256: str | None
    width: int | None
    height: int | None
    about: str


class Facts(NamedTuple):
    """All that the report shows of one version of the tables, but the ledger.

    Attributes:
        cells: images by source, label and split: those three, `images`.
        groups: groups of patients and copies by split.
        classes: a few images of each class, from each of its sources.
        reasons: a few files of each reason of rejects.
        copies: groups of exact copies, the one that is kept first.
        near: pairs of near-duplicates, those least alike first.
        sizes: by source, files by bin of the shorter side: bin b begins at 2^(b/2) px.
        greys: by source, images by bin of the mean grey, 16 levels wide; of a sample.
        thumbnails: PNG-ready pixels by content_sha256.
    """

    cells: list[dict[str, Any]]
    groups: dict[str, int]
    classes: dict[str, list[Picture]]
    reasons: dict[str, list[Picture]]
    copies: list[list[Picture]]
    near: list[list[Picture]]
    sizes: dict[str, dict[int, int]]
    greys: dict[str, dict[int, int]]
    pixels: dict[str, bytes]


def gather(
    spark: SparkSession, warehouse: Warehouse, versions: dict[str, int], preprocessing: str
) -> Facts:
    """Read the facts; of pixels no more than a few files come to the driver.

    Args:
        versions: of images_raw, images, rejects and near_duplicates.
        preprocessing: fingerprint of the pixels that images have.
    """
    read = {name: warehouse.read(spark, name, version) for name, version in versions.items()}
    images = read["images"].drop("pixels").persist()
    raw, rejects = read["images_raw"].persist(), read["rejects"].persist()
    cells = images.groupBy("source", "label", "split").agg(F.count("*").alias("images"))
    groups = images.groupBy("split").agg(F.countDistinct("group_id").alias("groups")).collect()
    classes, reasons = _of_classes(images), _of_reasons(rejects, raw)
    copies, near = _copies(rejects, raw), _near_pairs(read["near_duplicates"], raw, images)
    lists = [*classes.values(), *reasons.values(), *copies, *near]
    contents = {p.content_sha256 for pictures in lists for p in pictures if p.content_sha256}
    return Facts(
        cells=[row.asDict() for row in cells.orderBy(*cells.columns).collect()],
        groups={row.split: row.groups for row in groups},
        classes=classes,
        reasons=reasons,
        copies=copies,
        near=near,
        sizes=_sizes(raw),
        greys=_greys(spark, warehouse, versions["images"]),
        pixels=_pixels(spark, warehouse, contents, preprocessing),
    )


def _first_of(frame: DataFrame, by: str, order: list[str | Column], count: int) -> DataFrame:
    place = F.row_number().over(Window.partitionBy(by).orderBy(*order))
    return frame.withColumn("place", place).where(F.col("place") <= count)


def _pictures(frame: DataFrame, by: str, *order: str) -> dict[Any, list[Picture]]:
    """The rows as pictures, in lists by the values of a column, which are in order too."""
    found: dict[Any, list[Picture]] = {}
    for row in frame.orderBy(by, *order).collect():
        picture = Picture(*(row[name] for name in (*PICTURE, "about")))
        found.setdefault(row[by], []).append(picture)
    return found


def _of_classes(images: DataFrame) -> dict[str, list[Picture]]:
    """Some of each class: first one of each source, then a second of each, and so on."""
    of_source = Window.partitionBy("label", "source").orderBy("content_sha256")
    turns = images.withColumn("turn", F.row_number().over(of_source)).withColumn(
        "about", F.concat_ws(", ", "source", "split")
    )
    return _pictures(_first_of(turns, "label", ["turn", "source"], OF_A_CLASS), "label", "place")


def _of_reasons(rejects: DataFrame, raw: DataFrame) -> dict[str, list[Picture]]:
    order: list[str | Column] = [F.xxhash64("image_id"), "image_id"]
    some = _first_of(rejects, "reason", order, OF_A_REASON).select(
        "image_id", "reason", "place", F.col("detail").alias("about")
    )
    facts = raw.select(*PICTURE)
    return _pictures(some.join(facts, on="image_id", how="inner"), "reason", "place")


def _copies(rejects: DataFrame, raw: DataFrame) -> list[list[Picture]]:
    """Groups of exact copies, those over many sources and of many files first."""
    copies = rejects.where("duplicate_of IS NOT NULL").select(
        "image_id", F.col("duplicate_of").alias("kept"), F.lit("left out").alias("about")
    )
    kept = copies.select(F.col("kept").alias("image_id"), "kept", F.lit("kept").alias("about"))
    members = copies.unionByName(kept.distinct()).join(
        raw.select(*PICTURE), on="image_id", how="inner"
    )
    sizes = members.groupBy("kept").agg(
        F.countDistinct("source").alias("sources"), F.count("*").alias("files")
    )
    order = [F.desc("sources"), F.desc("files"), F.asc("kept")]
    largest = members.join(sizes.orderBy(*order).limit(COPY_GROUPS), on="kept", how="inner")
    first = _first_of(largest, "kept", ["about", "image_id"], COPIES_SHOWN)
    groups = _pictures(first, "kept", "place").values()
    return sorted(groups, key=lambda group: -len({picture.source for picture in group}))


def _near_pairs(near: DataFrame, raw: DataFrame, images: DataFrame) -> list[list[Picture]]:
    """The pairs that are least alike, where the search would be wrong if it is."""
    labels = images.select("image_id", "label")
    files = raw.join(labels, on="image_id", how="left").where("content_sha256 IS NOT NULL")
    one = _first_of(files, "content_sha256", [F.col("label").isNull(), "image_id"], 1)
    doubtful = near.orderBy("similarity", "content_sha256", "other_sha256").limit(NEAR_PAIRS)
    ends = doubtful.select(
        "similarity",
        F.concat("content_sha256", "other_sha256").alias("pair"),
        F.explode(F.array("content_sha256", "other_sha256")).alias("content_sha256"),
    )
    alike = F.format_string("similarity %.2f", "similarity")
    about = F.concat_ws(", ", F.coalesce("label", F.lit("left out")), alike)
    shown = ends.join(one, on="content_sha256", how="inner").withColumn("about", about)
    pairs = _pictures(shown.withColumn("order", F.struct("similarity", "pair")), "order")
    return list(pairs.values())


def _sizes(raw: DataFrame) -> dict[str, dict[int, int]]:
    shorter = F.least("width", "height")
    place = F.floor(F.log2(shorter.cast("double")) * SIZE_STEPS).cast("int")
    return _binned(raw.where("reason IS NULL").select("source", place.alias("bin")))


def _greys(spark: SparkSession, warehouse: Warehouse, version: int) -> dict[str, dict[int, int]]:
    """Of some files of images, drawn until they hold enough."""
    files = warehouse.files("images", version)
    random.Random(0).shuffle(files)
    rows = np.cumsum([0, *(file.num_rows for file in files)])[:-1]
    drawn = [file for file, before in zip(files, rows, strict=True) if before < PIXELS_READ]
    images = scan(spark, drawn, tables.schema("images"))
    mean_grey = F.pandas_udf(_mean_greys, "double")  # type: ignore[call-overload]
    place = F.floor(mean_grey("pixels") * GREY_BINS / 256).cast("int")
    with arrow_batches.bounded(spark, arrow_batches.pixels_bytes(images)):
        return _binned(images.select("source", place.alias("bin")))


def _mean_greys(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
    for pixels in batches:
        yield pd.Series([np.frombuffer(square, np.uint8).mean() for square in pixels])


def _binned(places: DataFrame) -> dict[str, dict[int, int]]:
    counts: dict[str, dict[int, int]] = {}
    for row in places.groupBy("source", "bin").count().orderBy("source", "bin").collect():
        counts.setdefault(row.source, {})[row.bin] = row["count"]
    return counts


def _pixels(
    spark: SparkSession, warehouse: Warehouse, contents: set[str], preprocessing: str
) -> dict[str, bytes]:
    wanted = spark.createDataFrame([(content,) for content in contents], "content_sha256 string")
    found = tables.pixels_of(spark, warehouse, wanted, preprocessing).join(
        F.broadcast(wanted), on="content_sha256", how="left_semi"
    )
    return {row.content_sha256: bytes(row.pixels) for row in found.collect() if row.pixels}
