"""Parquet files under a table that no version names yet: written, checked, described.

Spark's own Parquet writer puts files into a fresh folder under the table, and their footers give
the statistics that Delta's log wants. `delta.commit` then names the files in one atomic step.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, Observation
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import to_arrow_schema, to_arrow_type

from cxr_spark import storage
from cxr_spark.contracts import (
    Contract,
    DeltaError,
    SchemaMismatch,
    check_rows,
    conform,
    require_columns,
)
from cxr_spark.file_statistics import file_statistics

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
# By INT96, Spark's own choice, times past 2262 are misread, and some readers refuse the file.
TIMESTAMP_SETTING, TIMESTAMPS = "spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS"


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
    contract: Contract
    files: list[StagedFile]

    @property
    def num_rows(self) -> int:
        """Rows in all files."""
        return sum(file.num_rows for file in self.files)


def stage(
    frame: DataFrame, table: str, contract: Contract, *, max_records_per_file: int = 0
) -> Staged:
    """Write the frame with Spark's Parquet writer into a fresh folder under the table.

    Its constraints are checked in the same pass, as nobody else does it for a write by Spark.

    Args:
        frame: columns of the contract's schema, in any order.
        table: the table's folder; made if it is missing.
        contract: a frame that differs from it is refused before anything is written.
        max_records_per_file: rows a file at most; 0 is no bound.

    Raises:
        SchemaMismatch: columns are missing, unknown or of another type, or a constraint is broken.
        DeltaError: the files seen here don't hold the rows that Spark wrote (driver and executors
            don't share the storage), or a setting of Spark is not what the files must have.
    """
    if (given := frame.sparkSession.conf.get(TIMESTAMP_SETTING)) != TIMESTAMPS:
        raise DeltaError(
            f"{TIMESTAMP_SETTING} is {given}, and tables need {TIMESTAMPS}: leave the setting out"
        )
    seen = Observation()
    folder = _fresh_folder(table)
    broken = [
        F.count_if(~F.coalesce(F.expr(condition), F.lit(False))).alias(name)
        for name, condition in contract.checks.items()
    ]
    rows = conform(frame, contract.schema).observe(seen, F.count(F.lit(1)).alias("rows"), *broken)
    writer = rows.write.option("maxRecordsPerFile", max_records_per_file)
    writer.partitionBy(*contract.partition_by).parquet(storage.for_spark(folder))
    staged = _staged(table, contract, storage.parquet_files(folder))
    _check_written(staged, seen.get)
    return staged


def stage_rows(rows: Sequence[Mapping[str, Any]], table: str, contract: Contract) -> Staged:
    """Write a few rows from the driver, without Spark, into a fresh folder under the table.

    Args:
        rows: values by column; a column that a row lacks is null there.
        table: the table's folder; made if it is missing.
        contract: of the table.

    Raises:
        SchemaMismatch: a row has a column that is unknown or a value of another type, or breaks a
            constraint.
    """
    if unknown := {name for row in rows for name in row} - set(contract.schema.names):
        raise SchemaMismatch(f"{table}: has no column {', '.join(sorted(unknown))}")
    by_partition: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        # As Spark has it: an empty text is no value of a partition.
        values = tuple(row.get(name) or HIVE_NULL for name in contract.partition_by)
        by_partition.setdefault(values, []).append(row)
    folder = _fresh_folder(table)
    parts = {
        "/".join([folder, *map(_folder_name, contract.partition_by, values)]): _as_arrow(
            members, table, _stored(contract)
        )
        for values, members in by_partition.items()
    }
    check_rows(rows, table, contract)
    for place, part in parts.items():
        storage.make_folder(place)
        system, path = storage.opened(f"{place}/part-0.parquet")
        pq.write_table(part, path, filesystem=system, coerce_timestamps="us", compression="zstd")
    staged = _staged(table, contract, storage.parquet_files(folder))
    _require_present(staged)
    return staged


def _folder_name(column: str, value: str) -> str:
    return f"{column}={quote(value, safe='')}"


def _as_arrow(rows: Sequence[Mapping[str, Any]], table: str, schema: T.StructType) -> pa.Table:
    columns = {}
    for field in schema:
        values = [row.get(field.name) for row in rows]
        try:
            columns[field.name] = pa.array(values, to_arrow_type(field.dataType))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            kind = field.dataType.simpleString()
            raise SchemaMismatch(f"{table}: a {field.name} is no {kind}: {error}") from error
    return pa.table(columns)


def stage_arrow(rows: pa.Table, table: str, contract: Contract) -> Staged:
    """Write a narrow Arrow table, as one file and without Spark, into a fresh folder.

    Args:
        rows: the columns of the contract's schema in its order.
        table: the table's folder; it isn't partitioned.
        contract: of the table.

    Raises:
        SchemaMismatch: the columns or their types differ, or a required one holds a null.
    """
    require_columns(rows.schema, contract.schema, f"the Arrow table for {table}")
    part = write_part(rows.cast(to_arrow_schema(contract.schema)), new_folder(table))
    return stage_parts([part], contract)


def new_folder(table: str) -> str:
    """Make a fresh folder under a table, for parts that executors write."""
    folder = _fresh_folder(table)
    storage.make_folder(folder)
    return folder


def write_part(rows: pa.Table, folder: str) -> str:
    """Write a Parquet file of one's own into a folder that `new_folder` made; its path.

    Binary columns get neither dictionary nor statistics, which would hold whole images, and stay
    as they are: of a radiograph's pixels compression takes a tenth, and a fortieth of all the time.
    """
    path = f"{folder}/part-{uuid.uuid4().hex}.parquet"
    plain = [field.name for field in rows.schema if not pa.types.is_binary(field.type)]
    codecs = {name: "zstd" if name in plain else "none" for name in rows.schema.names}
    system, inner = storage.opened(path)
    pq.write_table(
        rows,
        inner,
        filesystem=system,
        coerce_timestamps="us",
        compression=codecs,
        use_dictionary=plain,
        write_statistics=plain,
    )
    return path


def stage_parts(paths: Sequence[str], contract: Contract) -> Staged:
    """Describe parts that `write_part` wrote, for a commit.

    Raises:
        SchemaMismatch: the columns or their types differ, or a required one holds a null.
        DeltaError: a part isn't there (driver and executors don't share the storage).
    """
    sizes = {path: storage.size_bytes(path) for path in sorted(paths)}
    missing = [path for path, size in sizes.items() if size is None]
    if missing:
        raise DeltaError(
            f"{missing[0]}: written by an executor, and not found here: driver and executors must "
            "share the warehouse's storage"
        )
    table = paths[0].rsplit("/", 2)[0]
    files = [storage.StoredFile(path, size) for path, size in sizes.items() if size is not None]
    assert not contract.checks, "whoever writes parts would have to check conditions on values"
    staged = _staged(table, contract, files)
    _require_present(staged)
    return staged


def _fresh_folder(table: str) -> str:
    """A folder under a table that isn't there yet; never named like what vacuum passes over."""
    root = storage.absolute(table)
    if "%" in root:
        raise DeltaError(
            f"{table}: a folder with % in its path can't hold a Delta table; rename it"
        )
    return f"{root}/j-{uuid.uuid4().hex}"


def _check_written(staged: Staged, seen: Mapping[str, Any]) -> None:
    _require_present(staged)
    broken = {name: seen[name] for name in staged.contract.checks if seen[name]}
    if broken:
        raise SchemaMismatch(f"{staged.table}: rows that break a constraint, by name: {broken}")
    if staged.num_rows != seen["rows"]:
        raise DeltaError(
            f"{staged.table}: Spark wrote {seen['rows']} rows, {staged.num_rows} are found here: "
            "driver and executors must share the warehouse's storage"
        )


def _require_present(staged: Staged) -> None:
    """Checks by footers and folders, at next to no cost, that no required column holds a null."""
    for name in staged.contract.required:
        if name in staged.contract.partition_by:
            nulls = sum(file.num_rows for file in staged.files if file.partition[name] is None)
        else:
            nulls = sum(_nulls(file, name) for file in staged.files)
        if nulls:
            raise SchemaMismatch(
                f"{staged.table}: {nulls} rows break the constraint {name}_is_present"
            )


def _nulls(file: StagedFile, column: str) -> int:
    if (counted := file.statistics["nullCount"].get(column)) is not None:
        return int(counted)
    system, path = storage.opened(file.path)  # the footer doesn't say
    with system.open_input_file(path) as content:
        return int(pq.ParquetFile(content).read(columns=[column])[column].null_count)


def _stored(contract: Contract) -> T.StructType:
    """The columns that files hold; the others are named by their folders."""
    return T.StructType([f for f in contract.schema if f.name not in contract.partition_by])


def _staged(table: str, contract: Contract, stored: Sequence[storage.StoredFile]) -> Staged:
    root = storage.absolute(table)
    storage.make_folder(root)
    files = []
    for place, size_bytes in stored:
        system, path = storage.opened(place)
        footer = pq.read_metadata(path, filesystem=system)
        require_columns(footer.schema.to_arrow_schema(), _stored(contract), place)
        partition = _partition_values(place, contract.partition_by)
        statistics = file_statistics(footer, contract.schema)
        files.append(StagedFile(place, footer.num_rows, partition, size_bytes, statistics))
    return Staged(root, contract, files)


def _partition_values(place: str, partition_by: tuple[str, ...]) -> dict[str, str | None]:
    folders = place.split("/")[-1 - len(partition_by) : -1]
    values = (unquote(folder.split("=", 1)[1]) for folder in folders)
    return {
        name: None if value == HIVE_NULL else value
        for name, value in zip(partition_by, values, strict=True)
    }
