"""Files to images_raw and pixels: executors read and decode each new file once, in pieces."""

from collections.abc import Iterator, Mapping
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import to_arrow_schema

from cxr_spark import delta, staging, tables
from cxr_spark.images import Facts, Preprocessing, facts_of_file
from cxr_spark.sources import ListedFile, list_source
from cxr_spark.tables import Warehouse

# Files decoded between two commits: what a kill costs at most.
PIECE_FILES = 2_000
FILES_PER_TASK = 16
OUTPUT_BATCH_BYTES = 16 << 20
# An image_id with this size and time is the same file as when it was read.
SAME_FILE = ("image_id", "size_bytes", "modified_at")
# Refused by their size, so their content has no hash; other unread files are tried each time.
UNREAD_UNTIL_CHANGED = ("empty_file", "too_large")
FACTS = ("format", "width", "height", "mode", "bits", "pixel_sha256", "perceptual_hash")


class Progress(Protocol):
    """The part of a job's run that stages use."""

    run_id: str
    counts: dict[str, int | float]
    versions_read: dict[str, int]
    versions_written: dict[str, int]

    def say(self, text: str) -> None: ...
    def progress(self, done: int, total: int, unit: str) -> None: ...


class Ingested(NamedTuple):
    """Every file of every source with its facts; `staged` waits for its commit if it changed."""

    images_raw: DataFrame
    staged: staging.Staged | None


def list_sources(folders: Mapping[str, str | Path]) -> list[ListedFile]:
    """List the files of the named sources on the driver, without reading images.

    Raises:
        SourceError: a folder is missing or hasn't the source's layout.
    """
    return [file for name, folder in folders.items() for file in list_source(name, Path(folder))]


def ingest(
    spark: SparkSession,
    warehouse: Warehouse,
    listed: list[ListedFile],
    preprocessing: Preprocessing,
    run: Progress,
) -> Ingested:
    """Bring images_raw and pixels up to date with what is listed.

    A file that is known by image_id, size and modification time, and whose content was decoded
    with the same preprocessing, is not opened. Sources that are not listed keep their rows.
    pixels is committed piece by piece; images_raw is staged for the caller to commit, unless
    nothing changed.
    """
    published = _published_images_raw(spark, warehouse)
    files = _with_unlisted_sources(_as_frame(spark, listed), published)
    known = _known_contents(spark, warehouse, published, preprocessing).persist()
    pending = _pending(files, known)
    run.counts["decoded"] = pending.num_rows
    run.say(f"{len(listed):,} files listed, {pending.num_rows:,} to read and decode")
    pieces = _decode_in_pieces(spark, warehouse, pending, preprocessing, run)
    contents = reduce(DataFrame.unionByName, pieces, known)
    decoded = tables.decoded_pixels(spark, warehouse, preprocessing.fingerprint())
    images_raw = _with_facts(files, contents, decoded).withColumn("run_id", F.lit(run.run_id))
    if tables.same_rows(images_raw, published, key="image_id", ignoring=("run_id",)):
        return Ingested(published, None)
    staged = warehouse.stage("images_raw", images_raw.coalesce(1))
    return Ingested(delta.read_staged(spark, staged), staged)


def _as_frame(spark: SparkSession, listed: list[ListedFile]) -> DataFrame:
    schema = tables.schema("images_raw")
    named = T.StructType([schema[name] for name in ListedFile._fields])
    rows = [
        file._asdict() | {"boxes": [box._asdict() for box in file.boxes] or None} for file in listed
    ]
    return spark.createDataFrame(pa.Table.from_pylist(rows, to_arrow_schema(named)), named)


def _with_unlisted_sources(files: DataFrame, published: DataFrame) -> DataFrame:
    """The files listed now, and those of sources that this run doesn't name, as last listed."""
    unlisted = published.join(files.select("source").distinct(), on="source", how="left_anti")
    never_read = F.col("content_sha256").isNull()
    # A reason that came from decoding is found again with the content.
    reasons = [F.when(never_read, F.col(name)).alias(name) for name in ("reason", "detail")]
    others = [name for name in files.columns if name not in ("reason", "detail")]
    return files.unionByName(unlisted.select(*others, *reasons))


def _published_images_raw(spark: SparkSession, warehouse: Warehouse) -> DataFrame:
    if "images_raw" in warehouse.published():
        return warehouse.read(spark, "images_raw")
    return spark.createDataFrame([], tables.schema("images_raw"))


def _known_contents(
    spark: SparkSession, warehouse: Warehouse, published: DataFrame, preprocessing: Preprocessing
) -> DataFrame:
    """Files whose content needs no decoding: those of images_raw, and what a killed run left."""
    decoded = tables.decoded_pixels(spark, warehouse, preprocessing.fingerprint())
    content = decoded.select("content_sha256")
    read = published.join(content, on="content_sha256", how="left_semi")
    nothing = F.lit(None).cast("string")
    files = [
        frame.select(*SAME_FILE, "content_sha256", nothing.alias("reason"), nothing.alias("detail"))
        for frame in (decoded, read)
    ]
    unread = published.where(F.col("reason").isin(*UNREAD_UNTIL_CHANGED))
    files.append(unread.select(*files[0].columns))
    return reduce(DataFrame.unionByName, files).dropDuplicates(list(SAME_FILE))


def _pending(files: DataFrame, known: DataFrame) -> pa.Table:
    """The files to read, on the driver: image_id, path, size_bytes, modified_at."""
    readable = files.where("reason IS NULL")
    unknown = readable.join(known, on=list(SAME_FILE), how="left_anti")
    return unknown.select("path", *SAME_FILE).orderBy("image_id").toArrow()


def _decode_in_pieces(
    spark: SparkSession,
    warehouse: Warehouse,
    pending: pa.Table,
    preprocessing: Preprocessing,
    run: Progress,
) -> Iterator[DataFrame]:
    """Decode and commit piece by piece; yields each piece's files with the content they hold."""
    for start in range(0, pending.num_rows, PIECE_FILES):
        piece = pending.slice(start, PIECE_FILES)
        frame = spark.createDataFrame(piece).repartition(-(-piece.num_rows // FILES_PER_TASK))
        decode = partial(_decode_batches, preprocessing=preprocessing)
        decoded = frame.mapInArrow(decode, _decoded_schema())
        yield _commit_piece(spark, warehouse, decoded, preprocessing, run)
        run.progress(start + piece.num_rows, pending.num_rows, "files")


def _decoded_schema() -> T.StructType:
    pixels = tables.schema("pixels")
    return T.StructType([pixels[name] for name in (*SAME_FILE, *Facts._fields)])


def _decode_batches(
    batches: Iterator[pa.RecordBatch], preprocessing: Preprocessing
) -> Iterator[pa.RecordBatch]:
    schema = to_arrow_schema(_decoded_schema())
    rows_at_once = max(1, OUTPUT_BATCH_BYTES // preprocessing.size**2)
    for batch in batches:
        for start in range(0, batch.num_rows, rows_at_once):
            rows = batch.slice(start, rows_at_once).to_pylist()
            yield pa.RecordBatch.from_pylist([_decoded(row, preprocessing) for row in rows], schema)


def _decoded(row: dict[str, Any], preprocessing: Preprocessing) -> dict[str, Any]:
    return row | facts_of_file(row["path"], preprocessing)._asdict()


def _commit_piece(
    spark: SparkSession,
    warehouse: Warehouse,
    decoded: DataFrame,
    preprocessing: Preprocessing,
    run: Progress,
) -> DataFrame:
    """Append to pixels what it hasn't got; all rows are written before any is looked at."""
    rows = decoded.select(
        "*",
        F.lit(preprocessing.fingerprint()).alias("preprocessing"),
        F.lit(preprocessing.size).alias("image_size"),
        F.lit(run.run_id).alias("run_id"),
    )
    path, contract = warehouse.path("pixels"), tables.contract("pixels")
    # Files never read have no content, and so no row in pixels; here they are still among the rows.
    staged = staging.stage(rows, path, contract.schema)
    written = delta.read_staged(spark, staged)
    contents = written.select(*SAME_FILE, "content_sha256", "reason", "detail").persist()
    there = tables.decoded_pixels(spark, warehouse, preprocessing.fingerprint()).select(
        "content_sha256"
    )
    new = contents.where("content_sha256 IS NOT NULL").dropDuplicates(["content_sha256"])
    new = new.join(there, on="content_sha256", how="left_anti").select("image_id").persist()
    new_rows = new.count()
    if new_rows == 0:
        return contents
    if new_rows < staged.num_rows:
        fresh = written.join(F.broadcast(new), on="image_id", how="left_semi")
        staged = staging.stage(fresh, path, contract.schema, required=contract.required)
    run.versions_written["pixels"] = delta.commit(staged, run_id=run.run_id)
    return contents


def _with_facts(files: DataFrame, contents: DataFrame, decoded: DataFrame) -> DataFrame:
    """The listed files with the facts of their content; a reason of the listing comes first."""
    read = contents.withColumnsRenamed({"reason": "read_reason", "detail": "read_detail"})
    facts = decoded.select("content_sha256", *FACTS, "reason", "detail").withColumnsRenamed(
        {"reason": "decode_reason", "detail": "decode_detail"}
    )
    rows = files.join(read, on=list(SAME_FILE), how="left").join(
        facts, on="content_sha256", how="left"
    )
    columns = [name for name in tables.schema("images_raw").names if name != "run_id"]
    return rows.withColumns(
        {
            "reason": F.coalesce("reason", "read_reason", "decode_reason"),
            "detail": F.coalesce("detail", "read_detail", "decode_detail"),
        }
    ).select(*columns)
