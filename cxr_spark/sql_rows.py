"""Columns and rows of a result as HiveServer2's clients take them: typed, column by column."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T
from TCLIService import constants
from TCLIService import ttypes as hive

from cxr_spark.sql_errors import told_clearly
from cxr_spark.sql_output import JSON_OPTIONS

Row = Sequence[Any]


class Wire(NamedTuple):
    """How values of a type travel: Hive's type, the member of TColumn, what stands for null."""

    type_id: int
    member: str
    values: Callable[..., Any]
    null: Any


def _text(type_id: int) -> Wire:
    return Wire(type_id, "stringVal", hive.TStringColumn, "")


def _double(type_id: int) -> Wire:
    return Wire(type_id, "doubleVal", hive.TDoubleColumn, 0.0)


# Hive sends dates, times, decimals and nested values as text beside their type.
_TEXT = _text(hive.TTypeId.STRING_TYPE)
WIRES: dict[type[T.DataType], Wire] = {
    T.BooleanType: Wire(hive.TTypeId.BOOLEAN_TYPE, "boolVal", hive.TBoolColumn, False),
    T.ByteType: Wire(hive.TTypeId.TINYINT_TYPE, "byteVal", hive.TByteColumn, 0),
    T.ShortType: Wire(hive.TTypeId.SMALLINT_TYPE, "i16Val", hive.TI16Column, 0),
    T.IntegerType: Wire(hive.TTypeId.INT_TYPE, "i32Val", hive.TI32Column, 0),
    T.LongType: Wire(hive.TTypeId.BIGINT_TYPE, "i64Val", hive.TI64Column, 0),
    T.FloatType: _double(hive.TTypeId.FLOAT_TYPE),
    T.DoubleType: _double(hive.TTypeId.DOUBLE_TYPE),
    T.BinaryType: Wire(hive.TTypeId.BINARY_TYPE, "binaryVal", hive.TBinaryColumn, b""),
    T.StringType: _TEXT,
    T.TimestampType: _text(hive.TTypeId.TIMESTAMP_TYPE),
    T.TimestampNTZType: _text(hive.TTypeId.TIMESTAMP_TYPE),
    T.DateType: _text(hive.TTypeId.DATE_TYPE),
    T.DecimalType: _text(hive.TTypeId.DECIMAL_TYPE),
    T.ArrayType: _text(hive.TTypeId.ARRAY_TYPE),
    T.MapType: _text(hive.TTypeId.MAP_TYPE),
    T.StructType: _text(hive.TTypeId.STRUCT_TYPE),
    T.NullType: _text(hive.TTypeId.NULL_TYPE),
}


def wire(kind: T.DataType) -> Wire:
    """How values of a Spark type travel; what Hive has no type for (intervals) is text."""
    return WIRES.get(type(kind), _TEXT)


def type_name(kind: type[T.DataType]) -> str:
    """What Hive calls a Spark type."""
    return hive.TTypeId._VALUES_TO_NAMES[WIRES[kind].type_id].removesuffix("_TYPE")


def stream(result: DataFrame) -> Iterator[Row]:
    """The rows of a result, computed one partition at a time while they are asked for.

    Spark itself turns into text what travels as text, so that values which Python or Java have no
    type for arrive too. Times are in the session's zone (UTC).

    Raises:
        InvalidQuery, QueryFailed: while a row is computed.
    """
    with told_clearly():
        # By place: a result may have a name twice.
        by_place = result.toDF(*[f"_{place}" for place in range(len(result.columns))])
        columns = [_value(F.col(f"_{n}"), f.dataType) for n, f in enumerate(result.schema)]
        # Without prefetching, as nothing may run for a client that has stopped asking.
        yield from by_place.select(*columns).toLocalIterator(prefetchPartitions=False)


def _value(column: Column, kind: T.DataType) -> Column:
    if isinstance(kind, T.ArrayType | T.MapType | T.StructType):
        return F.to_json(column, JSON_OPTIONS)
    return column.cast("string") if wire(kind).member == "stringVal" else column


def table_schema(columns: T.StructType) -> hive.TTableSchema:
    """The columns of a result, as clients ask for them before its rows."""
    return hive.TTableSchema(
        [
            hive.TColumnDesc(
                field.name,
                hive.TTypeDesc([hive.TTypeEntry(_type_entry(field.dataType))]),
                place,
                (field.metadata or {}).get("comment"),
            )
            for place, field in enumerate(columns, 1)
        ]
    )


def _type_entry(kind: T.DataType) -> hive.TPrimitiveTypeEntry:
    entry = hive.TPrimitiveTypeEntry(wire(kind).type_id)
    if isinstance(kind, T.DecimalType):
        sizes = {constants.PRECISION: kind.precision, constants.SCALE: kind.scale}
        values = {name: hive.TTypeQualifierValue(i32Value=size) for name, size in sizes.items()}
        entry.typeQualifiers = hive.TTypeQualifiers(values)
    return entry


def row_set(columns: T.StructType, rows: Sequence[Row], offset: int) -> hive.TRowSet:
    """Rows as columns with a bitmap of nulls each.

    Args:
        columns: names and types.
        rows: of values as `stream` gives them.
        offset: place of the first row in the result.
    """
    by_column: Iterable[Sequence[Any]] = zip(*rows, strict=True) if rows else [()] * len(columns)
    packed = [
        _column(wire(field.dataType), values)
        for field, values in zip(columns, by_column, strict=True)
    ]
    return hive.TRowSet(offset, [], packed)


def _column(how: Wire, values: Sequence[Any]) -> hive.TColumn:
    nulls = bytearray((len(values) + 7) // 8)
    for place, value in enumerate(values):
        if value is None:
            nulls[place // 8] |= 1 << place % 8
    filled = [how.null if value is None else value for value in values]
    if how.member == "binaryVal":
        filled = [bytes(value) for value in filled]
    return hive.TColumn(**{how.member: how.values(filled, bytes(nulls))})


def size(row: Row) -> int:
    """About how many bytes a row takes on its way."""
    return sum(len(v) if isinstance(v, str | bytes | bytearray) else 8 for v in row)
