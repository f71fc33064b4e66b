"""Commits to predictions: no row doubled, none lost, whoever else writes."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from cxr_spark import prediction_commits
from cxr_spark.prediction_commits import Writer
from cxr_spark.tables import Warehouse
from tests.test_score import at_once


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path / "warehouse")


def row(image: str, model: str = "m", **more: Any) -> dict[str, Any]:
    known = {"size_bytes": 1, "modified_at": datetime(2026, 1, 1, tzinfo=UTC), "run_id": "r"}
    known |= {"content_sha256": sha256(image.encode()).hexdigest()}
    return {"image_id": image, "model_version": model} | known | more


def images(spark: SparkSession, warehouse: Warehouse) -> Counter[tuple[str, str]]:
    rows = warehouse.read(spark, "predictions").collect()
    return Counter((row.image_id, row.model_version) for row in rows)


def test_ten_writers_of_their_own_model_versions_lose_no_commit_and_read_no_rows(
    spark: SparkSession, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_commits, "Scored", None)  # whoever gets here would fail

    def write(model: str) -> None:
        writer = Writer(warehouse, [model], f"run of {model}")
        for number in range(3):
            writer.append([row(f"{number} a", model), row(f"{number} b", model)])

    at_once([lambda model=f"model {i}": write(model) for i in range(10)])
    found = images(spark, warehouse)
    assert len(found) == 60 and set(found.values()) == {1}


def test_rows_that_another_run_of_the_model_wrote_meanwhile_are_left_out(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    ours, theirs = (Writer(warehouse, ["m"], name) for name in ("ours", "theirs"))
    theirs.append([row("a"), row("b")])
    assert ours.append([row("b"), row("c")]) is not None
    assert ours.append([row("a")]) is None
    assert images(spark, warehouse) == Counter({("a", "m"): 1, ("b", "m"): 1, ("c", "m"): 1})


def test_a_file_of_another_time_is_another_row_and_one_without_content_is_told_by_its_place(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    theirs, ours = (Writer(warehouse, ["m"], name) for name in ("theirs", "ours"))
    unread = row("b", content_sha256=None, error="missing_file", size_bytes=None, modified_at=None)
    theirs.append([row("a"), unread])
    ours.append([row("a", modified_at=datetime(2026, 1, 2, tzinfo=UTC)), unread])
    assert images(spark, warehouse) == Counter({("a", "m"): 2, ("b", "m"): 1})


def test_a_file_that_is_as_it_was_before_another_run_missed_it_gets_its_row_once_more(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    then = datetime(2026, 1, 3, tzinfo=UTC)
    Writer(warehouse, ["m"], "first").append([row("a", scored_at=then)])
    theirs, ours = (Writer(warehouse, ["m"], name) for name in ("theirs", "ours"))
    missing = row("a", content_sha256=None, size_bytes=None, modified_at=None, error="missing_file")
    theirs.append([missing | {"scored_at": then + timedelta(1)}])
    assert ours.append([row("a", scored_at=then + timedelta(2))]) is not None
    theirs.append([row("a", scored_at=then + timedelta(3))])
    assert images(spark, warehouse) == Counter({("a", "m"): 3})


def test_rescoring_may_repeat_rows(spark: SparkSession, warehouse: Warehouse) -> None:
    Writer(warehouse, ["m"], "first").append([row("a")])
    Writer(warehouse, ["m"], "again", may_repeat=True).append([row("a")])
    assert images(spark, warehouse) == Counter({("a", "m"): 2})
