"""The result of a query as an aligned table, CSV, JSON or Parquet, written as Spark computes it.

Spark itself turns the values into text, so that what Python has no value for (intervals, the year
20000, maps with arrays for keys) comes out as well as the rest.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.errors import PySparkTypeError
from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import to_arrow_schema

from cxr_spark import arrow_batches
from cxr_spark.sql_errors import InvalidQuery, told_clearly
from cxr_spark.whole_files import replaced

TABLE_ROWS = 1000
TABLE_WIDTH = 60
TIMESTAMP = "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX"
ROW_GROUP_BYTES = 64 << 20
JSON_OPTIONS = {"ignoreNullFields": "false", "timestampFormat": TIMESTAMP}


def write_json(result: DataFrame, out: IO[str], say: Callable[[str], None]) -> None:
    """One array with an object a row and a line.

    NaN and infinities are null, binary is base64, times are ISO 8601 in the session's zone (UTC).

    Raises:
        InvalidQuery: two columns have the same name.
    """
    _require_names(result, "JSON")
    values = [_finite(column, kind) for column, kind in _columns(result)]
    named = [value.alias(name) for value, name in zip(values, result.columns, strict=True)]
    lines = (line for (line,) in _stream(result, [F.to_json(F.struct(*named), JSON_OPTIONS)]))
    line = next(lines, None)
    if line is None:
        out.write("[]\n")
        return
    out.write("[\n")
    for following in lines:
        out.write(f"{line},\n")
        line = following
    out.write(f"{line}\n]\n")


def write_csv(result: DataFrame, out: IO[str], say: Callable[[str], None]) -> None:
    """RFC 4180 with a header: null is empty, binary is base64, nested values are JSON."""
    rows = _stream(result, [_csv_text(column, kind) for column, kind in _columns(result)])
    first = next(rows, None)  # what fails at once leaves no header behind
    writer = csv.writer(out)
    writer.writerow(result.columns)
    if first is not None:
        writer.writerow(first)
    writer.writerows(rows)


def write_table(result: DataFrame, out: IO[str], say: Callable[[str], None]) -> None:
    """The first 1,000 rows in aligned columns, long text cut short, binary by its size."""
    columns = [_table_text(column, kind) for column, kind in _columns(result)]
    rows = [
        [_cell(value) for value in row] for row in _stream(result.limit(TABLE_ROWS + 1), columns)
    ]
    shown = rows[:TABLE_ROWS]
    header = [_cell(name) for name in result.columns]
    widths = [max(map(len, cells)) for cells in zip(header, *shown, strict=True)]
    right = [isinstance(field.dataType, T.NumericType) for field in result.schema]
    for row in [header, ["-" * width for width in widths], *shown]:
        cells = zip(row, widths, right, strict=True)
        text = "  ".join(c.rjust(w) if to_right else c.ljust(w) for c, w, to_right in cells)
        out.write(f"{text.rstrip()}\n")
    if len(rows) > TABLE_ROWS:
        say(f"only the first {TABLE_ROWS:,} rows are shown; csv, json and parquet give all")
    else:
        say(f"{len(rows):,} rows" if len(rows) != 1 else "1 row")


def write_parquet(result: DataFrame, out: IO[bytes], say: Callable[[str], None]) -> None:
    """One Parquet file with the rows in their order, in row groups of about 64 MB.

    Raises:
        InvalidQuery: two columns have the same name, or Parquet has no form for a type.
    """
    _require_names(result, "Parquet")
    # What Spark calls never null in its plan, its batches may call nullable.
    nullable = [T.StructField(field.name, field.dataType, True) for field in result.schema]
    try:
        schema = to_arrow_schema(T.StructType(nullable))
    except PySparkTypeError as error:
        raise InvalidQuery(f"Parquet has no form for one of the columns: {error}") from error
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        waiting: list[pa.RecordBatch] = []
        for batch in _arrow_batches(result):
            waiting.append(pa.RecordBatch.from_arrays(batch.columns, schema=schema))
            if sum(each.nbytes for each in waiting) > ROW_GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(waiting, schema))
                waiting = []
        writer.write_table(pa.Table.from_batches(waiting, schema))


def _arrow_batches(result: DataFrame) -> Iterator[pa.RecordBatch]:
    """The rows as Arrow, one partition at a time in the driver, in the order of the result."""

    def as_bytes(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as stream:
                stream.write_batch(batch)
            yield pa.RecordBatch.from_arrays([[sink.getvalue().to_pybytes()]], ["bytes"])

    with told_clearly():
        streams = result.mapInArrow(as_bytes, "bytes binary")
        with arrow_batches.bounded(result.sparkSession, _largest_row(result.schema)):
            parts = streams.toLocalIterator(prefetchPartitions=True)
        for (data,) in parts:
            yield from pa.ipc.open_stream(data)


def _largest_row(columns: T.StructType) -> int:
    """Bytes of a row, if what is binary in it are pixels; what isn't counts for nothing."""
    return columns.simpleString().count("binary") * arrow_batches.LARGEST_IMAGE_BYTES


FORMATS = {"table": write_table, "csv": write_csv, "json": write_json}
FILE_FORMATS = (*FORMATS, "parquet")


def write_file(result: DataFrame, style: str, path: Path, say: Callable[[str], None]) -> None:
    """Write a result to a file that is there whole or not at all; one of its name is replaced."""
    with replaced(path) as out:
        if style == "parquet":
            write_parquet(result, out, say)
        else:
            text = io.TextIOWrapper(out, "utf-8", newline="")
            FORMATS[style](result, text, say)
            text.detach()
    say(f"written to {path}")


def _require_names(result: DataFrame, style: str) -> None:
    twice = [name for name, times in Counter(result.columns).items() if times > 1]
    if twice:
        raise InvalidQuery(
            f"{style} needs a name of its own for each column, not twice {twice[0]}: use AS"
        )


def _stream(result: DataFrame, columns: Sequence[Column]) -> Iterator[Row]:
    """Rows of expressions over the columns _0, _1, ...; one partition at a time in the driver."""
    with told_clearly():
        by_place = result.toDF(*[f"_{place}" for place in range(len(result.columns))])
        yield from by_place.select(*columns).toLocalIterator(prefetchPartitions=True)


def _columns(result: DataFrame) -> list[tuple[Column, T.DataType]]:
    """The columns by place, as `_stream` names them: a result may have a name twice."""
    return [(F.col(f"_{place}"), field.dataType) for place, field in enumerate(result.schema)]


def _csv_text(column: Column, kind: T.DataType) -> Column:
    match kind:
        case T.BinaryType():
            return F.translate(F.base64(column), "\r\n", "")  # Spark breaks it into lines
        case T.TimestampType():
            return F.date_format(column, TIMESTAMP)
        case T.StructType() | T.ArrayType() | T.MapType():
            return F.to_json(_finite(column, kind), JSON_OPTIONS)
    return column.cast("string")


def _table_text(column: Column, kind: T.DataType) -> Column:
    match kind:
        case T.BinaryType():
            return F.concat(F.lit("<"), F.length(column).cast("string"), F.lit(" bytes>"))
        case T.DoubleType() | T.FloatType():
            return column
        case T.StructType() | T.ArrayType() | T.MapType():
            text = F.to_json(column, JSON_OPTIONS)
        case _:
            text = column.cast("string")
    return F.substring(text, 1, TABLE_WIDTH + 1)


def _cell(value: Any) -> str:
    """Text for a terminal: eight digits of a fraction, nothing that could steer the terminal."""
    if value is None:
        return "NULL"
    text = f"{value:.8g}" if isinstance(value, float) else value
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= TABLE_WIDTH else f"{text[: TABLE_WIDTH - 1]}…"


def _finite(column: Column, kind: T.DataType) -> Column:
    """The same value with null for each NaN and infinity in it, which JSON has no number for."""
    match kind:
        case T.DoubleType() | T.FloatType():
            # In Spark NaN is greater than any number.
            return F.when(F.abs(column) < float("inf"), column)
        case T.ArrayType():
            return F.transform(column, lambda element: _finite(element, kind.elementType))
        case T.MapType():
            return F.transform_values(column, lambda _, value: _finite(value, kind.valueType))
        case T.StructType():
            fields = [_finite(column[f.name], f.dataType).alias(f.name) for f in kind]
            return F.when(column.isNotNull(), F.struct(*fields))
    return column
