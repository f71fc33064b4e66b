"""What a table promises, and that a write keeps to it: its columns, their types, its conditions."""

import math
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pyspark.errors import PySparkTypeError
from pyspark.sql import DataFrame
from pyspark.sql import types as T
from pyspark.sql.pandas.types import from_arrow_type

# What a condition on a row can be about.
SCALAR_TYPES = (T.StringType, T.IntegerType, T.LongType, T.DoubleType, T.BooleanType)


class DeltaError(ValueError):
    """A table or a write that is not what it must be; the message says which and why."""


class SchemaMismatch(DeltaError):
    """A frame's columns differ from the table's contract: no fault of the user's input."""

    status = "failed"


@dataclass(frozen=True)
class Contract:
    """What a table promises.

    Attributes:
        schema: the columns. To Spark and in the log all are nullable: both would believe a promise
            that a write has broken, and give a file or a table that can't be opened.
        key: columns that tell one row from another.
        required: columns that are never null.
        partition_by: columns that are folders; of text.
        checks: SQL conditions that hold for each row, by name; a null is not true.
        description: what a row is.
    """

    schema: T.StructType
    key: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    partition_by: tuple[str, ...] = ()
    checks: Mapping[str, str] = field(default_factory=dict)
    description: str = ""

    def constraints(self) -> dict[str, str]:
        """All conditions on a row by name, as Delta's log declares them to every writer."""
        present = {f"{name}_is_present": f"{name} IS NOT NULL" for name in self.required}
        return present | dict(self.checks)


def conform(frame: DataFrame, schema: T.StructType) -> DataFrame:
    """Select the contract's columns in its order, or name every column that differs."""
    _require_same(_types(frame.schema), _types(schema), "the frame")
    return frame.select(*[f"`{name}`" for name in schema.names])


def _types(schema: T.StructType) -> dict[str, str]:
    """What Spark calls the type of each column; whether it may hold nulls is no part of it."""
    return {field.name: field.dataType.simpleString() for field in schema}


def _require_same(given: Mapping[str, str], wanted: Mapping[str, str], what: str) -> None:
    problems = [f"{name} is missing" for name in wanted if name not in given]
    problems += [f"{name} is unknown" for name in given if name not in wanted]
    problems += [
        f"{name} is {given[name]}, not {kind}"
        for name, kind in wanted.items()
        if name in given and given[name] != kind
    ]
    if problems:
        raise SchemaMismatch(f"{what} doesn't match its table: {'; '.join(problems)}")


def require_columns(given: pa.Schema, wanted: T.StructType, what: str) -> None:
    """Refuse Arrow columns that aren't those of a table, in its order."""
    _require_same({f.name: _type_of(f.type) for f in given}, _types(wanted), what)
    if given.names != wanted.names:
        raise SchemaMismatch(f"{what} has its columns in another order: {given.names}")


def _type_of(kind: pa.DataType) -> str:
    """What Spark calls an Arrow type, or else Arrow."""
    try:
        return from_arrow_type(kind, prefer_timestamp_ntz=True).simpleString()
    except PySparkTypeError:
        return str(kind)


def check_rows(rows: Sequence[Mapping[str, Any]], table: str, contract: Contract) -> None:
    """Asks SQLite whether the rows keep the constraints: the same SQL, and no Spark is needed."""
    plain = [field.name for field in contract.schema if isinstance(field.dataType, SCALAR_TYPES)]
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute(f"CREATE TABLE rows ({', '.join(plain)})")
        values = ", ".join("?" * len(plain))
        given = [[_comparable(row.get(name)) for name in plain] for row in rows]
        database.executemany(f"INSERT INTO rows VALUES ({values})", given)
        for name, condition in contract.constraints().items():
            broken = f"SELECT count(*) FROM rows WHERE NOT coalesce(({condition}), false)"
            if count := database.execute(broken).fetchone()[0]:
                raise SchemaMismatch(f"{table}: {count} rows break the constraint {name}")


def _comparable(value: Any) -> Any:
    """NaN, which to SQLite is a null, as infinity: to Spark it is the greatest of numbers."""
    return math.inf if isinstance(value, float) and math.isnan(value) else value
