"""Groups and images that are in two splits, of any Delta or Parquet table."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cxr_spark import delta
from cxr_spark.sql_errors import InvalidQuery, QueryFailed, told_clearly

MAX_LEAKS = 20
MAX_SPLITS = 10
MAX_IMAGES = 5

# For a session that reads tables as they are: names that differ in case are two columns, partition
# folders `01` and `1` are two values, and the nanoseconds of pandas do not stop the reading.
_AS_THEY_ARE = {
    "spark.sql.caseSensitive": "true",
    "spark.sql.sources.partitionColumnTypeInference.enabled": "false",
    "spark.sql.legacy.parquet.nanosAsLong": "true",
}


class TableError(ValueError):
    """A table that can't be read, or that lacks a column."""


class Leaked(RuntimeError):
    """A group or an image is in two splits."""

    status = "refused"


class Leak(NamedTuple):
    """A group or an image that is in several splits.

    Attributes:
        key: the group or the image.
        rows: its rows in all splits.
        splits: its rows in each of the first MAX_SPLITS splits, by name.
        images: up to MAX_IMAGES images of a group, from all its splits, where asked for.
    """

    key: str
    rows: int
    splits: dict[str, int]
    images: list[str]

    def __str__(self) -> str:
        splits = ", ".join(f"{rows:,} in {split}" for split, rows in self.splits.items())
        others = self.rows - sum(self.splits.values())
        more = f", {others:,} in further splits" if others else ""
        images = f"; images {', '.join(self.images)}" if self.images else ""
        return f"{self.key}: {splits}{more}{images}"


class Leakage(NamedTuple):
    """What was counted, the most leaking groups and images, and the version of a Delta table."""

    counts: dict[str, int]
    groups: list[Leak]
    images: list[Leak]
    version: int | None

    def in_words(self) -> list[str]:
        """Returns the leaks a line each, after what was counted."""
        counts = {name: f"{count:,}" for name, count in self.counts.items()}
        lines = [f"{counts['rows']} rows in {counts['groups']} groups"]
        if self.counts["rows_without_group"]:
            lines.append(f"{counts['rows_without_group']} rows have no group: each is its own")
        if self.counts["rows_without_split"]:
            lines.append(f"{counts['rows_without_split']} rows have no split: they leak nothing")
        for kind, leaks in (("group", self.groups), ("image", self.images)):
            lines += [f"{kind} {leak}" for leak in leaks]
            unnamed = self.counts.get(f"leaking_{kind}s", 0) - len(leaks)
            lines += [f"... and {unnamed:,} more leaking {kind}s"] if unnamed else []
        return lines

    def require_none(self) -> None:
        """Raises Leaked if a group or an image is in two splits."""
        leaking = [
            f"{self.counts[f'leaking_{kind}']:,} {kind}"
            for kind in ("groups", "images")
            if self.counts.get(f"leaking_{kind}")
        ]
        if leaking:
            raise Leaked(f"in two splits or more: {' and '.join(leaking)}")


def check(
    spark: SparkSession, path: str, split: str, group: str, image: str | None = None
) -> Leakage:
    """Finds the groups of a table, and the images if their column is named, that are in two splits.

    Args:
        spark: gives a session of its own to the table, so that its settings stay.
        path: a Delta table, read at its newest version, or a Parquet file or folder.
        split: the column of the split.
        group: the column of what must not be in two splits: a patient, a group of copies.
        image: the column of the images' ids.

    Raises:
        TableError: there is nothing that can be read, or the table lacks a column.
        DeltaError: the Delta table has features that are not read here.
    """
    place = Path(path).absolute()
    if not place.exists():
        raise TableError(f"{place}: no such file or folder")
    version = delta.version(str(place)) if place.is_dir() else None
    with _told_as_table_errors(place):
        table = _read(spark, str(place), version)
        return find_leaks(table, split, group, image)._replace(version=version)


def _read(spark: SparkSession, place: str, version: int | None) -> DataFrame:
    session = spark.newSession()
    for name, value in _AS_THEY_ARE.items():
        session.conf.set(name, value)
    if version is not None:
        return delta.read(session, place, delta.table_schema(place, version), version)
    return session.read.option("mergeSchema", True).parquet(_not_a_glob(place))


def _not_a_glob(path: str) -> str:
    """A path as Spark takes it: what it would read as a pattern is escaped."""
    return re.sub(r"([{}\[\]*?\\])", r"\\\1", path)


@contextmanager
def _told_as_table_errors(place: Path) -> Iterator[None]:
    try:
        with told_clearly():
            yield
    except (InvalidQuery, QueryFailed) as error:
        if isinstance(error, QueryFailed) and "FAILED_READ_FILE" not in str(error):
            raise
        raise TableError(f"{place}: no Delta or Parquet table that can be read: {error}") from error


def find_leaks(table: DataFrame, split: str, group: str, image: str | None = None) -> Leakage:
    """Finds leaks as `check` does, in a frame.

    A row without a group (null, NaN or blank) is a group of its own. A row without a split is in
    none, so it leaks nothing.

    Raises:
        TableError: the table lacks a column.
    """
    columns = {"split": split, "group": group} | ({"image": image} if image else {})
    missing = [repr(name) for name in columns.values() if name not in table.columns]
    if missing:
        there = ", ".join(map(repr, table.columns))
        raise TableError(f"no column {', '.join(missing)} in the table; it has {there}")
    rows = table.select(*[_known(table, name).alias(alias) for alias, name in columns.items()])
    pairs = _rows_by_split(rows, "group").persist()
    groups = _in_two_splits(pairs).persist()
    counts = _counts(pairs) | {"leaking_groups": groups.count()}
    worst_groups, worst_images = _worst(groups), []
    if image:
        images = _in_two_splits(_rows_by_split(rows, "image")).persist()
        counts["leaking_images"] = images.count()
        worst_images = _worst(images)
        some = _some_images(rows, [leak.key for leak in worst_groups])
        worst_groups = [leak._replace(images=some.get(leak.key, [])) for leak in worst_groups]
    return Leakage(counts, worst_groups, worst_images, version=None)


def _known(table: DataFrame, name: str) -> Column:
    """A column as text, binary as hex; null where it says nothing."""
    column = F.col(f"`{name.replace('`', '``')}`")
    if isinstance(table.schema[name].dataType, T.BinaryType):
        return F.hex(column)
    text = column.cast("string")
    return F.when((F.trim(text) != "") & (text != "NaN"), text)


def _rows_by_split(rows: DataFrame, key: str) -> DataFrame:
    return rows.groupBy(F.col(key).alias("key"), "split").agg(F.count("*").alias("rows"))


def _in_two_splits(pairs: DataFrame) -> DataFrame:
    """The keys in two splits or more: key, rows, and splits as an array of (split, rows)."""
    splits = F.sort_array(F.collect_list(F.struct("split", "rows")))
    known = pairs.where("key IS NOT NULL AND split IS NOT NULL")
    by_key = known.groupBy("key").agg(splits.alias("splits"), F.sum("rows").alias("rows"))
    return by_key.where(F.size("splits") > 1).withColumn("splits", F.slice("splits", 1, MAX_SPLITS))


def _counts(pairs: DataFrame) -> dict[str, int]:
    def total(condition: Column) -> Column:
        return F.coalesce(F.sum(F.when(condition, F.col("rows"))), F.lit(0))

    without_group, without_split = F.col("key").isNull(), F.col("split").isNull()
    counted = pairs.agg(
        total(F.lit(True)).alias("rows"),
        (F.count_distinct("key") + total(without_group)).alias("groups"),
        total(without_group).alias("rows_without_group"),
        total(without_split).alias("rows_without_split"),
    )
    return dict(counted.collect()[0].asDict())


def _worst(leaks: DataFrame) -> list[Leak]:
    """The MAX_LEAKS with the most rows."""
    rows = leaks.orderBy(F.desc("rows"), "key").limit(MAX_LEAKS).collect()
    return [Leak(row.key, row.rows, {s.split: s.rows for s in row.splits}, []) for row in rows]


def _some_images(rows: DataFrame, groups: list[str]) -> dict[str, list[str]]:
    """Up to MAX_IMAGES images of each group: the first of each split before the second ones."""
    known = rows.where(F.col("group").isin(groups)).dropna()
    of_groups = known.groupBy("group", "image").agg(F.min("split").alias("split"))
    in_split = F.row_number().over(Window.partitionBy("group", "split").orderBy("image"))
    in_turn = F.row_number().over(Window.partitionBy("group").orderBy("in_split", "split"))
    ranked = of_groups.withColumn("in_split", in_split).withColumn("in_turn", in_turn)
    named: dict[str, list[str]] = {}
    for row in ranked.where(F.col("in_turn") <= MAX_IMAGES).orderBy("in_turn").collect():
        named.setdefault(row.group, []).append(row.image)
    return named
