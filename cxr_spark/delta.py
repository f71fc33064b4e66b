"""Delta snapshots for Spark: read the files of one version, write with one commit through delta-rs.

Spark's own Parquet writer puts files into a fresh folder under the table; they exist for nobody
until `commit` names them in the Delta log in one atomic step. Reading asks delta-rs for the files
of one version and hands just those to Spark. No JVM connector is needed, and blobs never pass
through the driver.
"""

import json
import re
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.exceptions import DeltaError as DeltaRsError
from deltalake.transaction import AddAction, create_table_with_add_actions
from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import to_arrow_schema

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
STATS_MAX_CHARACTERS = 32
# Statistics are for skipping files; these physical forms have an order that all engines agree on.
STATS_TYPES = (T.StringType, T.IntegerType, T.LongType, T.TimestampType)
READABLE_FEATURES = frozenset({"timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"})


class DeltaError(ValueError):
    """A table or a write that is not what it must be; the message says which and why."""


class NoSuchTable(DeltaError):
    """The folder holds no Delta table."""


class NoSuchVersion(DeltaError):
    """The table has no such version, or its log no longer reaches it."""


class SchemaMismatch(DeltaError):
    """A frame's columns differ from the table's contract."""


class DataFile(NamedTuple):
    """A Parquet file of a snapshot: absolute path, rows, partition values as strings."""

    path: str
    num_rows: int
    partition: dict[str, str | None]


class Staged(NamedTuple):
    """Files written under a table that no version names yet."""

    table: str
    schema: T.StructType
    partition_by: tuple[str, ...]
    adds: list[AddAction]
    files: list[DataFile]

    @property
    def num_rows(self) -> int:
        """Rows in all files."""
        return sum(file.num_rows for file in self.files)


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
    return _read_files(spark, data_files(table, at_version), schema)


def read_staged(spark: SparkSession, staged: Staged) -> DataFrame:
    """The staged files as a frame, before anybody else can see them."""
    return _read_files(spark, staged.files, staged.schema)


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


def _read_files(spark: SparkSession, files: Iterable[DataFile], schema: T.StructType) -> DataFrame:
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
    frame = spark.read.schema(stored).parquet(*[_not_a_glob(path) for path in paths])
    return frame.select("*", *literals)


def _not_a_glob(path: str) -> str:
    return re.sub(r"([{}\[\]*?\\])", r"\\\1", path)


def _quoted(names: Iterable[str]) -> list[str]:
    return [f"`{name}`" for name in names]


def stage(
    frame: DataFrame,
    table: str,
    schema: T.StructType,
    *,
    partition_by: Sequence[str] = (),
    key: Sequence[str] = (),
    max_records_per_file: int = 0,
) -> Staged:
    """Write the frame with Spark's Parquet writer into a fresh folder under the table.

    Args:
        frame: columns of `schema`, in any order.
        table: the table's folder; made if it is missing.
        schema: the contract; a frame that differs is refused before anything is written.
        partition_by: columns that become folders.
        key: columns that must not be null, checked while writing.
        max_records_per_file: rows a file at most; 0 is no bound.

    Raises:
        SchemaMismatch: columns are missing, unknown or of another type.
        DeltaError: a key column is null, or the files seen here don't hold the rows that Spark
            wrote (driver and executors don't share the storage).
    """
    _check_root(table)
    seen = Observation()
    folder = Path(table).absolute() / f"j-{uuid.uuid4().hex}"
    null_keys = [F.count_if(F.col(name).isNull()).alias(f"null_{name}") for name in key]
    rows = conform(frame, schema).observe(seen, F.count(F.lit(1)).alias("rows"), *null_keys)
    writer = rows.write.option("maxRecordsPerFile", max_records_per_file)
    writer.partitionBy(*partition_by).parquet(str(folder))
    staged = _staged(table, schema, tuple(partition_by), sorted(folder.rglob("*.parquet")))
    _check_written(staged, seen.get)
    return staged


def stage_rows(
    rows: Sequence[Mapping[str, Any]],
    table: str,
    schema: T.StructType,
    *,
    partition_by: Sequence[str] = (),
) -> Staged:
    """Write a few rows from the driver, without Spark, into a fresh folder under the table."""
    _check_root(table)
    folder = Path(table).absolute() / f"j-{uuid.uuid4().hex}"
    by_partition: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        by_partition.setdefault(tuple(row[name] for name in partition_by), []).append(row)
    stored = T.StructType([field for field in schema if field.name not in partition_by])
    files = []
    for values, members in by_partition.items():
        place = folder.joinpath(
            *(f"{n}={quote(v, safe='')}" for n, v in zip(partition_by, values, strict=True))
        )
        place.mkdir(parents=True)
        table_rows = [{name: row.get(name) for name in stored.names} for row in members]
        arrow = pa.Table.from_pylist(table_rows, schema=to_arrow_schema(stored))
        files.append(place / "part-0.parquet")
        pq.write_table(arrow, files[-1], coerce_timestamps="us", compression="zstd")
    return _staged(table, schema, tuple(partition_by), files)


def conform(frame: DataFrame, schema: T.StructType) -> DataFrame:
    """Select the contract's columns in its order, or name every column that differs."""
    given = {field.name: field.dataType for field in frame.schema}
    wanted = {field.name: field.dataType for field in schema}
    problems = [f"{name} is missing" for name in wanted if name not in given]
    problems += [f"{name} is unknown" for name in given if name not in wanted]
    problems += [
        f"{name} is {given[name].simpleString()}, not {kind.simpleString()}"
        for name, kind in wanted.items()
        if name in given and given[name].simpleString() != kind.simpleString()
    ]
    if problems:
        raise SchemaMismatch(f"the frame doesn't match its table: {'; '.join(problems)}")
    return frame.select(*_quoted(schema.names))


def commit(staged: Staged, *, run_id: str, mode: str = "append") -> int:
    """Make the staged files the table's next version (`append` or `overwrite`); the version.

    The commit itself checks almost nothing, so the table's schema is compared here once more.
    """
    properties = CommitProperties(custom_metadata={"run_id": run_id}, max_commit_retries=20)
    delta_schema = Schema.from_json(_nullable(staged.schema).json())
    if not DeltaTable.is_deltatable(staged.table):
        create_table_with_add_actions(
            staged.table,
            delta_schema,
            staged.adds,
            mode="error",
            partition_by=list(staged.partition_by),
            commit_properties=properties,
        )
        return 0
    target = _open(staged.table, None)
    _check_table_schema(target, staged)
    target.create_write_transaction(
        staged.adds,
        mode,
        delta_schema,
        partition_by=list(staged.partition_by),
        commit_properties=properties,
    )
    return DeltaTable(staged.table).version()


def _check_root(table: str) -> None:
    if "%" in str(Path(table).absolute()):
        raise DeltaError(
            f"{table}: a folder with % in its path can't hold a Delta table; rename it"
        )


def _check_written(staged: Staged, seen: Mapping[str, Any]) -> None:
    nulls = {n.removeprefix("null_"): c for n, c in seen.items() if n.startswith("null_") and c}
    if nulls:
        raise DeltaError(f"{staged.table}: null in the key columns {nulls}")
    if staged.num_rows != seen["rows"]:
        raise DeltaError(
            f"{staged.table}: Spark wrote {seen['rows']} rows and {staged.num_rows} are found here; "
            "driver and executors must share the warehouse's storage"
        )


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


def _nullable(schema: T.StructType) -> T.StructType:
    # A NOT NULL column in the log lets a Spark write commit a table that can't be opened again.
    return T.StructType([T.StructField(f.name, f.dataType, True, f.metadata) for f in schema])


def _staged(
    table: str, schema: T.StructType, partition_by: tuple[str, ...], paths: Sequence[Path]
) -> Staged:
    root = Path(table).absolute()
    root.mkdir(parents=True, exist_ok=True)
    adds, files = [], []
    for path in paths:
        footer = pq.read_metadata(path)
        partition = _partition_values(path, partition_by)
        files.append(DataFile(str(path), footer.num_rows, partition))
        adds.append(
            AddAction(
                path=str(path.relative_to(root)),
                size=path.stat().st_size,
                partition_values=partition,
                modification_time=int(time.time() * 1000),
                data_change=True,
                stats=json.dumps(_statistics(footer, schema)),
            )
        )
    return Staged(str(root), schema, partition_by, adds, files)


def _partition_values(path: Path, partition_by: tuple[str, ...]) -> dict[str, str | None]:
    folders = path.parent.parts[len(path.parent.parts) - len(partition_by) :]
    values = (unquote(folder.split("=", 1)[1]) for folder in folders)
    return {
        name: None if value == HIVE_NULL else value
        for name, value in zip(partition_by, values, strict=True)
    }


def _statistics(footer: pq.FileMetaData, schema: T.StructType) -> dict[str, Any]:
    """Delta's per-file statistics from a Parquet footer: rows, minima, maxima, counts of nulls."""
    flat = {f.name for f in schema if isinstance(f.dataType, STATS_TYPES)}
    minima: dict[str, Any] = {}
    maxima: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for i in range(footer.num_columns):
        name = footer.schema.column(i).path
        chunks = [footer.row_group(g).column(i).statistics for g in range(footer.num_row_groups)]
        if name not in flat or any(chunk is None for chunk in chunks):
            continue
        nulls[name] = sum(chunk.null_count for chunk in chunks)
        bounded = [chunk for chunk in chunks if chunk.has_min_max]
        if not bounded or nulls[name] == footer.num_rows:
            continue
        low, high = min(c.min for c in bounded), max(c.max for c in bounded)
        if (upper := _at_least(high)) is not None:
            minima[name], maxima[name] = _at_most(low), upper
    return {
        "numRecords": footer.num_rows,
        "minValues": minima,
        "maxValues": maxima,
        "nullCount": nulls,
    }


def _at_most(value: Any) -> Any:
    if isinstance(value, str):
        return value[:STATS_MAX_CHARACTERS]
    return _milliseconds(value, 0) if isinstance(value, datetime) else value


def _at_least(value: Any) -> Any:
    """A bound not below the value in Delta's JSON form, or None where there is none."""
    if isinstance(value, str):
        if len(value) <= STATS_MAX_CHARACTERS:
            return value
        # A cut maximum needs a greater last character to stay a bound.
        head = value[:STATS_MAX_CHARACTERS]
        return head[:-1] + chr(ord(head[-1]) + 1) if ord(head[-1]) < 0xD7FF else None
    return _milliseconds(value, 999) if isinstance(value, datetime) else value


def _milliseconds(moment: datetime, round_up_us: int) -> str:
    micros = (moment.microsecond + round_up_us) // 1000 * 1000
    base = moment.astimezone(UTC).replace(microsecond=0).timestamp() + micros / 1e6
    return datetime.fromtimestamp(base, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
