"""Commits to Delta tables: constraints, writers side by side, commits tried again, new columns."""

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError
from deltalake.exceptions import DeltaError as DeltaRsError
from pyspark.sql import SparkSession
from pyspark.sql import types as T

from cxr_spark import commits, delta, staging, tables
from cxr_spark.contracts import Contract, SchemaMismatch
from tests.conftest import REPOSITORY

SCHEMA = (
    T.StructType()
    .add("key", T.StringType())
    .add("day", T.StringType())
    .add("value", T.DoubleType())
    .add("blob", T.BinaryType())
)
CONTRACT = Contract(
    SCHEMA,
    key=("key", "day"),
    required=("key",),
    partition_by=(),
    checks={"value_is_small": "value IS NULL OR value < 1000"},
)


@pytest.fixture
def table(tmp_path: Path) -> str:
    return str(tmp_path / "table")


def appended(table: str, *keys: str, run_id: str = "r", sequence: int | None = None) -> int:
    staged = staging.stage_rows([{"key": key} for key in keys], table, CONTRACT)
    return commits.commit(staged, run_id=run_id, sequence=sequence)


def keys(table: str) -> list[str]:
    return sorted(row["key"] for row in delta.read_rows(table, ["key"]))


def test_constraints_stand_in_the_log_and_bind_other_writers(table):
    appended(table, "a")
    for column, value in (("value", 5000.0), ("key", None)):
        row = pa.table(
            {
                "key": pa.array([None if column == "key" else "b"], pa.string()),
                "day": pa.array([None], pa.string()),
                "value": pa.array([value if column == "value" else 1.0], pa.float64()),
                "blob": pa.array([None], pa.binary()),
            }
        )
        with pytest.raises(DeltaRsError, match="failed validation"):
            write_deltalake(table, row, mode="append")
    assert keys(table) == ["a"]


@pytest.mark.parametrize(
    ("row", "constraint"),
    [({"key": "a", "value": 5000.0}, "value_is_small"), ({"value": 1.0}, "key_is_present")],
)
def test_rows_that_break_a_constraint_are_refused_before_they_count(
    spark: SparkSession, table, row, constraint
):
    with pytest.raises(SchemaMismatch, match=constraint):
        staging.stage_rows([row], table, CONTRACT)
    with pytest.raises(SchemaMismatch, match=constraint):
        staging.stage(spark.createDataFrame([row], SCHEMA), table, CONTRACT)


def test_nan_is_no_null_but_breaks_a_bound_whoever_writes_it(spark: SparkSession, table):
    bounded = replace(CONTRACT, checks={"value_is_small": "value IS NULL OR value <= 1"})
    row = {"key": "a", "value": math.nan}
    for contract in (CONTRACT, bounded):
        with pytest.raises(SchemaMismatch, match="value_is_small"):
            staging.stage_rows([row], table, contract)
        with pytest.raises(SchemaMismatch, match="value_is_small"):
            staging.stage(spark.createDataFrame([row], SCHEMA), table, contract)
    at_least = replace(CONTRACT, checks={"value_is_large": "value >= 1"})
    for staged in (
        staging.stage_rows([row], table, at_least),
        staging.stage(spark.createDataFrame([row], SCHEMA), table, at_least),
    ):
        assert staged.num_rows == 1


PLAIN = Contract(SCHEMA, required=("key",))
PART = pa.table({"key": ["a"], "day": ["d"], "value": [1.0], "blob": [b""]})


def test_a_null_in_a_required_column_of_a_part_is_refused(table):
    rows = pa.concat_tables([PART, PART.set_column(0, "key", pa.array([None], pa.string()))])
    with pytest.raises(SchemaMismatch, match="1 rows break the constraint key_is_present"):
        staging.stage_arrow(rows, table, PLAIN)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (PART.drop(["day"]).append_column("more", PART["day"]), "day is missing; more is unknown"),
        (PART.set_column(2, "value", pa.array([1])), "value is bigint, not double"),
        (PART.set_column(2, "value", pa.array([1.0], pa.float32())), "value is float, not double"),
        (PART.set_column(1, "day", pa.array([1], pa.uint8())), "day is uint8, not string"),
        (PART.select(["day", "key", "value", "blob"]), "in another order"),
    ],
)
def test_arrow_columns_and_parts_that_differ_are_refused(table, rows, message):
    with pytest.raises(SchemaMismatch, match=message):
        staging.stage_arrow(rows, table, PLAIN)
    part = staging.write_part(rows, staging.new_folder(table))
    with pytest.raises(SchemaMismatch, match=rf"part-.*{message}"):
        staging.stage_parts([part], PLAIN)


def test_a_part_that_is_not_found_is_told_before_any_commit(table):
    folder = staging.new_folder(table)
    parts = [staging.write_part(PART, folder) for _ in range(2)]
    assert staging.stage_parts(parts, PLAIN).num_rows == 2
    Path(parts[1]).unlink()
    with pytest.raises(staging.DeltaError, match=r"part-.*must share the warehouse's storage"):
        staging.stage_parts(parts, PLAIN)


def test_a_table_that_was_made_without_constraints_gets_them_with_the_next_commit(table):
    staged = staging.stage_rows([{"key": "a"}], table, Contract(SCHEMA))
    commits.commit(staged, run_id="r")
    made = set(DeltaTable(table).metadata().configuration)
    appended(table, "b")
    declared = set(DeltaTable(table).metadata().configuration) - made
    assert declared == {f"delta.constraints.{name}" for name in CONTRACT.constraints()}


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_of_ours_can_declare_its_constraints(tmp_path: Path, name: str):
    contract = tables.contract(name)
    empty = staging.Staged(str(tmp_path / name), contract, [])
    commits.commit(empty, run_id="r")
    declared = DeltaTable(str(tmp_path / name)).metadata().configuration
    assert declared["delta.enableExpiredLogCleanup"] == "false"  # versions of old models stay
    assert len(declared) - 1 == len(contract.constraints()) >= 1


def test_a_commit_that_is_made_twice_lands_once(table):
    assert appended(table, "a", sequence=0) == 1
    assert appended(table, "b", sequence=1) == 2
    assert appended(table, "a", sequence=0) == 1
    assert appended(table, "b", sequence=1) == 2
    assert appended(table, "c", run_id="another", sequence=0) == 3
    assert keys(table) == ["a", "b", "c"]


APPENDER = """
import sys
from tests.test_commits import appended
for number in range(20):
    appended(sys.argv[1], f"{sys.argv[2]}-{number}", run_id=sys.argv[2], sequence=number)
"""


def test_two_processes_that_append_at_once_lose_and_double_nothing(table):
    """From the creation of the table on, which only one of them can do."""
    command = [sys.executable, "-c", APPENDER, table]
    both = [subprocess.Popen([*command, name], cwd=REPOSITORY) for name in ("x", "y")]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert keys(table) == sorted(f"{name}-{number}" for name in "xy" for number in range(20))
    assert len({file.path for file in delta.data_files(table)}) == 40


def test_an_append_after_another_writers_overwrite_is_tried_again(table, monkeypatch):
    appended(table, "a")
    stale = delta.open_table(table)
    staged = staging.stage_rows([{"key": "o"}], table, CONTRACT)
    commits.commit(staged, run_id="overwriter", mode="overwrite")
    fresh = delta.open_table
    opened = iter([stale])
    monkeypatch.setattr(
        delta, "open_table", lambda path, at=None: next(opened, None) or fresh(path, at)
    )
    appended(table, "b")
    assert keys(table) == ["b", "o"]


def test_an_overwrite_beside_another_writer_is_refused_and_replaces_nothing(table, monkeypatch):
    appended(table, "a")
    stale = delta.open_table(table)
    appended(table, "b")
    monkeypatch.setattr(delta, "open_table", lambda path, at=None: stale)
    staged = staging.stage_rows([{"key": "o"}], table, CONTRACT)
    with pytest.raises(commits.ConcurrentWrite, match="run it again"):
        commits.commit(staged, run_id="r", mode="overwrite")
    monkeypatch.undo()
    assert keys(table) == ["a", "b"]


def test_an_overwrite_of_a_version_that_is_no_longer_the_newest_is_refused(table):
    seen = appended(table, "a")
    appended(table, "b")
    staged = staging.stage_rows([{"key": "o"}], table, CONTRACT)
    for expected in (seen, -1):
        with pytest.raises(commits.ConcurrentWrite, match="run it again"):
            commits.commit(staged, run_id="r", mode="overwrite", expected=expected)
    assert keys(table) == ["a", "b"]
    commits.commit(staged, run_id="r", mode="overwrite", expected=seen + 1)
    assert keys(table) == ["o"]


def test_an_overwrite_of_partitions_keeps_the_rows_of_others(table):
    by_day = replace(CONTRACT, partition_by=("day",))

    def staged(**days: str):
        rows = [{"key": key, "day": day} for key, day in days.items()]
        return staging.stage_rows(rows, table, by_day)

    commits.commit(staged(a="mon", b="tue", c="wed", d="mon"), run_id="r")
    new = staged(e="mon", f="thu")
    commits.commit(new, run_id="r", mode="overwrite", partitions=["mon", "wed"])
    assert keys(table) == ["b", "e", "f"]
    version = delta.version(table)
    plain = staging.stage_rows([{"key": "x"}], f"{table}-of-one", CONTRACT)
    with pytest.raises(staging.DeltaError, match="no one partition column"):
        commits.commit(plain, run_id="r", mode="overwrite", partitions=["mon"])
    assert delta.version(table) == version
    assert delta.version(f"{table}-of-one") is None


def test_a_commit_that_two_writers_make_at_once_lands_once(table, monkeypatch):
    """The second has not seen the first's transaction when it looks."""
    appended(table, "a")
    stale, fresh = delta.open_table(table), delta.open_table
    first = appended(table, "b", run_id="same", sequence=0)
    opened = iter([stale])
    monkeypatch.setattr(
        delta, "open_table", lambda path, at=None: next(opened, None) or fresh(path, at)
    )
    assert appended(table, "b", run_id="same", sequence=0) == first
    assert keys(table) == ["a", "b"]


def test_an_append_that_never_gets_its_turn_ends_as_busy(table, monkeypatch):
    appended(table, "a")
    tried = []

    def too_late(*arguments):
        tried.append(arguments)
        raise CommitFailedError("another was faster")

    monkeypatch.setattr(commits, "_write", too_late)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(commits.ConcurrentWrite, match="run it again") as refused:
        appended(table, "b")
    assert len(tried) == commits.APPEND_ATTEMPTS
    assert refused.value.status == "busy"


def frame(spark: SparkSession, *keys: str | None):
    return spark.createDataFrame([(key, None, 1.0, b"x") for key in keys], SCHEMA)


def test_only_rows_with_a_new_key_are_appended_and_nothing_is_written_again(
    spark: SparkSession, table
):
    assert commits.append_new(spark, frame(spark, "a", "b"), table, CONTRACT, run_id="r") == 1
    before = {file.path for file in delta.data_files(table)}
    assert commits.append_new(spark, frame(spark, "b", "c"), table, CONTRACT, run_id="r") == 2
    assert keys(table) == ["a", "b", "c"]
    assert before < {file.path for file in delta.data_files(table)}
    assert commits.append_new(spark, frame(spark, "a"), table, CONTRACT, run_id="r") is None


def test_a_key_that_stands_twice_in_the_frame_is_refused(spark: SparkSession, table):
    with pytest.raises(SchemaMismatch, match=r"'key': 'a'.*2 times"):
        commits.append_new(spark, frame(spark, "a", "a", "b"), table, CONTRACT, run_id="r")


def test_a_key_that_another_writer_adds_meanwhile_is_not_doubled(
    spark: SparkSession, table, monkeypatch
):
    appended(table, "z")
    stage, others = staging.stage, [("b", "y"), ("q",)]

    def stage_while_others_write(*arguments, **options):
        staged = stage(*arguments, **options)
        if others:
            monkeypatch.setattr(staging, "stage", stage)
            appended(table, *others.pop())
            appended(table, *others.pop())
            monkeypatch.setattr(staging, "stage", stage_while_others_write)
        return staged

    monkeypatch.setattr(staging, "stage", stage_while_others_write)
    commits.append_new(spark, frame(spark, "a", "b"), table, CONTRACT, run_id="r")
    assert keys(table) == ["a", "b", "q", "y", "z"]


WIDER = Contract(
    T.StructType([*SCHEMA.fields, T.StructField("note", T.StringType())]), required=("key",)
)


def test_a_column_is_added_by_one_call_and_is_null_in_what_was_there(spark: SparkSession, table):
    appended(table, "a")
    staged = staging.stage_rows([{"key": "b", "note": "new"}], table, WIDER)
    with pytest.raises(SchemaMismatch, match=r"note \(None there, string here\)"):
        commits.commit(staged, run_id="r")
    assert commits.add_columns(table, WIDER, run_id="r") == ["note"]
    assert commits.add_columns(table, WIDER, run_id="r") == []
    commits.commit(staged, run_id="r")
    notes = {"a": None, "b": "new"}
    assert {r["key"]: r["note"] for r in delta.read_rows(table, ["key", "note"])} == notes
    frame = delta.read(spark, table, WIDER.schema)
    assert {row.key: row.note for row in frame.collect()} == notes
    narrow = pa.schema({"key": pa.string(), "note": pa.string()})
    assert set(map(tuple, delta.read_arrow(table, narrow).to_pandas().values)) == set(notes.items())


def test_a_column_of_another_type_is_no_addition(table):
    appended(table, "a")
    other = Contract(T.StructType.fromJson(json.loads(SCHEMA.json().replace("double", "string"))))
    with pytest.raises(SchemaMismatch, match=r"value \(double there, string here\)"):
        commits.add_columns(table, other, run_id="r")


def test_a_moment_gives_the_version_of_that_time(table):
    before = datetime.now(UTC)
    first = appended(table, "a")
    time.sleep(0.01)
    between = datetime.now(UTC)
    time.sleep(0.01)
    second = appended(table, "b")
    assert delta.version_at(table, between) == first
    assert delta.version_at(table, datetime.now(UTC)) == second
    with pytest.raises(delta.NoSuchVersion, match="has no version of"):
        delta.version_at(table, before - timedelta(seconds=1))


@pytest.mark.parametrize(
    "protocol",
    [
        {"minReaderVersion": 1, "minWriterVersion": 4},
        {"minReaderVersion": 1, "minWriterVersion": 7, "writerFeatures": ["rowTracking"]},
    ],
)
def test_a_table_with_features_of_writing_that_are_unknown_is_not_written_to(table, protocol):
    appended(table, "a")
    log = Path(table) / "_delta_log" / f"{2:020}.json"
    log.write_text(json.dumps({"protocol": protocol}))
    with pytest.raises(staging.DeltaError, match="writer features"):
        appended(table, "b")
    assert keys(table) == ["a"]


@pytest.mark.long
def test_a_thousand_commits_open_as_fast_as_ten(table):
    """A checkpoint each hundred commits; ten times is far from a thousand commits' hundredfold."""

    def seconds() -> float:
        began = time.perf_counter()
        delta.data_files(table)
        return time.perf_counter() - began

    for number in range(1000):
        appended(table, str(number))
        if number == 9:
            few = min(seconds() for _ in range(5))
    assert len(list((Path(table) / "_delta_log").glob("*.checkpoint.parquet"))) >= 9
    assert len(keys(table)) == 1000
    assert min(seconds() for _ in range(5)) < max(10 * few, 0.1)
