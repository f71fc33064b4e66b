"""Work cut into shares, one a task; they travel with the function, and no shuffle brings them."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

# A task costs 10 to 30 ms; one that is tried again decodes each of its files in its own process.
MOST_A_SHARE, FEWEST_A_SHARE = 256, 16


def cut(items: int, cores: int) -> list[int]:
    """Where each share of the items begins, and the end: large shares first, small ones last.

    So few tasks cost their start, and no core waits long for the others at the end.

    Args:
        items: how many there are.
        cores: that work at once.
    """
    bounds = [0]
    while bounds[-1] < items:
        left = items - bounds[-1]
        share = min(MOST_A_SHARE, max(FEWEST_A_SHARE, left // (2 * cores)))
        bounds.append(min(items, bounds[-1] + share))
    return bounds


def tasks(spark: SparkSession, bounds: Sequence[int]) -> DataFrame:
    """A task for each share, given its number as the one row of column `id`."""
    return spark.range(0, len(bounds) - 1, 1, len(bounds) - 1)


def of_task(
    batches: Iterator[pa.RecordBatch], items: pa.Table, bounds: Sequence[int]
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """On a worker: where each share that a task has been given begins, and its rows."""
    for number in (number for batch in batches for number in batch["id"].to_pylist()):
        start, end = bounds[number], bounds[number + 1]
        yield start, items.slice(start, end - start).to_pylist()
