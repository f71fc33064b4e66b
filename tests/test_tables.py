"""The warehouse: contracts of tables, and which versions are published."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from deltalake import Schema
from pyspark.sql import SparkSession

from cxr_spark import tables
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
