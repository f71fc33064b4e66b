"""Shares hold every item once, in order, and end with small ones."""

from itertools import pairwise

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from cxr_spark import shares


@pytest.mark.parametrize("items", [0, 1, 15, 16, 17, 1_000, 100_000])
@pytest.mark.parametrize("cores", [1, 2, 16])
def test_all_items_are_cut_into_shares_from_large_to_small(items, cores):
    bounds = shares.cut(items, cores)
    assert (bounds[0], bounds[-1]) == (0, items)
    sizes = [end - start for start, end in pairwise(bounds)]
    assert sizes == sorted(sizes, reverse=True)
    assert all(shares.FEWEST_A_SHARE <= size <= shares.MOST_A_SHARE for size in sizes[:-1])
    if items > 100 * cores:  # no core waits long for another's last share
        assert sizes[-1] <= shares.FEWEST_A_SHARE < sizes[0]


def test_tasks_are_given_every_row_once_with_its_place(spark: SparkSession):
    items, bounds = pa.table({"item": [f"item {number}" for number in range(20)]}), [0, 9, 17, 20]

    def told(batches):
        for start, rows in shares.of_task(batches, items, bounds):
            found = [{"place": start + at, **row} for at, row in enumerate(rows)]
            yield pa.RecordBatch.from_pylist(found)

    tasks = shares.tasks(spark, bounds)
    assert tasks.rdd.getNumPartitions() == 3
    rows = tasks.mapInArrow(told, "place long, item string").collect()
    assert [(row.place, row.item) for row in rows] == [(n, f"item {n}") for n in range(20)]
