"""Delta snapshots for Spark: read the files of one version, write with one commit through delta-rs.

Spark's own Parquet writer puts files into a fresh folder under the table; they exist for nobody
until `commit` names them in the Delta log in one atomic step. Reading asks delta-rs for the files
of one version and hands just those to Spark. No JVM connector is needed, and blobs never pass
through the driver.
"""

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.exceptions import DeltaError as DeltaRsError
from deltalake.transaction import AddAction, create_table_with_add_actions
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cxr_spark.staging import DeltaError, SchemaMismatch, Staged, StagedFile

READABLE_FEATURES = frozenset({"timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"})


class NoSuchTable(DeltaError):
    """The folder holds no Delta table."""


class NoSuchVersion(DeltaError):
    """The table has no such version, or its log no longer reaches it."""


class DataFile(NamedTuple):
    """A Parquet file of a snapshot: absolute path, rows, partition values as strings."""

    path: str
    num_rows: int
    partition: dict[str, str | None]


def version(table: str) -> int | None:
    """The newest version of the table, or None where there is no table."""
    return DeltaTable(table).version() if DeltaTable.is_deltatable(table) else None


def data_files(table: str, at_version: int | None = None) -> list[DataFile]:
    """The files of one version (default: the newest), in the order of their paths.

    Raises:
        NoSuchTable, NoSuchVersion: nothing to read there.
        DeltaError: the table needs a reader feature (deletion vectors, column mapping, ...) that
            reading by file lists would get wrong in silence.
    """
    snapshot = _open(table, at_version)
    actions = pa.table(snapshot.get_add_actions(flatten=False)).to_pylist()
    root = Path(table).absolute()
    return sorted(
        DataFile(
            str(root / unquote(action["path"])),
            action["num_records"],
            {name: _as_text(value) for name, value in (action.get("partition") or {}).items()},
        )
        for action in actions
    )


def _open(table: str, at_version: int | None) -> DeltaTable:
    if not DeltaTable.is_deltatable(table):
        raise NoSuchTable(f"{table}: no Delta table there")
    try:
        snapshot = DeltaTable(table, version=at_version)
    except DeltaRsError as error:
        if at_version is None:
            raise
        newest = version(table)
        raise NoSuchVersion(
            f"{table}: has no version {at_version}; its newest is {newest}"
        ) from error
    protocol = snapshot.protocol()
    unreadable = set(protocol.reader_features or ()) - READABLE_FEATURES
    if unreadable or (protocol.min_reader_version == 2):
        named = ", ".join(sorted(unreadable)) or "column mapping"
        raise DeltaError(
            f"{table}: needs the Delta reader features {named}, which are not read here"
        )
    return snapshot


def _as_text(value: object) -> str | None:
    return None if value is None else str(value)


def read(
    spark: SparkSession, table: str, schema: T.StructType, at_version: int | None = None
) -> DataFrame:
    """One version of a table as a frame with the columns of `schema`."""
    return read_files(spark, data_files(table, at_version), schema)


def table_schema(table: str, at_version: int | None = None) -> T.StructType:
    """The columns of one version of a Delta table, ours or not.

    Raises:
        NoSuchTable, NoSuchVersion, DeltaError: as `data_files`.
    """
    return _spark_schema(_open(table, at_version))


def read_staged(spark: SparkSession, staged: Staged) -> DataFrame:
    """The staged files as a frame, before anybody else can see them."""
    return read_files(spark, staged.files, staged.schema)


def read_arrow(table: str, schema: pa.Schema, at_version: int | None = None) -> pa.Table:
    """Some columns of a table on the driver, without Spark; partition columns are not given."""
    parts = [read_part(file.path, schema) for file in data_files(table, at_version)]
    return pa.concat_tables([schema.empty_table(), *parts])


def read_part(path: str, schema: pa.Schema) -> pa.Table:
    """Some columns of one Parquet file."""
    return pq.ParquetFile(path).read(columns=schema.names).select(schema.names).cast(schema)


def read_rows(
    table: str, columns: Sequence[str], at_version: int | None = None
) -> list[dict[str, Any]]:
    """Rows of a small table on the driver, without Spark; partition columns are not given."""
    rows: list[dict[str, Any]] = []
    for file in data_files(table, at_version):
        content = pq.ParquetFile(file.path).read(columns=list(columns))
        maps = [field.name for field in content.schema if pa.types.is_map(field.type)]
        for row in content.to_pylist():
            # pyarrow gives a map as a list of pairs.
            rows.append(row | {name: dict(row[name]) for name in maps if row[name] is not None})
    return rows


def read_files(
    spark: SparkSession, files: Iterable[DataFile | StagedFile], schema: T.StructType
) -> DataFrame:
    """Some of a table's files as a frame with the columns of `schema`."""
    partitions: dict[tuple[tuple[str, str | None], ...], list[str]] = {}
    for file in files:
        partitions.setdefault(tuple(sorted(file.partition.items())), []).append(file.path)
    if not partitions:
        return spark.createDataFrame([], schema)
    frames = [
        _read_partition(spark, paths, dict(values), schema) for values, paths in partitions.items()
    ]
    return reduce(DataFrame.unionByName, frames).select(*_quoted(schema.names))


def _read_partition(
    spark: SparkSession, paths: list[str], values: Mapping[str, str | None], schema: T.StructType
) -> DataFrame:
    stored = T.StructType([field for field in schema if field.name not in values])
    literals = [F.lit(v).cast(schema[name].dataType).alias(name) for name, v in values.items()]
    frame = spark.read.schema(stored).parquet(*[not_a_glob(path) for path in paths])
    return frame.select("*", *literals)


def not_a_glob(path: str) -> str:
    """A path as Spark takes it: what it would read as a pattern is escaped."""
    return re.sub(r"([{}\[\]*?\\])", r"\\\1", path)


def _quoted(names: Iterable[str]) -> list[str]:
    return [f"`{name}`" for name in names]


def commit(
    staged: Staged,
    *,
    run_id: str,
    mode: str = "append",
    partitions: Sequence[str] | None = None,
) -> int:
    """Make the staged files the table's next version (`append` or `overwrite`); the version.

    The commit itself checks almost nothing, so the table's schema is compared here once more.

    Args:
        staged: the files; none is fine where an overwrite empties what it replaces.
        run_id: recorded with the version.
        mode: `append`, or `overwrite` of the whole table or of some partitions.
        partitions: values of the table's only partition column whose rows an overwrite replaces;
            staged files may lie in others too. None: all rows.
    """
    properties = CommitProperties(custom_metadata={"run_id": run_id}, max_commit_retries=20)
    adds = _add_actions(staged)
    delta_schema = Schema.from_json(staged.schema.json())
    if not DeltaTable.is_deltatable(staged.table):
        create_table_with_add_actions(
            staged.table,
            delta_schema,
            adds,
            mode="error",
            partition_by=list(staged.partition_by),
            commit_properties=properties,
        )
        return 0
    target = _open(staged.table, None)
    _check_table_schema(target, staged)
    # By partition columns alone: by any other, whole files would go with rows that must stay.
    filters = None
    if partitions is not None:
        (column,) = staged.partition_by
        filters = [(column, "in", list(partitions))]
    target.create_write_transaction(
        [*adds],
        mode,
        delta_schema,
        partition_by=list(staged.partition_by),
        commit_properties=properties,
        partition_filters=filters,
    )
    return DeltaTable(staged.table).version()


def _add_actions(staged: Staged) -> list[AddAction]:
    now = int(time.time() * 1000)
    return [
        AddAction(
            # delta-rs encodes the path for the log.
            path=str(Path(file.path).relative_to(staged.table)),
            size=file.size_bytes,
            partition_values=file.partition,
            modification_time=now,
            data_change=True,
            stats=json.dumps(file.statistics),
        )
        for file in staged.files
    ]


def _check_table_schema(target: DeltaTable, staged: Staged) -> None:
    there = {f.name: f.dataType.simpleString() for f in _spark_schema(target)}
    ours = {f.name: f.dataType.simpleString() for f in staged.schema}
    differing = sorted(name for name in there | ours if there.get(name) != ours.get(name))
    if differing:
        raise SchemaMismatch(
            f"{staged.table}: the table and this version of cxr_spark differ in "
            + ", ".join(f"{n} ({there.get(n)} there, {ours.get(n)} here)" for n in differing)
        )


def _spark_schema(target: DeltaTable) -> T.StructType:
    return T.StructType.fromJson(json.loads(target.schema().to_json()))
