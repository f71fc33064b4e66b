"""The warehouse: names, schemas and layout of its tables, and which versions are published."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import to_arrow_schema

from cxr_spark import commits, delta, staging, storage
from cxr_spark.contracts import Contract, DeltaError
from cxr_spark.delta import DataFile, NoSuchTable, NoSuchVersion
from cxr_spark.file_scan import scan
from cxr_spark.staging import Staged

TABLES = (
    "images_raw",
    "pixels",
    "images",
    "rejects",
    "near_duplicates",
    "predictions",
    "metrics",
    "models",
    "runs",
)
# Delta has no commit over several tables: these are read at the versions that the last finished
# curate run names in its runs row, which it commits last.
PUBLISHED = ("images_raw", "images", "rejects", "near_duplicates")
PUBLISHING = {"job": "curate", "status": "finished"}
RUN_COLUMNS = (
    "run_id",
    "package_version",
    "arguments",
    "counts",
    "versions_written",
    "finished_at",
)
IMAGE_FILE_BYTES = 8 << 20


class NothingPublished(DeltaError):
    """No curate run has finished in this warehouse."""


@cache
def contract(name: str) -> Contract:
    """The contract of a table, read from the packaged schemas."""
    text = resources.files("cxr_spark.schemas").joinpath(f"{name}.json").read_text("utf-8")
    content = json.loads(text)
    fields = T.StructType.fromJson(content).fields
    nullable = [T.StructField(f.name, f.dataType, True, f.metadata) for f in fields]
    return Contract(
        T.StructType(nullable),
        key=tuple(content["key"]),
        required=tuple(field.name for field in fields if not field.nullable),
        partition_by=tuple(content["partition_by"]),
        checks=content.get("checks", {}),
        description=content["description"],
    )


def schema(name: str) -> T.StructType:
    """The columns of a table."""
    return contract(name).schema


def arrow_schema(name: str, columns: Sequence[str]) -> pa.Schema:
    """Some columns of a table as Arrow has them, in the order asked for."""
    return to_arrow_schema(T.StructType([schema(name)[column] for column in columns]))


class CurateRun(NamedTuple):
    """A finished curate run: what it was asked, what it counted, the versions it published."""

    run_id: str
    package_version: str | None
    arguments: dict[str, str]
    counts: dict[str, float]
    versions: dict[str, int]
    finished_at: datetime


class Warehouse:
    """A folder of Delta tables.

    Attributes:
        location: its absolute path or its URI; tables can lie in an object store, while locks,
            Data Docs and the salt are files, for which the jobs need a folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.location = storage.absolute(str(root))
        self.root = Path(self.location)

    def path(self, name: str) -> str:
        """The folder of a table."""
        return f"{self.location}/{name}"

    def exists(self, name: str) -> bool:
        """Whether the table has a first version."""
        return delta.version(self.path(name)) is not None

    def version(self, name: str) -> int | None:
        """The newest version of a table; None where there is no table."""
        return delta.version(self.path(name))

    def seen(self, name: str) -> int:
        """The newest version of a table as `commits.commit` expects it: -1 where there is none."""
        newest = self.version(name)
        return -1 if newest is None else newest

    def files(self, name: str, version: int | None = None) -> list[DataFile]:
        """The Parquet files of one version, with their row counts and partition values."""
        return delta.data_files(self.path(name), version)

    def read(self, spark: SparkSession, name: str, version: int | None = None) -> DataFrame:
        """A table at a version; without one, at the version that `current` gives."""
        at = self.current(name) if version is None else version
        return delta.read(spark, self.path(name), schema(name), at)

    def read_arrow(self, name: str, columns: Sequence[str], version: int | None = None) -> pa.Table:
        """Some columns of a table on the driver, without Spark; by default the newest version."""
        return delta.read_arrow(self.path(name), arrow_schema(name, columns), version)

    def current(self, name: str) -> int:
        """The version that readers see: the published one, or the newest of an unpublished table.

        Raises:
            NothingPublished: curate has not finished yet.
            NoSuchTable: no job has written the table yet.
        """
        if name in PUBLISHED:
            published = self.published()
            if name not in published:
                raise NothingPublished(
                    f"{self.root}: no curate run has finished there; run jobs/curate.py first"
                )
            return published[name]
        newest = self.version(name)
        if newest is None:
            raise NoSuchTable(f"{self.path(name)}: this table has not been written yet")
        return newest

    def version_at(self, name: str, moment: datetime) -> int:
        """The version that readers saw at a moment (with a time zone).

        Raises:
            NothingPublished: no curate run had finished by then.
            NoSuchTable, NoSuchVersion: the table wasn't there.
        """
        if name not in PUBLISHED:
            return delta.version_at(self.path(name), moment)
        runs = [run for run in self.curate_runs() if run.finished_at <= moment]
        if not runs:
            raise NothingPublished(f"{self.root}: no curate run had finished by {moment}")
        return runs[-1].versions[name]

    def published(self) -> dict[str, int]:
        """Versions named by the last finished curate run; empty where there is none."""
        run = self.published_run()
        return run.versions if run else {}

    def published_run(self) -> CurateRun | None:
        """The last finished curate run: what it published is what readers see."""
        if not self.exists("runs"):
            return None
        row = delta.newest_row(self.path("runs"), RUN_COLUMNS, by="finished_at", where=PUBLISHING)
        return _curate_run(row) if row else None

    def published_with(self, images_version: int) -> CurateRun:
        """The first curate run that published this version of images.

        Raises:
            NoSuchVersion: no finished run published it.
        """
        run = self.find_curate_run(images_version)
        if run is None:
            known = sorted({run.versions["images"] for run in self.curate_runs()})
            raise NoSuchVersion(
                f"{self.root}: images version {images_version} was never published; "
                f"published: {known}"
            )
        return run

    def find_curate_run(self, images_version: int) -> CurateRun | None:
        """The first curate run that published this version of images, if one did."""
        runs = self.curate_runs()
        return next((run for run in runs if run.versions.get("images") == images_version), None)

    def curate_runs(self) -> list[CurateRun]:
        """The finished curate runs, the last one last."""
        if not self.exists("runs"):
            return []
        columns = ("job", "status", *RUN_COLUMNS)
        rows = delta.read_rows(self.path("runs"), columns)
        finished = [row for row in rows if row.items() >= PUBLISHING.items()]
        finished.sort(key=lambda row: row["finished_at"])
        return [_curate_run(row) for row in finished]

    def stage(self, name: str, frame: DataFrame, *, max_records_per_file: int = 0) -> Staged:
        """Write a frame's files under a table; `commit` makes them its next version."""
        return staging.stage(
            frame, self.path(name), contract(name), max_records_per_file=max_records_per_file
        )

    def stage_arrow(self, name: str, rows: pa.Table) -> Staged:
        """Write a narrow table's files from the driver, without Spark."""
        return staging.stage_arrow(rows, self.path(name), contract(name))

    def append(self, name: str, frame: DataFrame, run_id: str) -> int:
        """Append a frame in one commit; the new version."""
        return commits.commit(self.stage(name, frame), run_id=run_id)

    def append_rows(
        self, name: str, rows: Sequence[Mapping[str, Any]], sequence: int | None = None
    ) -> int:
        """Append a few rows from the driver in one commit; the new version.

        Args:
            name: of the table.
            rows: values by column, and run_id, which the commit is recorded with, also where the
                table has no such column; a column that is missing is null.
            sequence: as of `commits.commit`.

        Raises:
            SchemaMismatch: as `staging.stage_rows`.
        """
        run_id = str(rows[0]["run_id"])
        if "run_id" not in schema(name).names:
            rows = [{n: value for n, value in row.items() if n != "run_id"} for row in rows]
        staged = staging.stage_rows(rows, self.path(name), contract(name))
        return commits.commit(staged, run_id=run_id, sequence=sequence)

    def end_of(self, job: str, status: str, moment: datetime) -> datetime:
        """When a run has ended by its row in runs, if the clock says that it is this moment.

        What was published is told by the times of these rows. So a run that publishes ends later
        than the one before, even where the clock has been set back.
        """
        last = self.published_run() if {"job": job, "status": status} == PUBLISHING else None
        return max(moment, last.finished_at + timedelta(microseconds=1)) if last else moment


def _curate_run(row: Mapping[str, Any]) -> CurateRun:
    return CurateRun(
        row["run_id"],
        row["package_version"],
        row["arguments"] or {},
        row["counts"] or {},
        row["versions_written"],
        row["finished_at"],
    )


def rows_per_file(image_size: int) -> int:
    """Rows of `images` that make a file of about 8 MB, the unit that readers share out."""
    return max(1, IMAGE_FILE_BYTES // (image_size * image_size))


def decoded_pixels(spark: SparkSession, warehouse: Warehouse, preprocessing: str) -> DataFrame:
    """The rows of pixels with this preprocessing; select columns, as the pixels are large."""
    if not warehouse.exists("pixels"):
        return spark.createDataFrame([], schema("pixels"))
    return warehouse.read(spark, "pixels").where(F.col("preprocessing") == preprocessing)


def pixels_of(
    spark: SparkSession, warehouse: Warehouse, contents: DataFrame, preprocessing: str
) -> DataFrame:
    """The pixels of some contents, from no other files than those that hold one of them.

    Args:
        contents: content_sha256.

    Returns:
        content_sha256 and pixels, of this preprocessing.
    """
    decoded = decoded_pixels(spark, warehouse, preprocessing)
    wanted = contents.select("content_sha256").distinct()
    holding = decoded.select("content_sha256", F.col("_metadata.file_name").alias("file"))
    rows = holding.join(wanted, on="content_sha256", how="left_semi").select("file").distinct()
    names = {row.file for row in rows.toLocalIterator()}
    files = [file for file in warehouse.files("pixels") if Path(file.path).name in names]
    read = scan(spark, files, schema("pixels"))
    return read.where(F.col("preprocessing") == preprocessing).select("content_sha256", "pixels")


def same_rows(
    left: DataFrame, right: DataFrame, *, key: Sequence[str], ignoring: Sequence[str] = ()
) -> bool:
    """Whether two frames with the same columns hold the same rows, each found by its key."""
    compared = [name for name in left.columns if name not in ignoring]
    ours, theirs = (
        frame.select(*key, F.struct(*compared).alias(side))
        for frame, side in ((left, "ours"), (right, "theirs"))
    )
    both = ours.join(theirs, on=list(key), how="full_outer")
    return both.where(~F.col("ours").eqNullSafe(F.col("theirs"))).isEmpty()
