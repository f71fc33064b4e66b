"""A result as a table, CSV and JSON."""

import csv
import io
import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession

from cxr_spark import arrow_batches, sql_output
from cxr_spark.sql_errors import InvalidQuery

Written = tuple[str, list[str]]


def written(style: str, result: DataFrame) -> Written:
    """What a style writes, and what it says beside it."""
    out, said = io.StringIO(), []
    sql_output.FORMATS[style](result, out, said.append)
    return out.getvalue(), said


@pytest.fixture(scope="module")
def of_every_type(spark: SparkSession) -> DataFrame:
    return spark.sql(
        """SELECT 'a "b",\\n' AS text, 12345678901234567 AS whole, 1.50 AS exact,
        0.1D + 0.2D AS fraction, double('NaN') AS nan, true AS yes, X'00FF' AS bytes,
        DATE '2024-07-01' AS day, TIMESTAMP '2024-07-01 12:00:00.123456' AS moment,
        array(1.5D, double('-Infinity')) AS numbers,
        named_struct('covid', double('NaN'), 'at', TIMESTAMP '2024-07-01 12:00:00') AS nested,
        map('k', double('Infinity')) AS named, INTERVAL '1' YEAR AS age, DATE '20000-01-01' AS far,
        CAST(NULL AS struct<a: double>) AS nothing, repeat('x', 100) AS long,
        CAST(repeat('x', 100) AS binary) AS blob"""
    )


def test_json_is_one_array_with_null_for_nan_and_infinity(of_every_type: DataFrame) -> None:
    text, said = written("json", of_every_type)
    (row,) = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert said == []
    assert row | {"long": "", "blob": ""} == {
        "text": 'a "b",\n',
        "whole": 12345678901234567,
        "exact": 1.5,
        "fraction": pytest.approx(0.3),
        "nan": None,
        "yes": True,
        "bytes": "AP8=",
        "day": "2024-07-01",
        "moment": "2024-07-01T12:00:00.123456Z",
        "numbers": [1.5, None],
        "nested": {"covid": None, "at": "2024-07-01T12:00:00.000000Z"},
        "named": {"k": None},
        "age": "INTERVAL '1' YEAR",
        "far": "+20000-01-01",
        "nothing": None,
        "long": "",
        "blob": "",
    }


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_json_is_an_array_of_any_length_with_a_line_for_each_row(
    spark: SparkSession, rows: int
) -> None:
    text, _ = written("json", spark.range(rows))
    assert json.loads(text) == [{"id": i} for i in range(rows)]
    assert text.endswith("]\n") and text.count("\n") == (rows + 2 if rows else 1)


def test_a_name_twice_is_refused_before_anything_is_written(spark: SparkSession) -> None:
    twice, text, data = spark.sql("SELECT 1 AS n, 2 AS n"), io.StringIO(), io.BytesIO()
    with pytest.raises(InvalidQuery, match=r"JSON needs a name .* not twice n"):
        sql_output.write_json(twice, text, print)
    with pytest.raises(InvalidQuery, match=r"Parquet needs a name .* not twice n"):
        sql_output.write_parquet(twice, data, print)
    assert (text.getvalue(), data.getvalue()) == ("", b"")


def test_csv_follows_rfc_4180_and_keeps_every_value(of_every_type: DataFrame) -> None:
    text, said = written("csv", of_every_type)
    assert said == [] and text.endswith("\r\n")
    header, row = csv.reader(io.StringIO(text, newline=""), strict=True)
    assert header == of_every_type.columns
    cells = dict(zip(header, row, strict=True))
    assert math.isclose(float(cells.pop("fraction")), 0.3)
    assert len(cells.pop("blob")) == 4 * math.ceil(100 / 3)  # base64 on one line
    assert cells == {
        "text": 'a "b",\n',
        "whole": "12345678901234567",
        "exact": "1.50",
        "nan": "NaN",
        "yes": "true",
        "bytes": "AP8=",
        "day": "2024-07-01",
        "moment": "2024-07-01T12:00:00.123456Z",
        "numbers": "[1.5,null]",
        "nested": '{"covid":null,"at":"2024-07-01T12:00:00.000000Z"}',
        "named": '{"k":null}',
        "age": "INTERVAL '1' YEAR",
        "far": "+20000-01-01",
        "nothing": "",
        "long": "x" * 100,
    }


def test_csv_of_no_rows_is_its_header_and_may_have_a_name_twice(spark: SparkSession) -> None:
    empty = spark.sql("SELECT 1 AS n, 2 AS n").where("false")
    assert written("csv", empty) == ("n,n\r\n", [])


def test_a_query_that_fails_at_once_writes_nothing(spark: SparkSession) -> None:
    failing = spark.sql("SELECT 1 / (id - 1) FROM range(3)")
    for style, write in sql_output.FORMATS.items():
        out = io.StringIO()
        with pytest.raises(InvalidQuery, match="Division by zero"):
            write(failing.repartition(1), out, print)
        assert out.getvalue() == "", style


def test_a_table_is_aligned_with_numbers_to_the_right(spark: SparkSession) -> None:
    result = spark.sql(
        "SELECT * FROM VALUES ('Covid', 5, 0.1D + 0.2D), ('No Finding', 12345, NULL) "
        "AS t(label, n, share) ORDER BY n"
    )
    text, said = written("table", result)
    assert text.splitlines() == [
        "label           n  share",
        "----------  -----  -----",
        "Covid           5    0.3",
        "No Finding  12345   NULL",
    ]
    assert said == ["2 rows"]


def test_a_table_cuts_long_text_and_gives_the_size_of_binary(of_every_type: DataFrame) -> None:
    text, _ = written("table", of_every_type.select("long", "bytes", "nested"))
    cells = text.splitlines()[2].split("  ")
    assert cells[0] == "x" * 59 + "…"
    assert cells[1] == "<2 bytes>"
    assert cells[2].startswith('{"covid":"NaN","at":"2024-07-01T12:00:00')


def test_nothing_in_a_table_can_steer_the_terminal(spark: SparkSession) -> None:
    result = spark.createDataFrame([("\x1b[2Jgone\n\u202e",)], "`\x1b[31mred` string")
    text, _ = written("table", result)
    assert "\\x1b[2Jgone\\n\\u202e" in text and "\\x1b[31mred" in text
    assert "\x1b" not in text and "\u202e" not in text


def test_a_table_stops_at_1000_rows_and_says_so(spark: SparkSession) -> None:
    text, said = written("table", spark.range(1001))
    assert text.count("\n") == 1002
    assert said == ["only the first 1,000 rows are shown; csv, json and parquet give all"]
    assert written("table", spark.range(1000))[1] == ["1,000 rows"]


def test_rows_are_written_while_spark_still_computes_the_others(spark: SparkSession) -> None:
    class Full(Exception):
        """The reader has enough."""

    class Pipe(io.StringIO):
        def write(self, text: str) -> int:
            if self.tell() > 1000:
                raise Full
            return super().write(text)

    # Unlike the first partition, the last one can't be computed.
    late = spark.range(0, 10_000, 1, 4).selectExpr("1 / (9999 - id) AS x")
    with pytest.raises(Full):
        sql_output.write_csv(late, Pipe(), print)


def test_parquet_keeps_types_values_and_order(
    spark: SparkSession, of_every_type: DataFrame, tmp_path: Path
) -> None:
    path = tmp_path / "out.parquet"
    plain = of_every_type.drop("age", "far")
    sql_output.write_file(plain, "parquet", path, print)
    back = spark.read.parquet(str(path))
    assert [kind for _, kind in back.dtypes] == [kind for _, kind in plain.dtypes]
    assert str(back.collect()) == str(plain.collect())  # NaN is not equal to itself
    ordered = spark.range(0, 3000, 1, 5).orderBy("id", ascending=False)
    sql_output.write_file(ordered, "parquet", path, print)
    assert pq.read_table(path)["id"].to_pylist() == list(range(2999, -1, -1))


def test_parquet_of_no_rows_has_its_columns(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "none.parquet"
    sql_output.write_file(spark.range(0), "parquet", path, print)
    assert (pq.read_table(path).num_rows, pq.read_table(path).column_names) == (0, ["id"])


def test_row_groups_end_by_their_bytes(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_output, "ROW_GROUP_BYTES", 8000)
    path = tmp_path / "groups.parquet"
    sql_output.write_file(spark.range(0, 4096, 1, 1), "parquet", path, print)
    groups = pq.ParquetFile(path).metadata
    assert groups.num_rows == 4096 and 2 < groups.num_row_groups < 8


def test_binary_columns_come_in_batches_of_bounded_bytes(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = spark.range(0, 20, 1, 1).selectExpr("id", "CAST(id AS STRING) AS text")
    with_pixels = result.selectExpr("id", "struct(CAST(text AS BINARY) AS pixels) AS image")
    assert [len(batch) for batch in sql_output._arrow_batches(result)] == [20]
    assert [len(batch) for batch in sql_output._arrow_batches(with_pixels)] == [4] * 5
    monkeypatch.setattr(arrow_batches, "LARGEST_IMAGE_BYTES", 1 << 40)
    batches = list(sql_output._arrow_batches(with_pixels))
    assert [len(batch) for batch in batches] == [1] * 20
    assert [batch["id"][0].as_py() for batch in batches] == list(range(20))
    assert spark.conf.get(arrow_batches.SETTING) == "256"


def test_images_of_any_size_come_in_batches_of_bounded_bytes(spark: SparkSession) -> None:
    images = spark.createDataFrame([(4096,), (64,)], "image_size int")
    assert arrow_batches.pixels_bytes(images) == 4096**2
    assert arrow_batches.pixels_bytes(images.where("image_size > 5000")) == 0
    for side, rows in ((4096, "4"), (512, "256"), (1024, "64"), (20_000, "1")):
        with arrow_batches.bounded(spark, side**2):
            assert spark.conf.get(arrow_batches.SETTING) == rows


def test_a_type_that_parquet_has_no_form_for_is_named(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(InvalidQuery, match=r"Parquet has no form .*Interval"):
        result = spark.sql("SELECT INTERVAL '1' YEAR AS age")
        sql_output.write_file(result, "parquet", tmp_path / "out", print)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("style", sql_output.FILE_FORMATS)
def test_a_file_is_replaced_by_a_whole_result_and_left_alone_by_a_failed_one(
    spark: SparkSession, tmp_path: Path, style: str
) -> None:
    path = tmp_path / "out"
    path.write_text("of yesterday")
    late = spark.range(0, 10_000, 1, 4).selectExpr("1 / (9999 - id) AS x")
    with pytest.raises(InvalidQuery, match="Division by zero"):
        sql_output.write_file(late.orderBy("x"), style, path, print)
    assert path.read_text() == "of yesterday"
    said = []
    sql_output.write_file(spark.range(3), style, path, said.append)
    assert said[-1] == f"written to {path}"
    assert b"yesterday" not in path.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_a_text_file_is_what_stdout_would_have_shown(spark: SparkSession, tmp_path: Path) -> None:
    for style in sql_output.FORMATS:
        sql_output.write_file(spark.range(3), style, tmp_path / style, print)
        assert (tmp_path / style).read_bytes().decode() == written(style, spark.range(3))[0]
