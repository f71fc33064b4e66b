"""images_raw and pixels to images and rejects: labels, copies, groups, splits, audit, commits."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from cxr_spark import delta, expectations, staging, tables
from cxr_spark.duplicates import mark_copies
from cxr_spark.images import Preprocessing
from cxr_spark.labels import CLASSES, FINDINGS, LABEL_INDEX, SELECTED
from cxr_spark.splits import Ratios, assign_splits, join_groups
from cxr_spark.tables import Warehouse

# Why a file is no image of the data set, in the order in which it is asked; `readable` stands for
# the reasons of images.py and sources.py.
DETAILS = {
    "unknown_label": "the finding is none that cxr_spark knows",
    "no_target_label": "none of the findings is one of the nine classes",
    "class_not_selected": "the class is not taken from this source",
    "multi_label": "more than one finding; the label policy is sole",
    "label_conflict": "the same picture is labelled differently elsewhere",
    "duplicate": "the same picture is there already",
}


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


class Curated(NamedTuple):
    """Narrow frames: images without their pixels, and rejects."""

    images: DataFrame
    rejects: DataFrame


def select_labels(files: DataFrame, selected: Mapping[str, tuple[str, ...]]) -> DataFrame:
    """Give each file its label, or the reason why it has none, by the policy `sole`.

    Args:
        files: has source, raw_labels and reason (null: readable).
        selected: the classes taken from each source; all nine from a source not named.

    Returns:
        The files with `label` (null unless selected) and `reason` filled in.
    """
    findings = F.coalesce("raw_labels", F.array().cast("array<string>"))
    targets = F.array_intersect(findings, _words(CLASSES))
    wanted = F.array_intersect(targets, _selected_of_source(selected))
    is_unknown = (F.size(findings) == 0) | (F.size(F.array_except(findings, _words(FINDINGS))) > 0)
    reason = (
        F.when(F.col("reason").isNotNull(), F.col("reason"))
        .when(is_unknown, "unknown_label")
        .when(F.size(targets) == 0, "no_target_label")
        .when(F.size(wanted) == 0, "class_not_selected")
        .when(F.size(findings) > 1, "multi_label")
    )
    labelled = files.withColumn("reason", reason)
    return labelled.withColumn("label", F.when(F.col("reason").isNull(), F.element_at(wanted, 1)))


def _words(labels: tuple[str, ...] | frozenset[str]) -> Column:
    return F.array(*[F.lit(label) for label in sorted(labels)])


def _selected_of_source(selected: Mapping[str, tuple[str, ...]]) -> Column:
    of_source = _words(CLASSES)
    for source, labels in selected.items():
        of_source = F.when(F.col("source") == source, _words(labels)).otherwise(of_source)
    return of_source


def group_images(copies: DataFrame) -> DataFrame:
    """Give each image its group: its patient, joined with the patients of exact copies.

    An image without a known patient is a patient of its own. Only pairs that join different
    patients come to the driver.

    Args:
        copies: has image_id, source, patient_id, first_copy; copies not kept are there too.

    Returns:
        The rows with `group_id`.
    """
    patient = F.coalesce(F.concat_ws(":", "source", "patient_id"), "image_id")
    own = F.when(F.col("patient_id").isNull(), F.col("image_id")).otherwise(patient)
    keyed = copies.withColumn("own_group", own)
    firsts = keyed.where("image_id = first_copy").select(
        "first_copy", F.col("own_group").alias("first_group")
    )
    pairs = (
        keyed.join(firsts, on="first_copy", how="inner")
        .where("own_group <> first_group")
        .select("own_group", "first_group")
        .distinct()
    )
    joined = join_groups((row.own_group, row.first_group) for row in pairs.toLocalIterator())
    if not joined:
        return keyed.withColumnRenamed("own_group", "group_id")
    mapping = copies.sparkSession.createDataFrame(
        list(joined.items()), "own_group string, joined string"
    )
    grouped = keyed.join(F.broadcast(mapping), on="own_group", how="left")
    return grouped.withColumn("group_id", F.coalesce("joined", "own_group"))


def curate_files(
    images_raw: DataFrame,
    preprocessing: Preprocessing,
    *,
    selected: Mapping[str, tuple[str, ...]] = SELECTED,
    ratios: Ratios | None = None,
) -> Curated:
    """Divide the files into images of the data set and rejects; every file is in one of them."""
    labelled = select_labels(images_raw, selected).persist()
    without_label = labelled.where("reason IS NOT NULL")
    marked = mark_copies(labelled.where("reason IS NULL"))
    grouped = group_images(marked).persist()
    kept = assign_splits(grouped.where("reason IS NULL"), ratios or Ratios())
    copies = grouped.where("reason IS NOT NULL")
    return Curated(
        kept.select(
            "*",
            _index_of_label().alias("label_index"),
            F.lit(preprocessing.fingerprint()).alias("preprocessing"),
            F.lit(preprocessing.size).alias("image_size"),
        ).select(*_narrow("images")),
        _as_rejects(without_label).unionByName(_as_rejects(copies, F.col("first_copy"))),
    )


def _index_of_label() -> Column:
    pairs = [F.lit(part) for pair in LABEL_INDEX.items() for part in pair]
    return F.create_map(*pairs)[F.col("label")]


def _narrow(table: str) -> list[str]:
    return [name for name in tables.schema(table).names if name not in ("pixels", "run_id")]


def _as_rejects(files: DataFrame, first_copy: Column | None = None) -> DataFrame:
    words = F.create_map(*[F.lit(part) for pair in DETAILS.items() for part in pair])
    findings = F.concat(F.lit(": "), F.array_join("raw_labels", ", "))
    in_words = F.concat(words[F.col("reason")], F.coalesce(findings, F.lit("")))
    kept = first_copy if first_copy is not None else F.lit(None)
    is_copy = (F.col("reason") == "duplicate") & (kept != F.col("image_id"))
    return files.select(
        "image_id",
        "source",
        "path",
        "reason",
        F.coalesce("detail", in_words).alias("detail"),
        F.when(is_copy, kept).cast("string").alias("duplicate_of"),
    )


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
