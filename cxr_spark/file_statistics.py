"""What Delta's log says of a Parquet file, so that readers can skip it: taken from its footer."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow.parquet as pq
from pyspark.sql import types as T

STATS_MAX_CHARACTERS = 32
# These physical forms have an order that all engines agree on.
STATS_TYPES = (T.StringType, T.IntegerType, T.LongType, T.TimestampType)


def file_statistics(footer: pq.FileMetaData, schema: T.StructType) -> dict[str, Any]:
    """Delta's per-file statistics from a Parquet footer: rows, minima, maxima, counts of nulls.

    What a footer doesn't say of one of its row groups is not said of the file: of texts of some
    thousand bytes Spark's writer leaves out all, pyarrow's minimum and maximum.
    """
    flat = {f.name for f in schema if isinstance(f.dataType, STATS_TYPES)}
    minima: dict[str, Any] = {}
    maxima: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for i in range(footer.num_columns):
        name = footer.schema.column(i).path
        chunks = [footer.row_group(g).column(i).statistics for g in range(footer.num_row_groups)]
        is_counted = all(chunk is not None and chunk.has_null_count for chunk in chunks)
        if name not in flat or not is_counted:
            continue
        nulls[name] = sum(chunk.null_count for chunk in chunks)
        if (bounds := _bounds(chunks)) is not None:
            minima[name], maxima[name] = bounds
    return {
        "numRecords": footer.num_rows,
        "minValues": minima,
        "maxValues": maxima,
        "nullCount": nulls,
    }


def _bounds(chunks: list[pq.Statistics]) -> tuple[Any, Any] | None:
    """What no value of some row groups is below or above; None where one of them doesn't tell."""
    filled = [chunk for chunk in chunks if chunk.num_values]
    if not filled or not all(chunk.has_min_max for chunk in filled):
        return None
    try:
        least, greatest = min(c.min for c in filled), [c.max for c in filled]
        # pyarrow gives '' for a maximum that was too long to be written.
        upper = None if "" in greatest else _at_least(max(greatest))
    except OverflowError:  # a time after the year 9999, for which Python has no value
        return None
    return None if upper is None else (_at_most(least), upper)


def _at_most(value: Any) -> Any:
    if isinstance(value, str):
        return value[:STATS_MAX_CHARACTERS]
    return _milliseconds(value) if isinstance(value, datetime) else value


def _at_least(value: Any) -> Any:
    """A bound not below the value in Delta's JSON form, or None where there is none.

    Raises:
        OverflowError: it would be after the year 9999.
    """
    if isinstance(value, str):
        if len(value) <= STATS_MAX_CHARACTERS:
            return value
        # A cut maximum needs a greater last character to stay a bound.
        head = value[:STATS_MAX_CHARACTERS]
        return head[:-1] + chr(ord(head[-1]) + 1) if ord(head[-1]) < 0xD7FF else None
    is_moment = isinstance(value, datetime)
    return _milliseconds(value + timedelta(microseconds=999)) if is_moment else value


def _milliseconds(moment: datetime) -> str:
    """The moment in UTC, cut to milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
