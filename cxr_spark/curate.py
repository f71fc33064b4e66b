"""images_raw and pixels to images and rejects: what changes is staged, audited and committed."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

import cxr_spark
from cxr_spark import commits, delta, expectations, ledger, staging, tables
from cxr_spark.images import Preprocessing
from cxr_spark.near_duplicates import near_pairs
from cxr_spark.run import Run
from cxr_spark.selection import Policy, curate_files
from cxr_spark.splits import SPLITS
from cxr_spark.tables import CurateRun, Warehouse

PAIR = ("content_sha256", "other_sha256")


class Change(NamedTuple):
    """A table as it will be, without pixels; `staged` are the files to commit, if it changes.

    `seen` is the table's newest version when its rows were read; None: when curating began.
    `partitions` are the splits that an overwrite replaces; None: all of the table.
    """

    rows: DataFrame
    staged: staging.Staged | None = None
    seen: int | None = None
    mode: str = "overwrite"
    partitions: list[str] | None = None


def curate(
    spark: SparkSession,
    warehouse: Warehouse,
    images_raw: Change,
    preprocessing: Preprocessing,
    policy: Policy,
    run: Run,
    *,
    afresh: bool = False,
    strict: bool = False,
) -> None:
    """Curate, audit what is staged, and commit it; the caller's runs row then publishes it.

    Args:
        images_raw: every listed file with its facts, staged if it changed.
        preprocessing: of the pixels that images will have.
        policy: what decides which files are images, and in which split.
        afresh: forget the splits and the near-duplicates that are recorded.
        strict: let the audit's warnings refuse too.

    Raises:
        AuditRefused: an expectation failed; nothing has been committed.
        WarningsStand: strict, nothing to commit, and what is published has warnings.
    """
    run.resolved |= policy.to_text() | {"preprocessing": preprocessing.fingerprint()}
    seen = {name: warehouse.seen(name) for name in tables.PUBLISHED}
    if images_raw.seen is not None:
        seen["images_raw"] = images_raw.seen
    before = None if afresh else warehouse.published_run()
    pairs = _change_near_duplicates(spark, warehouse, images_raw.rows, preprocessing, before, run)
    if before and _is_as_before(before, run) and not (images_raw.staged or pairs.staged):
        run.counts |= ledger.of_run(before.counts) | {"moved": 0}
        run.versions_written.update({name: before.versions[name] for name in tables.PUBLISHED})
        ledger.say(run)
        _stand_by_last_audit(warehouse, before, run, strict=strict)
        return
    expectations.load_ahead()
    recorded = _recorded_splits(spark, warehouse, policy, before, run)
    now = run.started_at
    curated = curate_files(images_raw.rows, pairs.rows, recorded, policy, preprocessing, now)
    images = curated.images.persist()
    changes = {
        "images_raw": images_raw,
        "near_duplicates": pairs,
        "images": _change_images(spark, warehouse, images, preprocessing),
        "rejects": _change_rejects(spark, warehouse, curated.rejects, run),
    }
    _tell_moves(images, run)
    changes = {name: change._replace(seen=seen[name]) for name, change in changes.items()}
    rows = {name: change.rows for name, change in changes.items()}
    ledger.count(rows["images_raw"], rows["images"], rows["rejects"], run)
    ledger.say(run)
    _commit(warehouse, changes, run, strict=strict)


def _is_as_before(before: CurateRun, run: Run) -> bool:
    """Whether the same version of cxr_spark was asked to curate by the same rules."""
    same_rules = all(before.arguments.get(name) == text for name, text in run.resolved.items())
    return same_rules and before.package_version == cxr_spark.__version__


def _commit(warehouse: Warehouse, changes: Mapping[str, Change], run: Run, *, strict: bool) -> None:
    staged = {name: change.staged for name, change in changes.items() if change.staged is not None}
    before = warehouse.published_run()
    if staged:
        run.say(f"auditing {', '.join(staged)} before they are published")
        rows = {name: change.rows for name, change in changes.items()}
        accounts = ledger.accounts(rows["images_raw"], rows["images"], rows["rejects"])
        expectations.audit(rows | {"ledger": accounts}, run, _data_docs(warehouse), strict=strict)
    elif before:
        _stand_by_last_audit(warehouse, before, run, strict=strict)
    published = {name: before.versions[name] for name in changes if before and name not in staged}
    for name, files in staged.items():
        change = changes[name]
        published[name] = commits.commit(
            files,
            run_id=run.run_id,
            mode=change.mode,
            partitions=change.partitions,
            sequence=0,
            expected=change.seen,
        )
    run.versions_written.update(published)


def _stand_by_last_audit(
    warehouse: Warehouse, before: CurateRun, run: Run, *, strict: bool
) -> None:
    """What is published stays as it is, and so does what its audit found."""
    warnings = int(before.counts.get("audit_warnings", 0))
    expectations.stand_by(warnings, run, _data_docs(warehouse), strict=strict)


def _data_docs(warehouse: Warehouse) -> Path:
    return warehouse.root / "data_docs"


def _change_near_duplicates(
    spark: SparkSession,
    warehouse: Warehouse,
    images_raw: DataFrame,
    preprocessing: Preprocessing,
    before: CurateRun | None,
    run: Run,
) -> Change:
    """Compare pictures that nobody has compared yet with all; forget pairs of what has gone."""
    readable = _pictures(images_raw).persist()
    if before:
        compared = _pictures(warehouse.read(spark, "images_raw", before.versions["images_raw"]))
        new = readable.join(compared, on="content_sha256", how="left_anti").persist()
        known = warehouse.read(spark, "near_duplicates", before.versions["near_duplicates"])
        known = known.drop("run_id")
    else:
        new, known = readable, _nothing(spark, "near_duplicates")
    run.counts["compared"] = new.count()
    others = readable.toDF("other_sha256")
    pairs = known.join(readable, on="content_sha256", how="left_semi").join(
        others, on="other_sha256", how="left_semi"
    )
    if run.counts["compared"]:
        decoded = tables.decoded_pixels(spark, warehouse, preprocessing.fingerprint())
        hashes = decoded.select("content_sha256", "perceptual_hash", "thumbnail")
        contents = hashes.join(readable, on="content_sha256", how="left_semi")
        run.say(f"comparing {run.counts['compared']:,} pictures with all, for near-duplicates")
        pairs = pairs.unionByName(near_pairs(contents, new))
    pairs = pairs.select(*known.columns).withColumn("run_id", F.lit(run.run_id))
    if before and not run.counts["compared"] and pairs.count() == known.count():
        return Change(known)
    staged = warehouse.stage("near_duplicates", pairs.coalesce(1))
    rows = delta.read_staged(spark, staged).drop("run_id")
    if before and tables.same_rows(rows, known, key=PAIR):
        return Change(known)
    return Change(rows, staged)


def _pictures(images_raw: DataFrame) -> DataFrame:
    """One content_sha256 of all that have the same pixels: thousands may wrap one picture."""
    readable = images_raw.where("reason IS NULL").groupBy("pixel_sha256")
    return readable.agg(F.min("content_sha256").alias("content_sha256")).select("content_sha256")


def _nothing(spark: SparkSession, table: str) -> DataFrame:
    return spark.createDataFrame([], tables.schema(table)).drop("run_id", "pixels")


def _recorded_splits(
    spark: SparkSession,
    warehouse: Warehouse,
    policy: Policy,
    before: CurateRun | None,
    run: Run,
) -> DataFrame:
    """The images published before, if their splits were drawn by the rule that counts now."""
    if before is None:
        return _nothing(spark, "images")
    if not policy.splits_as(before.arguments):
        run.say("the split policy or the ratios have changed: all splits are drawn afresh")
        return _nothing(spark, "images")
    return warehouse.read(spark, "images", before.versions["images"])


def _tell_moves(images: DataFrame, run: Run) -> None:
    """Say which images had to change their split, as groups may not straddle two."""
    moved = images.where("recorded_split <> split").groupBy("recorded_split", "split").count()
    rows = moved.orderBy("recorded_split", "split").collect()
    run.counts["moved"] = sum(row["count"] for row in rows)
    for row in rows:
        run.say(
            f"{row['count']:,} images moved from {row.recorded_split} to {row.split}: "
            "their group was joined with another, or is in the official test list now"
        )


def _change_images(
    spark: SparkSession, warehouse: Warehouse, images: DataFrame, preprocessing: Preprocessing
) -> Change:
    """Append what is new, and write anew the splits that a row leaves, enters or changes in."""
    images = images.drop("recorded_split")
    version = warehouse.published().get("images")
    if version is None:
        return _staged_images(warehouse, images, preprocessing)
    before = warehouse.read(spark, "images", version).select(*images.columns)
    left, added = _differences(before, images)
    touched = sorted(left | _splits_behind(warehouse, version))
    if not touched and added.isEmpty():
        return Change(before)
    if not touched:
        appended = _staged_images(warehouse, added, preprocessing)
        return appended._replace(rows=before.unionByName(appended.rows), mode="append")
    is_touched = F.col("split").isin(touched)
    new_in_others = added.where(~is_touched)
    written = images.where(is_touched).unionByName(new_in_others)
    rewritten = _staged_images(warehouse, written, preprocessing)
    rows = before.where(~is_touched).unionByName(rewritten.rows)
    return rewritten._replace(rows=rows, partitions=touched)


def _differences(before: DataFrame, images: DataFrame) -> tuple[set[str], DataFrame]:
    """The splits that rows left or changed in, old and new ones; and the rows that are new."""
    old = before.select("image_id", F.struct(*before.columns).alias("old"))
    now = images.select("image_id", F.struct(*images.columns).alias("now"))
    both = old.join(now, on="image_id", how="full_outer").persist()
    differs = both.where("old IS NOT NULL").where(~F.col("old").eqNullSafe(F.col("now")))
    pairs = differs.select("old.split", F.col("now.split").alias("new_split")).distinct().collect()
    touched = {split for row in pairs for split in (row.split, row.new_split) if split is not None}
    return touched, both.where("old IS NULL").select("now.*")


def _splits_behind(warehouse: Warehouse, published: int) -> set[str]:
    """The splits in which a killed run left other files than those that are published."""
    if warehouse.version("images") == published:
        return set()
    ours = _files_by_split(warehouse, published)
    newest = _files_by_split(warehouse, None)
    return {split for split in SPLITS if ours[split] != newest[split]}


def _files_by_split(warehouse: Warehouse, version: int | None) -> dict[str, set[str]]:
    files: dict[str, set[str]] = {split: set() for split in SPLITS}
    for file in warehouse.files("images", version):
        files[str(file.partition["split"])].add(file.path)
    return files


def _staged_images(warehouse: Warehouse, images: DataFrame, preprocessing: Preprocessing) -> Change:
    """Stage images with their pixels, in hash order, in files of about 8 MB within each split."""
    spark = images.sparkSession
    rows_per_file = tables.rows_per_file(preprocessing.size)
    files = {
        row.split: -(-row["count"] // rows_per_file)
        for row in images.groupBy("split").count().collect()
    }
    bucket = F.pmod(F.xxhash64("content_sha256"), _by_split(files))
    pixels = tables.pixels_of(spark, warehouse, images, preprocessing.fingerprint())
    wide = pixels.join(F.broadcast(images), on="content_sha256", how="inner")
    placed = (
        wide.withColumn("bucket", bucket)
        .repartition(max(1, sum(files.values())), "split", "bucket")
        .sortWithinPartitions("split", "content_sha256")
        .drop("bucket")
    )
    staged = warehouse.stage("images", placed, max_records_per_file=rows_per_file)
    rows = delta.read_staged(spark, staged).select(*images.columns)
    return Change(rows, staged)


def _by_split(files: Mapping[str, int]) -> Column:
    number = F.lit(1)
    for split, count in files.items():
        number = F.when(F.col("split") == split, count).otherwise(number)
    return number


def _change_rejects(
    spark: SparkSession, warehouse: Warehouse, rejects: DataFrame, run: Run
) -> Change:
    version = warehouse.published().get("rejects")
    if version is not None:
        before = warehouse.read(spark, "rejects", version).drop("run_id")
        if tables.same_rows(rejects, before, key=["image_id"]):
            return Change(before)
    staged = warehouse.stage("rejects", rejects.withColumn("run_id", F.lit(run.run_id)).coalesce(1))
    return Change(delta.read_staged(spark, staged), staged)
