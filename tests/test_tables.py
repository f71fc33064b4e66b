"""The warehouse: contracts of tables, and which versions are published."""

import argparse
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from deltalake import Schema
from pyspark.sql import Row, SparkSession
from pyspark.sql import types as T

from cxr_spark import commits, delta, job, staging, tables
from cxr_spark.labels import CLASS_COLUMNS
from cxr_spark.tables import Warehouse

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


def _record(warehouse: Warehouse, minute: int, job: str, status: str, **versions: int) -> None:
    row = {
        "run_id": f"{job}-{minute}",
        "job": job,
        "status": status,
        "finished_at": MOMENT + timedelta(minutes=minute),
        "versions_written": versions,
    }
    warehouse.append_rows("runs", [row])


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_contract_is_one_that_delta_holds(name: str) -> None:
    contract = tables.contract(name)
    assert contract.description
    assert set(contract.key) | set(contract.partition_by) <= set(contract.schema.names)
    assert len(Schema.from_json(contract.schema.json()).fields) == len(contract.schema)


def test_the_probabilities_are_the_nine_classes_in_order() -> None:
    struct = tables.schema("predictions")["probabilities"].dataType
    assert tuple(struct.names) == CLASS_COLUMNS


def test_published_is_what_the_last_finished_curate_run_names(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    assert warehouse.published() == {}
    _record(warehouse, 1, "curate", "finished", images=0, rejects=0)
    _record(warehouse, 3, "curate", "finished", images=4, rejects=2)
    _record(warehouse, 2, "curate", "finished", images=3, rejects=1)
    _record(warehouse, 4, "curate", "failed", images=5)
    _record(warehouse, 5, "score", "finished", images=6)
    assert warehouse.published() == {"images": 4, "rejects": 2}
    assert warehouse.current("images") == 4
    assert warehouse.published_with(3).versions == {"images": 3, "rejects": 1}
    with pytest.raises(tables.NoSuchVersion, match=r"published: \[0, 3, 4\]"):
        warehouse.published_with(5)
    assert warehouse.version_at("images", MOMENT + timedelta(minutes=2, seconds=30)) == 3
    with pytest.raises(tables.NothingPublished, match="by 2026-01-01 00:00"):
        warehouse.version_at("images", MOMENT)
    assert warehouse.version_at("runs", datetime.now(UTC)) == warehouse.version("runs")


def test_a_run_publishes_though_the_clock_was_set_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warehouse, options = Warehouse(tmp_path), argparse.Namespace(warehouse=tmp_path)
    hours = (3, 1, 2)
    for version, hour in enumerate(hours):
        run = job.Run("curate")
        run.versions_written["images"] = version
        job.record(run, options, "", MOMENT + timedelta(hours=hour))
        assert warehouse.published() == {"images": version}
    job.record(job.Run("score"), options, "", MOMENT)
    assert [run.versions["images"] for run in warehouse.curate_runs()] == [0, 1, 2]
    assert warehouse.version_at("images", MOMENT + timedelta(hours=4)) == 2
    rows = delta.read_rows(warehouse.path("runs"), ("job", "finished_at"))
    assert [row["finished_at"] for row in rows if row["job"] == "score"] == [MOMENT]
    assert capsys.readouterr().err.count("clock is behind that of the last published run") == 2


ALLOWED = {"label": "Covid", "split": "train", "confidence": 0.25}


def _value(kind: T.DataType, number: int) -> Any:
    """Some value of a type, as Spark gives it."""
    match kind:
        case T.StringType():
            return f"é {number}"
        case T.DoubleType():
            return number / 3
        case T.IntegerType() | T.LongType():
            return number
        case T.BooleanType():
            return number % 2 == 0
        case T.BinaryType():
            return bytearray([number, 0, 255])
        case T.TimestampType():
            return datetime(2500, 1, 2, 3, 4, 5, number)
        case T.ArrayType():
            return [_value(kind.elementType, number), None]
        case T.MapType():
            return {_value(kind.keyType, number): _value(kind.valueType, number)}
        case T.StructType():
            return Row(**{f.name: _value(f.dataType, number) for f in kind})
    raise AssertionError(kind)


def _plain(value: Any) -> Any:
    """A value as a row from the driver has it."""
    match value:
        case Row():
            return {name: _plain(one) for name, one in value.asDict().items()}
        case list():
            return [_plain(one) for one in value]
        case bytearray():
            return bytes(value)
        case datetime():
            return value.replace(tzinfo=UTC)
    return value


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_column_of_every_table_comes_back_whoever_wrote_it(
    spark: SparkSession, tmp_path: Path, name: str
) -> None:
    warehouse, contract = Warehouse(tmp_path), tables.contract(name)
    fields = contract.schema.fields
    full, other = (
        Row(**{f.name: ALLOWED.get(f.name, _value(f.dataType, number)) for f in fields})
        for number in (1, 2)
    )
    known = {*contract.required, "split", "reason"}
    empty = Row(**{f.name: other[f.name] if f.name in known else None for f in fields})
    frame = spark.createDataFrame([full, empty], contract.schema).coalesce(1)
    commits.commit(warehouse.stage(name, frame), run_id="spark")
    given = {field: _plain(value) for field, value in other.asDict().items()}
    staged = staging.stage_rows([given], warehouse.path(name), contract)
    version = commits.commit(staged, run_id="driver")
    found = warehouse.read(spark, name, version).collect()
    assert sorted(found, key=str) == sorted([full, empty, other], key=str)
    stored = [f.name for f in fields if f.name not in contract.partition_by]
    rows = delta.read_rows(warehouse.path(name), stored, version)
    assert {field: given[field] for field in stored} in rows


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    with pytest.raises(tables.NothingPublished, match=r"run jobs/curate\.py"):
        warehouse.current("images")
    with pytest.raises(tables.NoSuchTable, match="predictions"):
        warehouse.current("predictions")


def test_rows_are_compared_by_key_with_nulls_and_order_in_view(spark: SparkSession) -> None:
    schema = "id string, words array<string>, note string"
    left = spark.createDataFrame([("a", ["x"], None), ("b", None, "n")], schema)
    same = spark.createDataFrame([("b", None, "other"), ("a", ["x"], None)], schema)
    assert tables.same_rows(left, same, key=["id"], ignoring=("note",))
    assert not tables.same_rows(left, same, key=["id"])
    for other in ([("a", ["x"], None)], [("a", ["x"], None), ("b", [], "n")]):
        assert not tables.same_rows(left, spark.createDataFrame(other, schema), key=["id"])


def test_files_of_images_are_about_eight_megabytes() -> None:
    assert tables.rows_per_file(224) * 224**2 == pytest.approx(8 << 20, rel=0.01)
    assert tables.rows_per_file(4096) == 1
