"""What Delta's log says of a Parquet file, so that readers can skip it: taken from its footer."""

from datetime import UTC, datetime
from typing import Any

import pyarrow.parquet as pq
from pyspark.sql import types as T

STATS_MAX_CHARACTERS = 32
# These physical forms have an order that all engines agree on.
STATS_TYPES = (T.StringType, T.IntegerType, T.LongType, T.TimestampType)


def file_statistics(footer: pq.FileMetaData, schema: T.StructType) -> dict[str, Any]:
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
