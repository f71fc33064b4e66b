"""Delta snapshots for Spark and Arrow: the files of one version, asked of delta-rs.

Spark reads just those files with its own Parquet reader. No JVM connector is needed, and blobs
never pass through the driver. What writes is in `staging` and `commits`.
"""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError as DeltaRsError
from deltalake.exceptions import TableNotFoundError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from cxr_spark import storage
from cxr_spark.contracts import DeltaError
from cxr_spark.file_scan import DataFile, scan
from cxr_spark.staging import Staged

READABLE_FEATURES = frozenset({"timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"})


class NoSuchTable(DeltaError):
    """The folder holds no Delta table."""


class NoSuchVersion(DeltaError):
    """The table has no such version, or its log no longer reaches it."""


class UnreadableTable(DeltaError):
    """The table's log is damaged, or of a later protocol than what is read here."""


def version(table: str) -> int | None:
    """The newest version of the table, or None where there is no table.

    Raises:
        UnreadableTable: its log can't be read.
    """
    try:
        return _opened(table).version()
    except NoSuchTable:
        return None


def history(table: str) -> list[dict[str, Any]]:
    """What each commit says of itself, the newest first.

    delta-rs numbers what it reads from the version that it has open, so nobody may commit between.
    """
    while True:
        snapshot = _opened(table)
        entries = snapshot.history()
        if _opened(table).version() == snapshot.version():
            return entries


def version_at(table: str, moment: datetime) -> int:
    """The version that was the newest at a moment (with a time zone).

    Raises:
        NoSuchTable: there is none.
        NoSuchVersion: the table wasn't there yet.
    """
    open_table(table)
    written = {entry["version"]: entry["timestamp"] for entry in history(table)}
    milliseconds = moment.timestamp() * 1000
    past = [number for number, at in written.items() if at <= milliseconds]
    if not past:
        first = datetime.fromtimestamp(min(written.values()) / 1000, UTC)
        raise NoSuchVersion(f"{table}: has no version of {moment}; its first is of {first}")
    return max(past)


def data_files(table: str, at_version: int | None = None) -> list[DataFile]:
    """The files of one version (default: the newest), in the order of their paths.

    Raises:
        NoSuchTable, NoSuchVersion: nothing to read there.
        UnreadableTable: the log can't be read, or the table needs a reader feature (deletion
            vectors, column mapping, ...) that reading by file lists would get wrong in silence.
    """
    snapshot = open_table(table, at_version)
    actions = pa.table(snapshot.get_add_actions(flatten=False))
    # Statistics are most of it, and of no use here.
    used = [name for name in ("path", "num_records", "partition") if name in actions.schema.names]
    root = storage.absolute(table)
    files = sorted(
        DataFile(
            f"{root}/{unquote(action['path'])}",
            action["num_records"],
            {name: _as_text(value) for name, value in (action.get("partition") or {}).items()},
        )
        for action in actions.select(used).to_pylist()
    )
    is_local = not storage.is_remote(root)  # where asking for each file costs next to nothing
    if at_version is not None and is_local and not all(os.path.exists(f.path) for f in files):
        raise NoSuchVersion(
            f"{table}: the files of version {at_version} are gone, as jobs/maintain.py removes "
            "what is old and neither published nor trained on"
        )
    return files


def open_table(table: str, at_version: int | None = None) -> DeltaTable:
    """One version of a table as delta-rs has it, if reading it by file lists is right.

    Raises:
        NoSuchTable, NoSuchVersion, UnreadableTable: as `data_files`.
    """
    snapshot = _opened(table, at_version)
    protocol = snapshot.protocol()
    unreadable = set(protocol.reader_features or ()) - READABLE_FEATURES
    if unreadable or (protocol.min_reader_version == 2):
        named = ", ".join(sorted(unreadable)) or "column mapping"
        raise UnreadableTable(
            f"{table}: needs the Delta reader features {named}, which are not read here"
        )
    return snapshot


def _opened(table: str, at_version: int | None = None) -> DeltaTable:
    try:
        return DeltaTable(table, version=at_version)
    except TableNotFoundError as error:
        raise NoSuchTable(f"{table}: no Delta table there") from error
    except (DeltaRsError, OverflowError) as error:  # a version beyond 64 bits, too
        if at_version is not None:
            newest = version(table)
            raise NoSuchVersion(
                f"{table}: has no version {at_version}; its newest is {newest}"
            ) from error
        reason = str(error).partition("\n")[0]
        raise UnreadableTable(
            f"{table}: its Delta log can't be read: {reason}. It is damaged (bring _delta_log back "
            "from a copy), or written by a later version of Delta than is read here"
        ) from error


def _as_text(value: object) -> str | None:
    return None if value is None else str(value)


def read(
    spark: SparkSession, table: str, schema: T.StructType, at_version: int | None = None
) -> DataFrame:
    """One version of a table as a frame with the columns of `schema`."""
    return scan(spark, data_files(table, at_version), schema)


def table_schema(table: str, at_version: int | None = None) -> T.StructType:
    """The columns of one version of a Delta table, ours or not.

    Raises:
        NoSuchTable, NoSuchVersion, UnreadableTable: as `data_files`.
    """
    return spark_schema(open_table(table, at_version))


def read_staged(spark: SparkSession, staged: Staged) -> DataFrame:
    """The staged files as a frame, before anybody else can see them."""
    return scan(spark, staged.files, staged.contract.schema)


def read_arrow(table: str, schema: pa.Schema, at_version: int | None = None) -> pa.Table:
    """Some columns of a table on the driver, without Spark; partition columns are not given."""
    parts = [read_part(file.path, schema) for file in data_files(table, at_version)]
    return pa.concat_tables([schema.empty_table(), *parts])


def read_part(path: str, schema: pa.Schema) -> pa.Table:
    """Some columns of one Parquet file; null where they were added to the table after it."""
    rows = _parquet(path).read(columns=schema.names)
    for field in schema:
        if field.name not in rows.schema.names:
            rows = rows.append_column(field.name, pa.nulls(len(rows), field.type))
    return rows.select(schema.names).cast(schema)


def _parquet(place: str) -> pq.ParquetFile:
    system, path = storage.opened(place)
    return pq.ParquetFile(system.open_input_file(path))


def read_rows(
    table: str, columns: Sequence[str], at_version: int | None = None
) -> list[dict[str, Any]]:
    """Rows of a small table on the driver, without Spark; partition columns are not given."""
    rows: list[dict[str, Any]] = []
    for file in data_files(table, at_version):
        rows += _rows_of(file.path, columns)
    return rows


def _rows_of(path: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    content = _parquet(path).read(columns=list(columns))
    maps = [field.name for field in content.schema if pa.types.is_map(field.type)]
    lacking = dict.fromkeys(set(columns) - set(content.schema.names))
    # pyarrow gives a map as a list of pairs.
    return [
        row | {name: dict(row[name]) for name in maps if row[name] is not None} | lacking
        for row in content.to_pylist()
    ]


def newest_row(
    table: str, columns: Sequence[str], *, by: str, where: Mapping[str, str]
) -> dict[str, Any] | None:
    """The row with the greatest `by` among those that have some values; None if there is none.

    The log's statistics tell which files may hold it: of a thousand, mostly one is opened.

    Args:
        table: without partitions.
        columns: of the row given.
        by: a timestamp column.
        where: values of text columns.
    """
    actions = pa.table(open_table(table).get_add_actions(flatten=True))
    latest = f"max.{by}"
    bounds = [f"{bound}.{name}" for bound in ("min", "max") for name in where]
    known = [n for n in ("path", latest, *bounds) if n in actions.schema.names]
    files = [file for file in actions.select(known).to_pylist() if _may_hold(file, where)]
    files.sort(key=lambda file: (file.get(latest) is None, file.get(latest)), reverse=True)
    found: dict[str, Any] | None = None
    root = storage.absolute(table)
    for file in files:
        if found and file.get(latest) is not None and file[latest] < found[by]:
            break
        for row in _rows_of(f"{root}/{unquote(file['path'])}", [*{by, *where, *columns}]):
            fits = row[by] is not None and all(row[n] == value for n, value in where.items())
            if fits and (found is None or row[by] > found[by]):
                found = row
    return found


def _may_hold(file: Mapping[str, Any], where: Mapping[str, str]) -> bool:
    """Whether a file's bounds of some columns leave room for these values."""
    return all(
        (file.get(f"min.{name}") or "") <= value <= (file.get(f"max.{name}") or value)
        for name, value in where.items()
    )


def spark_schema(target: DeltaTable) -> T.StructType:
    """The columns of an open table."""
    return T.StructType.fromJson(json.loads(target.schema().to_json()))
