"""The drift guard on tables: what is compared with what, and how a run with drift ends."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from cxr_spark import drift, job, tables
from cxr_spark.drift import Drift, Guard
from cxr_spark.drift_figures import BINS
from cxr_spark.tables import Warehouse

NOW = datetime.now(UTC).replace(microsecond=0)


def rows(run_id: str, n: int = 150, **given: Any) -> list[dict[str, Any]]:
    """Predictions of n files, one in fifty with an error, the others sure of two classes."""
    made = []
    for i in range(n):
        row = {
            "image_id": f"file:/in/{run_id}/{i}.png",
            "model_version": "m1",
            "run_id": run_id,
            "scored_at": NOW - timedelta(days=1),
        }
        if i % 50 == 49:
            made.append(row | {"error": "unreadable"} | given)
            continue
        label = "Edema" if i % 3 else "No Finding"
        scores = {"predicted_label": label, "confidence": 0.8 + i % 10 / 100, "entropy": 0.5}
        made.append(row | scores | given)
    return made


def ended(warehouse: Warehouse, *run_ids: str, status: str = "finished", **counts: float) -> None:
    """Leave rows of runs that ended so."""
    made = [{"run_id": name, "job": "score", "status": status} for name in run_ids]
    warehouse.append_rows("runs", [row | {"counts": counts} for row in made])


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    """Yesterday's predictions, and rows that are no reference and would all raise an alarm."""
    warehouse = Warehouse(tmp_path)
    ended(warehouse, "yesterday", "old", "another-model", "curated")
    covid = {"predicted_label": "Covid", "confidence": 0.3, "entropy": 2.1, "error": None}
    made = [
        *rows("yesterday"),
        *rows("old", scored_at=NOW - timedelta(days=31), **covid),
        *rows("another-model", model_version="m2", **covid),
        *rows("curated", images_version=4, **covid),
    ]
    warehouse.append_rows("predictions", made)
    return warehouse


def night() -> job.Run:
    run = job.Run("score")
    run.run_id = "tonight"
    run.counts["scored"] = 150
    return run


def check(spark: SparkSession, warehouse: Warehouse, run_id: str, **given: Any) -> Drift:
    return drift.check(spark, warehouse, run_id, "m1", NOW, Guard(**given))


def test_files_are_compared_with_those_of_the_same_model_in_the_days_before(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    warehouse.append_rows("predictions", rows("tonight", scored_at=NOW))
    found = check(spark, warehouse, "tonight")
    assert (found.images, found.reference_images, found.beyond) == (150, 150, [])
    assert [figure.moved for figure in found.figures] == pytest.approx([0.0] * 4)
    longer = check(spark, warehouse, "tonight", reference_days=40)
    assert longer.reference_images == 300
    assert longer.beyond == ["class_shares", "confidence"]


def test_a_named_run_is_the_reference_be_it_of_images_or_of_files(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    warehouse.append_rows("predictions", rows("tonight", scored_at=NOW))
    assert check(spark, warehouse, "tonight", reference_run="yesterday").beyond == []
    found = check(spark, warehouse, "tonight", reference_run="curated")
    assert found.reference_images == 150
    assert "class_shares" in found.beyond
    assert check(spark, warehouse, "tonight", reference_run="another-model").figures == []


def test_rows_of_runs_that_ended_unjudged_are_judged_by_the_next_and_no_reference(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    shifted = {"predicted_label": "Covid", "error": None, "confidence": 0.3, "entropy": 2.1}
    for name, hours in (("failed", 9), ("killed", 8)):
        earlier = NOW - timedelta(hours=hours)
        warehouse.append_rows("predictions", rows(name, scored_at=earlier, **shifted))
    ended(warehouse, "failed", status="failed")
    warehouse.append_rows("predictions", rows("tonight", scored_at=NOW))
    found = check(spark, warehouse, "tonight")
    assert (found.images, found.reference_images) == (450, 150)
    assert "class_shares" in found.beyond
    named = check(spark, warehouse, "tonight", reference_run="killed")
    assert (named.images, named.reference_images) == (300, 150)
    ended(warehouse, "tonight", status="stopped", judged=450)
    warehouse.append_rows("predictions", rows("tomorrow", scored_at=NOW + timedelta(days=1)))
    after = check(spark, warehouse, "tomorrow")
    assert (after.images, after.reference_images) == (150, 600)


def test_a_run_is_judged_when_its_time_is_over_and_left_to_the_next_after_sigterm(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    shifted = rows("tonight", predicted_label="Covid", scored_at=NOW, error=None)
    warehouse.append_rows("predictions", shifted)
    run = night()
    with pytest.raises(drift.Drifted), drift.watching(spark, warehouse, run, ["m1"]):
        raise job.Stopped("stopped, as --max-runtime is over")
    assert run.counts["judged"] == 150
    run = night()
    with pytest.raises(job.Stopped), drift.watching(spark, warehouse, run, ["m1"]):
        run.sigterm()
    assert "judged" not in run.counts
    with pytest.raises(drift.Drifted), drift.watching(spark, warehouse, night(), ["m1"]):
        pass


def test_curated_images_are_never_judged(spark: SparkSession, warehouse: Warehouse) -> None:
    found = check(spark, warehouse, "curated")
    assert (found.images, found.figures) == (0, [])
    assert "not judged" in found.words[0]


def test_a_first_run_has_no_reference(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    assert check(spark, warehouse, "first") == Drift(0, 0, [])
    warehouse.append_rows("predictions", rows("first", scored_at=NOW))
    assert check(spark, warehouse, "first") == Drift(150, 0, [])


def test_histograms_hold_every_row_in_its_bin(spark: SparkSession) -> None:
    schema = tables.schema("predictions")
    cells = [
        ("Atelectasis", 0.0, 0.0, None),
        ("Tuberculosis", 1.0, math.log(9), None),
        ("Edema", 0.505, -1e-16, None),
        (None, float("nan"), float("nan"), "blank"),
    ]
    names = ("predicted_label", "confidence", "entropy", "error")
    given = [dict.fromkeys(schema.names) | dict(zip(names, cell, strict=True)) for cell in cells]
    frame = spark.createDataFrame(given, schema).selectExpr("*", "'now' AS side")
    found = drift.histograms(frame)["now"]
    assert found.classes.tolist() == [1, 0, 0, 1, 0, 0, 0, 0, 1]
    assert np.flatnonzero(found.confidence).tolist() == [0, 50, BINS["confidence"] - 1]
    assert found.entropy[[0, -1]].tolist() == [2, 1]
    assert found.errors.tolist() == [3, 1]


def test_a_run_with_drift_says_so_and_ends_with_exit_code_4(
    spark: SparkSession, warehouse: Warehouse, capsys: pytest.CaptureFixture[str]
) -> None:
    run = night()
    shifted = rows("tonight", predicted_label="Covid", scored_at=NOW, error=None)
    warehouse.append_rows("predictions", shifted)
    with pytest.raises(drift.Drifted, match=r"class_shares of m1\. What was scored is committed"):
        drift.watch(spark, warehouse, run, ["m1"])
    assert job.EXIT_CODES[drift.Drifted.status] == 4
    said = capsys.readouterr().err
    assert "drift: 150 images, 150 of the reference" in said
    assert "! class shares (total variation): Covid 0.000 to 1.000" in said
    assert run.counts["drift.class_shares"] == 1.0
    assert run.outputs["drift"]["m1"]["beyond"] == ["class_shares"]  # type: ignore[index]


def test_several_models_are_judged_each_by_its_own_reference(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    run = night()
    warehouse.append_rows("predictions", rows("tonight", scored_at=NOW))
    warehouse.append_rows("predictions", rows("tonight", scored_at=NOW, model_version="m2"))
    with pytest.raises(drift.Drifted, match="of m2"):
        drift.watch(spark, warehouse, run, ["m1", "m2"])
    assert run.counts["drift.class_shares"] > 0.9


@pytest.mark.parametrize("run_id", ["nothing-new", "curated"])
def test_nothing_is_said_of_a_run_that_scored_no_files(
    spark: SparkSession, warehouse: Warehouse, capsys: pytest.CaptureFixture[str], run_id: str
) -> None:
    run = night()
    run.run_id = run_id
    drift.watch(spark, warehouse, run, ["m1"])
    assert capsys.readouterr().err == ""
    assert run.outputs["drift"] == {}


def guard(warehouse: Warehouse, *arguments: str) -> Guard:
    options = job.parser("score", "")
    drift.add_options(options)
    return drift.guard_of(options.parse_args(arguments), warehouse)


def test_the_options_make_the_guard(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    assert guard(warehouse) == Guard()
    with pytest.raises(drift.DriftOptionError, match="no such run"):
        guard(warehouse, "--drift-reference", "score-1")
    warehouse.append_rows("runs", [{"run_id": "score-1"}])
    given = ("--drift-reference", "score-1", "--drift-days", "7", "--drift-limit", "errors=0.5")
    limits = {"class_shares": 0.15, "confidence": 0.05, "errors": 0.5, "unusual": 0.04}
    assert guard(warehouse, *given) == Guard(7.0, "score-1", limits)
    with pytest.raises(drift.DriftOptionError, match="no such run"):
        guard(warehouse, "--drift-reference", "score-2")
    for days in ("0", "-1", "nan", "inf", "1e6"):
        with pytest.raises(drift.DriftOptionError, match="more than 0"):
            guard(warehouse, "--drift-days", days)


def test_limits_are_given_by_name_and_others_stay() -> None:
    limits = drift.parse_limits(["errors=0.5", "confidence=0"])
    assert limits == {"class_shares": 0.15, "confidence": 0.0, "errors": 0.5, "unusual": 0.04}
    for wrong in ("error=1", "errors", "errors=much", "errors=-1", "errors=nan"):
        with pytest.raises(drift.DriftOptionError, match=wrong):
            drift.parse_limits([wrong])
