"""images_raw and pixels to images and rejects: what changes is staged, audited and committed."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from cxr_spark import delta, expectations, staging, tables
from cxr_spark.images import Preprocessing
from cxr_spark.selection import curate_files
from cxr_spark.tables import Warehouse


class Progress(Protocol):
    """The part of a job's run that this stage uses."""

    run_id: str
    counts: dict[str, int | float]
    versions_written: dict[str, int]

    def say(self, text: str) -> None: ...


class Change(NamedTuple):
    """A table as it will be, without pixels; `staged` are the files to commit, if it changes."""

    rows: DataFrame
    staged: staging.Staged | None = None
    mode: str = "overwrite"


def curate(
    spark: SparkSession,
    warehouse: Warehouse,
    images_raw: Change,
    preprocessing: Preprocessing,
    run: Progress,
) -> None:
    """Curate, audit what is staged, and commit it; the caller's runs row then publishes it.

    Args:
        images_raw: every listed file with its facts, staged if it changed.

    Raises:
        AuditRefused: an expectation failed; nothing has been committed.
    """
    curated = curate_files(images_raw.rows, preprocessing)
    changes = {
        "images_raw": images_raw,
        "images": _change_images(spark, warehouse, curated.images, preprocessing),
        "rejects": _change_rejects(spark, warehouse, curated.rejects, run),
    }
    staged = {name: change.staged for name, change in changes.items() if change.staged is not None}
    ledger = _ledger(*(change.rows for change in changes.values())).persist()
    _count(ledger, changes["images"].rows, changes["rejects"].rows, run)
    if staged:
        run.say(f"auditing {', '.join(staged)} before they are published")
        rows = {name: change.rows for name, change in changes.items()}
        laws = {"images": _laws(rows["images"]), "ledger": ledger}
        expectations.audit(rows | laws, run)
    published = {name: warehouse.current(name) for name in changes if name not in staged}
    for name, files in staged.items():
        published[name] = delta.commit(files, run_id=run.run_id, mode=changes[name].mode)
    run.versions_written.update(published)


def _change_images(
    spark: SparkSession, warehouse: Warehouse, images: DataFrame, preprocessing: Preprocessing
) -> Change:
    """Append what is new, or write all anew where rows left, changed or were left by a kill."""
    published = warehouse.published().get("images")
    pixels = tables.decoded_pixels(spark, warehouse, preprocessing.fingerprint())
    size = preprocessing.size
    if published is None:
        return _staged_images(warehouse, images, pixels, size, "overwrite")
    before = warehouse.read(spark, "images", published).select(*images.columns)
    added = images.join(before.select("image_id"), on="image_id", how="left_anti")
    remaining = images.join(before.select("image_id"), on="image_id", how="left_semi")
    are_same = tables.same_rows(remaining, before, key="image_id")
    if are_same and added.isEmpty():
        return Change(before)
    if not are_same or _is_behind(warehouse, published):
        return _staged_images(warehouse, images, pixels, size, "overwrite")
    appended = _staged_images(warehouse, added, pixels, size, "append")
    return appended._replace(rows=before.unionByName(appended.rows))


def _is_behind(warehouse: Warehouse, published: int) -> bool:
    """Whether a killed run left a version that nobody published."""
    return warehouse.version("images") != published


def _staged_images(
    warehouse: Warehouse, images: DataFrame, pixels: DataFrame, image_size: int, mode: str
) -> Change:
    """Stage images with their pixels, in hash order, in files of about 8 MB within each split."""
    rows_per_file = tables.rows_per_file(image_size)
    files = {
        row.split: -(-row["count"] // rows_per_file)
        for row in images.groupBy("split").count().collect()
    }
    bucket = F.pmod(F.xxhash64("content_sha256"), _by_split(files))
    narrow = F.broadcast(images)
    wide = pixels.select("content_sha256", "pixels").join(narrow, on="content_sha256", how="inner")
    placed = (
        wide.withColumn("bucket", bucket)
        .repartition(max(1, sum(files.values())), "split", "bucket")
        .sortWithinPartitions("split", "content_sha256")
        .drop("bucket")
    )
    staged = warehouse.stage("images", placed, max_records_per_file=rows_per_file)
    rows = delta.read_staged(images.sparkSession, staged).select(*images.columns)
    return Change(rows, staged, mode)


def _by_split(files: Mapping[str, int]) -> Column:
    number = F.lit(1)
    for split, count in files.items():
        number = F.when(F.col("split") == split, count).otherwise(number)
    return number


def _change_rejects(
    spark: SparkSession, warehouse: Warehouse, rejects: DataFrame, run: Progress
) -> Change:
    if "rejects" in warehouse.published():
        before = warehouse.read(spark, "rejects").drop("run_id")
        if tables.same_rows(rejects, before, key="image_id"):
            return Change(before)
    staged = warehouse.stage("rejects", rejects.withColumn("run_id", F.lit(run.run_id)).coalesce(1))
    return Change(delta.read_staged(spark, staged), staged)


def _ledger(images_raw: DataFrame, images: DataFrame, rejects: DataFrame) -> DataFrame:
    """A row a source: files listed, accounted for (images and rejects), and how many unreadable."""
    accounted = images.select("source").unionByName(rejects.select("source"))
    unreadable = F.avg(F.col("reason").isNotNull().cast("double")).alias("unreadable_share")
    listed = images_raw.groupBy("source").agg(F.count("*").alias("listed"), unreadable)
    return listed.join(
        accounted.groupBy("source").agg(F.count("*").alias("accounted")), on="source", how="left"
    )


def _laws(images: DataFrame) -> DataFrame:
    """The images with what the suite asks of rows together: repeats of keys, splits of a group."""

    def rows_with_same(column: str) -> Column:
        return F.count("*").over(Window.partitionBy(column))

    splits = F.size(F.collect_set("split").over(Window.partitionBy("group_id")))
    return images.select(
        "*",
        rows_with_same("image_id").alias("rows_of_image_id"),
        rows_with_same("content_sha256").alias("rows_of_content"),
        rows_with_same("pixel_sha256").alias("rows_of_pixels"),
        splits.alias("splits_of_group"),
    )


def _count(ledger: DataFrame, images: DataFrame, rejects: DataFrame, run: Progress) -> None:
    """Put the ledger into the counts, as `source.rule`, and say it."""
    for row in ledger.orderBy("source").collect():
        run.counts[f"{row.source}.listed"] = row.listed
    run.counts["listed"] = sum(run.counts.values()) - run.counts["decoded"]
    kept = images.groupBy("source", "split").count().orderBy("source", "split").collect()
    refused = rejects.groupBy("source", "reason").count().orderBy("source", "reason").collect()
    run.counts["images"] = sum(row["count"] for row in kept)
    run.counts["rejects"] = sum(row["count"] for row in refused)
    for row in refused:
        run.counts[f"{row.source}.{row.reason}"] = row["count"]
    for row in kept:
        run.counts[f"{row.source}.{row.split}"] = row["count"]
    for source in sorted({name.split(".")[0] for name in run.counts if "." in name}):
        parts = {
            n.split(".")[1]: int(c) for n, c in run.counts.items() if n.startswith(f"{source}.")
        }
        run.say(f"{source}: " + ", ".join(f"{name} {count:,}" for name, count in parts.items()))
