"""Parquet files under a table that no version names yet: written, checked, described.

Spark's own Parquet writer puts files into a fresh folder under the table, and their footers give
the statistics that Delta's log wants. `delta.commit` then names the files in one atomic step.
"""

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, Observation
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import to_arrow_schema

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
STATS_MAX_CHARACTERS = 32
# These physical forms have an order that all engines agree on.
STATS_TYPES = (T.StringType, T.IntegerType, T.LongType, T.TimestampType)


class DeltaError(ValueError):
    """A table or a write that is not what it must be; the message says which and why."""


class SchemaMismatch(DeltaError):
    """A frame's columns differ from the table's contract: no fault of the user's input."""

    status = "failed"


class StagedFile(NamedTuple):
    """A Parquet file that waits for its commit; statistics are Delta's, for skipping files."""

    path: str
    num_rows: int
    partition: dict[str, str | None]
    size_bytes: int
    statistics: dict[str, Any]


class Staged(NamedTuple):
    """Files written under a table that no version names yet."""

    table: str
    schema: T.StructType
    partition_by: tuple[str, ...]
    files: list[StagedFile]

    @property
    def num_rows(self) -> int:
        """Rows in all files."""
        return sum(file.num_rows for file in self.files)


def stage(
    frame: DataFrame,
    table: str,
    schema: T.StructType,
    *,
    partition_by: Sequence[str] = (),
    required: Sequence[str] = (),
    max_records_per_file: int = 0,
) -> Staged:
    """Write the frame with Spark's Parquet writer into a fresh folder under the table.

    Args:
        frame: columns of `schema`, in any order.
        table: the table's folder; made if it is missing.
        schema: the contract; a frame that differs is refused before anything is written.
        partition_by: columns that become folders.
        required: columns that must not be null, checked while writing.
        max_records_per_file: rows a file at most; 0 is no bound.

    Raises:
        SchemaMismatch: columns are missing, unknown or of another type, or a required one is null.
        DeltaError: the files seen here don't hold the rows that Spark wrote (driver and executors
            don't share the storage).
    """
    seen = Observation()
    folder = _fresh_folder(table)
    null_counts = [F.count_if(F.col(name).isNull()).alias(f"null_{name}") for name in required]
    rows = conform(frame, schema).observe(seen, F.count(F.lit(1)).alias("rows"), *null_counts)
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
    folder = _fresh_folder(table)
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


def stage_arrow(rows: pa.Table, table: str, schema: T.StructType) -> Staged:
    """Write a narrow Arrow table, as one file and without Spark, into a fresh folder.

    Args:
        rows: the columns of `schema` in its order.
        table: the table's folder; it isn't partitioned.
        schema: the contract.

    Raises:
        SchemaMismatch: the columns differ.
    """
    if rows.schema.names != schema.names:
        raise SchemaMismatch(f"{table}: columns {rows.schema.names}, not {schema.names}")
    return stage_parts([write_part(rows.cast(to_arrow_schema(schema)), new_folder(table))], schema)


def new_folder(table: str) -> str:
    """Make a fresh folder under a table, for parts that executors write."""
    folder = _fresh_folder(table)
    folder.mkdir(parents=True)
    return str(folder)


def write_part(rows: pa.Table, folder: str) -> str:
    """Write a Parquet file of one's own into a folder that `new_folder` made; its path.

    Binary columns get neither dictionary nor statistics, which would hold whole images, and stay
    as they are: of a radiograph's pixels compression takes a tenth, and a fortieth of all the time.
    """
    path = f"{folder}/part-{uuid.uuid4().hex}.parquet"
    plain = [field.name for field in rows.schema if not pa.types.is_binary(field.type)]
    codecs = {name: "zstd" if name in plain else "none" for name in rows.schema.names}
    pq.write_table(
        rows,
        path,
        coerce_timestamps="us",
        compression=codecs,
        use_dictionary=plain,
        write_statistics=plain,
    )
    return path


def stage_parts(paths: Sequence[str], schema: T.StructType) -> Staged:
    """Describe parts that `write_part` wrote, for a commit.

    Raises:
        DeltaError: a part isn't there (driver and executors don't share the storage).
    """
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise DeltaError(
            f"{missing[0]}: written by an executor, and not found here: driver and executors must "
            "share the warehouse's storage"
        )
    table = str(Path(paths[0]).parent.parent)
    return _staged(table, schema, (), [Path(path) for path in sorted(paths)])


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
    return frame.select(*[f"`{name}`" for name in schema.names])


def _fresh_folder(table: str) -> Path:
    """A folder under a table that isn't there yet; never named like what vacuum passes over."""
    root = Path(table).absolute()
    if "%" in str(root):
        raise DeltaError(
            f"{table}: a folder with % in its path can't hold a Delta table; rename it"
        )
    return root / f"j-{uuid.uuid4().hex}"


def _check_written(staged: Staged, seen: Mapping[str, Any]) -> None:
    nulls = {n.removeprefix("null_"): c for n, c in seen.items() if n.startswith("null_") and c}
    if nulls:
        raise SchemaMismatch(f"{staged.table}: null in the required columns {nulls}")
    if staged.num_rows != seen["rows"]:
        raise DeltaError(
            f"{staged.table}: Spark wrote {seen['rows']} rows, {staged.num_rows} are found here: "
            "driver and executors must share the warehouse's storage"
        )


def _staged(
    table: str, schema: T.StructType, partition_by: tuple[str, ...], paths: Sequence[Path]
) -> Staged:
    root = Path(table).absolute()
    root.mkdir(parents=True, exist_ok=True)
    files = []
    for path in paths:
        footer = pq.read_metadata(path)
        partition = _partition_values(path, partition_by)
        size_bytes, statistics = path.stat().st_size, _statistics(footer, schema)
        files.append(StagedFile(str(path), footer.num_rows, partition, size_bytes, statistics))
    return Staged(str(root), schema, partition_by, files)


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
