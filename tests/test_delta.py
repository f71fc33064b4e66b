"""Delta tables on disk: what is written comes back, at every version, in every reader."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pyarrow.dataset as ds
import pytest
from pyspark.sql import Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cxr_spark import commits, delta, staging, storage

SCHEMA = T.StructType.fromJson(
    {
        "type": "struct",
        "fields": [
            {"name": name, "type": kind, "nullable": True, "metadata": {}}
            for name, kind in [
                ("key", "string"),
                ("at", "timestamp"),
                ("words", {"type": "array", "elementType": "string", "containsNull": True}),
                (
                    "numbers",
                    {
                        "type": "map",
                        "keyType": "string",
                        "valueType": "long",
                        "valueContainsNull": True,
                    },
                ),
                ("blob", "binary"),
                ("part", "string"),
                ("value", "double"),
            ]
        ],
    }
)
CONTRACT = staging.Contract(
    SCHEMA,
    key=("key",),
    required=("key",),
    partition_by=("part",),
    checks={"value_is_small": "value IS NULL OR value < 1000"},
)
REST = [f"`{name}`" for name in SCHEMA.names if name != "key"]
PARTS = ["a:b", "a b", "train", "x/y", "%41", "é=1", None]
ROWS = [
    Row(
        key=f"k{i}",
        at=datetime(2026, 1, 1, 1, 2, 3, 456789),
        words=["w", None],
        numbers={"n": i},
        blob=bytes([i, 0, 255]),
        part=part,
        value=i / 3,
    )
    for i, part in enumerate(PARTS)
]


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A folder whose name Spark's globbing and URL encoding would stumble over."""
    return str(tmp_path / "a [1] é" / "table")


def _written(spark: SparkSession, table: str, rows: list[Row], mode: str = "append") -> int:
    frame = spark.createDataFrame(rows, SCHEMA)
    staged = staging.stage(frame, table, CONTRACT)
    return commits.commit(staged, run_id="r", mode=mode)


def test_every_type_and_every_partition_value_comes_back(spark: SparkSession, table: str) -> None:
    assert _written(spark, table, ROWS) == 1
    assert sorted(delta.read(spark, table, SCHEMA).collect()) == sorted(ROWS)


def test_rows_from_the_driver_join_rows_from_spark(spark: SparkSession, table: str) -> None:
    _written(spark, table, ROWS[:2])
    extra = {"key": "d", "at": datetime(2026, 5, 1, tzinfo=UTC), "numbers": {"z": 2}, "part": "a:b"}
    staged = staging.stage_rows([extra], table, CONTRACT)
    assert commits.commit(staged, run_id="r") == 2
    row = delta.read(spark, table, SCHEMA).where("key = 'd'").collect()[0]
    assert (row.at, row.numbers, row.part, row.value) == (
        datetime(2026, 5, 1),
        {"z": 2},
        "a:b",
        None,
    )
    assert {r["key"]: r["numbers"] for r in delta.read_rows(table, ["key", "numbers"])} == {
        "k0": {"n": 0},
        "k1": {"n": 1},
        "d": {"z": 2},
    }


def test_an_older_version_stays_as_it_was(spark: SparkSession, table: str) -> None:
    _written(spark, table, ROWS[:2])
    _written(spark, table, ROWS[2:4])
    assert _written(spark, table, ROWS[4:5], mode="overwrite") == 3
    counts = [delta.read(spark, table, SCHEMA, version).count() for version in (0, 2, 3)]
    assert counts == [2, 4, 1]


def test_staged_files_are_nobodys_until_the_commit(spark: SparkSession, table: str) -> None:
    _written(spark, table, ROWS[:1])
    frame = spark.createDataFrame(ROWS[1:], SCHEMA)
    staged = staging.stage(frame, table, CONTRACT)
    assert delta.read(spark, table, SCHEMA).count() == 1
    assert delta.read_staged(spark, staged).count() == len(ROWS) - 1


def test_a_frame_that_differs_is_refused_with_the_columns_that_differ(
    spark: SparkSession, table: str
) -> None:
    frame = spark.createDataFrame(ROWS, SCHEMA).drop("value").selectExpr("*", "1 AS odd")
    frame = frame.withColumn("key", frame.key.cast("binary"))
    with pytest.raises(staging.SchemaMismatch) as refused:
        staging.stage(frame, table, CONTRACT)
    message = str(refused.value)
    assert "value is missing" in message
    assert "odd is unknown" in message
    assert "key is binary, not string" in message
    assert not Path(table).exists()


def test_a_table_of_another_schema_is_refused_at_the_commit(
    spark: SparkSession, table: str
) -> None:
    _written(spark, table, ROWS[:1])
    narrower = T.StructType(SCHEMA.fields[:1])
    staged = staging.stage_rows([{"key": "x"}], table, staging.Contract(narrower))
    with pytest.raises(staging.SchemaMismatch, match="value"):
        commits.commit(staged, run_id="r")
    assert len(delta.data_files(table)) == 1


@pytest.mark.parametrize("part", [None, "", "absent"])
def test_rows_without_a_partition_value_lie_where_spark_puts_them(
    spark: SparkSession, table: str, part: str | None
) -> None:
    row = {"key": "k"} if part == "absent" else {"key": "k", "part": part}
    from_spark = staging.stage(spark.createDataFrame([row], SCHEMA), table, CONTRACT)
    from_driver = staging.stage_rows([row], table, CONTRACT)
    for staged in (from_spark, from_driver):
        assert [file.partition for file in staged.files] == [{"part": None}]
        assert staged.files[0].path.split("/")[-2] == "part=__HIVE_DEFAULT_PARTITION__"
    with_part = replace(CONTRACT, required=("key", "part"))
    frame = spark.createDataFrame([row], SCHEMA)
    for stage, rows in ((staging.stage, frame), (staging.stage_rows, [row])):
        with pytest.raises(staging.SchemaMismatch, match="part_is_present"):
            stage(rows, table, with_part)


def test_rows_with_other_columns_or_types_are_refused_by_name(table: str) -> None:
    with pytest.raises(staging.SchemaMismatch, match="has no column odd, values"):
        staging.stage_rows([{"key": "a", "values": 1.0}, {"key": "b", "odd": 1}], table, CONTRACT)
    for name, value in (("value", "much"), ("at", "now"), ("words", 7), ("numbers", {"n": "x"})):
        with pytest.raises(staging.SchemaMismatch, match=f"a {name} is no "):
            staging.stage_rows([{"key": "a", name: value}], table, CONTRACT)
    assert not Path(table).exists()


def test_times_are_written_as_every_reader_takes_them_or_not_at_all(
    spark: SparkSession, table: str
) -> None:
    frame = spark.createDataFrame(ROWS[:1], SCHEMA)
    spark.conf.set(staging.TIMESTAMP_SETTING, "INT96")
    try:
        with pytest.raises(staging.DeltaError, match=r"outputTimestampType is INT96.*MICROS"):
            staging.stage(frame, table, CONTRACT)
    finally:
        spark.conf.set(staging.TIMESTAMP_SETTING, staging.TIMESTAMPS)
    assert not Path(table).exists()


def test_files_that_hold_fewer_rows_than_spark_wrote_are_refused(
    spark: SparkSession, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = storage.parquet_files
    monkeypatch.setattr(storage, "parquet_files", lambda folder: found(folder)[1:])
    frame = spark.createDataFrame(ROWS[:2], SCHEMA)
    with pytest.raises(staging.DeltaError, match=r"Spark wrote 2 rows, 1 are found.*share"):
        staging.stage(frame, table, CONTRACT)


def test_a_null_key_is_refused(spark: SparkSession, table: str) -> None:
    frame = spark.createDataFrame([ROWS[0].asDict() | {"key": None}], SCHEMA)
    with pytest.raises(staging.SchemaMismatch, match="key"):
        staging.stage(frame, table, CONTRACT)


def test_missing_tables_and_versions_are_named(spark: SparkSession, table: str) -> None:
    with pytest.raises(delta.NoSuchTable, match="no Delta table"):
        delta.data_files(table)
    _written(spark, table, ROWS[:1])
    for version in (7, 10**20):
        with pytest.raises(delta.NoSuchVersion, match=f"no version {version}; its newest is 1"):
            delta.data_files(table, version)
    assert delta.version(str(Path(table).parent)) is None


def test_a_version_whose_files_were_removed_is_refused_by_name(
    spark: SparkSession, table: str
) -> None:
    first = _written(spark, table, ROWS[:1])
    (file,) = delta.data_files(table, first)
    newest = _written(spark, table, ROWS[1:2], mode="overwrite")
    Path(file.path).unlink()
    with pytest.raises(delta.NoSuchVersion, match=f"the files of version {first} are gone"):
        delta.data_files(table, first)
    assert len(delta.data_files(table, newest)) == 1


def test_a_root_that_delta_cannot_hold_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    frame = spark.createDataFrame(ROWS, SCHEMA)
    with pytest.raises(staging.DeltaError, match="%"):
        staging.stage(frame, str(tmp_path / "a%41"), CONTRACT)


def _from_driver(table: str, *keys: str) -> int:
    rows = [{"key": key, "part": "train"} for key in keys]
    return commits.commit(staging.stage_rows(rows, table, CONTRACT), run_id="r")


def _log(table: str, version: int) -> Path:
    return Path(table) / "_delta_log" / f"{version:020}.json"


def _features(*names: str) -> dict[str, object]:
    of_readers = {"minReaderVersion": 3, "readerFeatures": names}
    return {**of_readers, "minWriterVersion": 7, "writerFeatures": names}


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        (_features("deletionVectors"), "deletionVectors, which are not read"),
        (_features("columnMapping"), "columnMapping, which are not read"),
        (_features("typeWidening", "timestampNtz"), "features typeWidening, which are not read"),
        ({"minReaderVersion": 2, "minWriterVersion": 5}, "column mapping, which are not read"),
        (_features("ofNextYear"), "ofNextYear.* later version of Delta"),
        ({"minReaderVersion": 4, "minWriterVersion": 7}, "later version of Delta"),
    ],
)
def test_tables_that_file_lists_would_misread_are_refused(
    table: str, protocol: dict[str, object], words: str
) -> None:
    first = _from_driver(table, "a")
    _log(table, first + 1).write_text(json.dumps({"protocol": protocol}))
    with pytest.raises(delta.UnreadableTable, match=words) as refused:
        delta.data_files(table)
    assert str(refused.value).startswith(f"{table}: ")
    assert len(delta.data_files(table, first)) == 1


@pytest.mark.parametrize("content", ["", "{{{", '{"add": 7}', "\0\0"])
def test_a_damaged_log_is_told_as_one(table: str, content: str) -> None:
    first = _from_driver(table, "a")
    for version in range(first + 1):
        _log(table, version).write_text(content)
    for ask in (delta.version, delta.data_files, lambda place: delta.data_files(place, 0)):
        with pytest.raises(delta.UnreadableTable, match="bring _delta_log back") as refused:
            ask(table)
        assert "\n" not in str(refused.value)


def test_statistics_bound_every_value(spark: SparkSession, table: str) -> None:
    long_key = "é" * 40
    rows = [ROWS[2].asDict() | {"key": key} for key in ("a", long_key)]
    frame = spark.createDataFrame(rows, SCHEMA).coalesce(1)
    (file,) = staging.stage(frame, table, CONTRACT).files
    stats = file.statistics
    assert stats["numRecords"] == 2
    assert stats["minValues"]["key"] == "a"
    assert stats["maxValues"]["key"] > long_key
    assert stats["minValues"]["at"] == "2026-01-01T01:02:03.456Z"
    assert stats["maxValues"]["at"] == "2026-01-01T01:02:03.457Z"
    assert "blob" not in stats["minValues"]


def test_what_a_footer_does_not_say_bounds_nothing_and_is_counted(
    spark: SparkSession, table: str
) -> None:
    """Spark leaves out all of long texts, pyarrow a maximum of more than 4,096 bytes."""
    by_spark = [ROWS[2].asDict() | {"key": letter * 2100} for letter in "az"]
    frame = spark.createDataFrame(by_spark, SCHEMA).coalesce(1)
    (file,) = staging.stage(frame, table, CONTRACT).files
    assert "key" not in file.statistics["nullCount"] | file.statistics["maxValues"]
    with pytest.raises(staging.SchemaMismatch, match="1 rows break the constraint key_is_present"):
        staging.stage(
            frame.unionByName(frame.limit(1).selectExpr("CAST(NULL AS STRING) AS key", *REST)),
            table,
            CONTRACT,
        )
    for keys in (["a", "z" * 5000], ["", "z" * 5000]):
        rows = [{"key": key, "part": "train"} for key in keys]
        (file,) = staging.stage_rows(rows, table, CONTRACT).files
        assert "key" not in file.statistics["maxValues"]
        assert file.statistics["nullCount"]["key"] == 0


@pytest.mark.parametrize(
    ("moment", "least", "greatest"),
    [
        (datetime(500, 1, 1), "0500-01-01T00:00:00.000Z", "0500-01-01T00:00:00.000Z"),
        (
            datetime(2600, 7, 9, 11, 12, 13, 999001),
            "2600-07-09T11:12:13.999Z",
            "2600-07-09T11:12:14.000Z",
        ),
        (datetime(9999, 12, 31, 23, 59, 59, 999500), None, None),
    ],
)
def test_bounds_of_far_times_are_bounds(
    table: str, moment: datetime, least: str | None, greatest: str | None
) -> None:
    row = {"key": "a", "part": "train", "at": moment.replace(tzinfo=UTC)}
    (file,) = staging.stage_rows([row], table, CONTRACT).files
    assert file.statistics["minValues"].get("at") == least
    assert file.statistics["maxValues"].get("at") == greatest


def test_a_time_that_python_has_no_value_for_has_no_bounds(spark: SparkSession, table: str) -> None:
    far = spark.createDataFrame(ROWS[:1], SCHEMA).withColumn(
        "at", F.expr("timestamp_seconds(1e12)")
    )
    (file,) = staging.stage(far, table, CONTRACT).files
    assert "at" not in file.statistics["maxValues"]


def test_paths_in_the_log_are_encoded_as_the_protocol_says(spark: SparkSession, table: str) -> None:
    _written(spark, table, [ROWS[0]])
    log = (Path(table) / "_delta_log" / f"{0:020}.json").read_text()
    (path,) = [json.loads(line)["add"]["path"] for line in log.splitlines() if '"add"' in line]
    (file,) = delta.data_files(table)
    assert path == quote(str(Path(file.path).relative_to(table)), safe="/=-_.")
    assert ds.dataset(file.path).count_rows() == file.num_rows == 1


def test_the_newest_row_with_some_values_is_found_in_few_files(
    spark: SparkSession, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = staging.Contract(SCHEMA)
    for minute in (3, 1, 5, 4, 2, None):
        moment = minute and datetime(2026, 1, 1, 0, minute, tzinfo=UTC)
        key = "odd" if minute in (5, None) else "even"
        row = {"key": key, "at": moment, "numbers": {"minute": minute or 0}}
        commits.commit(staging.stage_rows([row], table, contract), run_id="r")
    opened = []
    real = delta._parquet
    monkeypatch.setattr(delta, "_parquet", lambda place: opened.append(place) or real(place))
    found = delta.newest_row(table, ["numbers"], by="at", where={"key": "even"})
    assert found is not None
    assert found["numbers"] == {"minute": 4}
    assert len(opened) == 1
    assert delta.newest_row(table, ["key"], by="at", where={"key": "none"}) is None
