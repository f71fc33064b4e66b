"""A relation over listed files: rows, partition values, and which files a query opens."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from py4j.protocol import Py4JJavaError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from cxr_spark.delta import DataFile
from cxr_spark.file_scan import scan

SCHEMA = T.StructType().add("part", "string").add("key", "long").add("later", "double")
PARTS = ["a:b", "a b", "x/y", "%41", "é=1", "07", None]
Table = Callable[[list[str | None]], list[DataFile]]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Makes a file of one row for each partition value, two levels below an awkward folder."""

    def make(parts: list[str | None]) -> list[DataFile]:
        files = []
        for key, part in enumerate(parts):
            name = "__HIVE_DEFAULT_PARTITION__" if part is None else quote(part, safe="")
            path = tmp_path / "a [1] é" / f"j-{key}" / f"part={name}" / "part {0}.parquet"
            path.parent.mkdir(parents=True)
            pq.write_table(pa.table({"key": [key]}), path)
            files.append(DataFile(str(path), 1, {"part": part}))
        return files

    return make


def values(rows: DataFrame) -> list[tuple]:
    return sorted((tuple(row) for row in rows.collect()), key=lambda row: row[1])


def test_rows_have_the_partition_values_of_the_log_and_null_in_columns_that_came_later(
    spark: SparkSession, table: Table
) -> None:
    rows = scan(spark, table(PARTS), SCHEMA)
    assert values(rows) == [(part, key, None) for key, part in enumerate(PARTS)]
    assert rows.columns == SCHEMA.names
    for key, part in enumerate(PARTS[:-1]):
        assert values(rows.where(rows["part"] == part)) == [(part, key, None)]
    assert values(rows.where("part IS NULL")) == [(None, 6, None)]


def test_only_the_listed_files_of_a_folder_are_read(spark: SparkSession, table: Table) -> None:
    files = table(["a"])
    beside = Path(files[0].path).with_name("of another version.parquet")
    pq.write_table(pa.table({"key": [99]}), beside)
    assert values(scan(spark, files, SCHEMA)) == [("a", 0, None)]


def test_a_plain_table_and_one_without_files(spark: SparkSession, tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": [1]}), tmp_path / "one.parquet")
    files = [DataFile(str(tmp_path / "one.parquet"), 1, {})]
    assert values(scan(spark, files, SCHEMA)) == [(None, 1, None)]
    assert values(scan(spark, [], SCHEMA)) == []


def test_a_value_that_is_known_only_as_the_query_runs_still_keeps_other_files_closed(
    spark: SparkSession, table: Table
) -> None:
    files = table(["wanted", "other"])
    Path(files[1].path).write_bytes(b"not Parquet")
    scan(spark, files, SCHEMA).createOrReplaceTempView("scanned")
    query = "SELECT key FROM scanned WHERE part = (SELECT max(w) FROM VALUES ('wanted') AS t(w))"
    assert [row.key for row in spark.sql(query).collect()] == [0]
    with pytest.raises(Py4JJavaError, match="not a Parquet file"):
        spark.sql("SELECT key FROM scanned").collect()
