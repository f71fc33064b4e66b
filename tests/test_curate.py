"""Ingest and curation on small drawn sources: every file is accounted for, and reruns are exact."""

import argparse
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pyspark.sql import Row, SparkSession

from cxr_spark import curate, delta, expectations, ingest, job, selection
from cxr_spark.images import Preprocessing
from cxr_spark.tables import Warehouse

SIZE = 32


def draw(path: Path, seed: int, size: int = 80) -> Path:
    """A grey picture that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 8), dtype=np.uint8)
    picture = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    assert cv2.imwrite(str(path), picture)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Two small sources: twelve tuberculosis files, ten of pneumonia."""
    roots = {name: tmp_path / name for name in ("tuberculosis", "pneumonia")}
    base = roots["tuberculosis"] / "TB_Chest_Radiography_Database"
    for i in range(8):
        draw(base / "Tuberculosis" / f"Tuberculosis-{i}.png", i)
    for i in range(4):
        draw(base / "Normal" / f"Normal-{i}.png", 100 + i)
    chest = roots["pneumonia"] / "chest_xray" / "train"
    for i in range(8):
        draw(chest / "PNEUMONIA" / f"person{i // 2}_virus_{i}.jpeg", 200 + i)
    (chest / "PNEUMONIA" / "person90_virus_90.jpeg").write_bytes(b"")
    (chest / "PNEUMONIA" / "person91_virus_91.jpeg").write_bytes(b"no picture at all" * 9)
    return roots


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path / "warehouse")


Curate = Callable[..., job.Run]


@pytest.fixture
def run_curate(spark: SparkSession, warehouse: Warehouse) -> Curate:
    """Runs both stages and publishes, as jobs/curate.py does, in this process."""

    def run(folders: dict[str, Path], size: int = SIZE, publish: bool = True) -> job.Run:
        one = job.Run("curate")
        preprocessing = Preprocessing(size=size)
        listed = ingest.list_sources(folders)
        files = ingest.ingest(spark, warehouse, listed, preprocessing, one)
        curate.curate(spark, warehouse, curate.Change(*files), preprocessing, one)
        if publish:
            options = argparse.Namespace(warehouse=str(warehouse.root))
            job.record(one, options, "", datetime.now(UTC))
            assert one.status == "finished"
        return one

    return run


def _contents(spark: SparkSession, warehouse: Warehouse, name: str) -> list[Row]:
    frame = warehouse.read(spark, name)
    columns = [column for column in frame.columns if column != "run_id"]
    return sorted(frame.select(*columns).collect(), key=lambda row: row.image_id)


def _reasons(spark: SparkSession, warehouse: Warehouse) -> dict[str, str]:
    return {
        row.image_id.split("/")[-1]: row.reason for row in _contents(spark, warehouse, "rejects")
    }


def test_every_file_is_an_image_or_a_reject_with_its_reason(
    spark: SparkSession, warehouse: Warehouse, folders: dict[str, Path], run_curate: Curate
) -> None:
    run = run_curate(folders)
    images = _contents(spark, warehouse, "images")
    assert [row.label for row in images].count("Tuberculosis") == 8
    assert [row.label for row in images].count("Pneumonia") == 8
    assert _reasons(spark, warehouse) == {
        **{f"Normal-{i}.png": "class_not_selected" for i in range(4)},
        "person90_virus_90.jpeg": "empty_file",
        "person91_virus_91.jpeg": "unreadable",
    }
    listed = warehouse.read(spark, "images_raw")
    accounted = {r.image_id for r in images} | {
        r.image_id for r in _contents(spark, warehouse, "rejects")
    }
    assert {row.image_id for row in listed.collect()} == accounted
    assert len(accounted) == 22 == run.counts["listed"] == run.counts["images"] + 6
    assert all(len(row.pixels) == SIZE * SIZE for row in images)
    assert len({bytes(row.pixels) for row in images}) == 16


def test_patients_stay_together(
    spark: SparkSession, warehouse: Warehouse, folders: dict[str, Path], run_curate: Curate
) -> None:
    run_curate(folders)
    rows = [r for r in _contents(spark, warehouse, "images") if r.source == "pneumonia"]
    assert {row.group_id for row in rows} == {f"pneumonia:virus{i}" for i in range(4)}
    assert len({(row.group_id, row.split) for row in rows}) == 4


def test_a_rerun_without_changes_commits_nothing_but_its_runs_row(
    spark: SparkSession, warehouse: Warehouse, folders: dict[str, Path], run_curate: Curate
) -> None:
    run_curate(folders)
    tables = ("images_raw", "pixels", "images", "rejects", "runs")
    before = {name: warehouse.version(name) for name in tables}
    files = {p for p in warehouse.root.rglob("*") if p.is_file() and "runs" not in p.parts}
    run = run_curate(folders)
    after = {name: warehouse.version(name) for name in tables}
    assert after == before | {"runs": 1}
    assert {p for p in warehouse.root.rglob("*") if p.is_file() and "runs" not in p.parts} == files
    assert run.counts["decoded"] == 0
    assert run.versions_written == {n: before[n] for n in ("images_raw", "images", "rejects")}


def test_a_new_file_is_appended_and_only_it_is_decoded(
    spark: SparkSession, warehouse: Warehouse, folders: dict[str, Path], run_curate: Curate
) -> None:
    run_curate(folders)
    before = {file.path for file in warehouse.files("images")}
    database = folders["tuberculosis"] / "TB_Chest_Radiography_Database"
    draw(database / "Tuberculosis" / "Tuberculosis-77.png", 77)
    run = run_curate(folders)
    assert run.counts["decoded"] == 1
    assert before < {file.path for file in warehouse.files("images")}
    assert len(_contents(spark, warehouse, "images")) == 17


def test_changed_and_vanished_files_are_followed(
    spark: SparkSession, warehouse: Warehouse, folders: dict[str, Path], run_curate: Curate
) -> None:
    run_curate(folders)
    chest = folders["pneumonia"] / "chest_xray" / "train" / "PNEUMONIA"
    draw(chest / "person91_virus_91.jpeg", 91)  # a reject that was mended
    (chest / "person0_virus_0.jpeg").unlink()
    run = run_curate(folders)
    names = {row.image_id.split("/")[-1] for row in _contents(spark, warehouse, "images")}
    assert run.counts["decoded"] == 1
    assert "person91_virus_91.jpeg" in names
    assert "person0_virus_0.jpeg" not in names
    assert run.counts["pneumonia.listed"] == 9


def test_copies_across_sources_keep_one_and_join_their_groups(
    spark: SparkSession, warehouse: Warehouse, folders: dict[str, Path], run_curate: Curate
) -> None:
    chest = folders["pneumonia"] / "chest_xray"
    same = chest / "train" / "PNEUMONIA" / "person0_virus_0.jpeg"
    (chest / "test" / "PNEUMONIA").mkdir(parents=True)
    # The same child under two numbers: its other pictures must not end in two splits.
    shutil.copy(same, chest / "test" / "PNEUMONIA" / "person3_virus_900.jpeg")
    # The same picture with another label.
    conflict = chest / "train" / "PNEUMONIA" / "person1_virus_2.jpeg"
    database = folders["tuberculosis"] / "TB_Chest_Radiography_Database"
    shutil.copy(conflict, database / "Tuberculosis" / "Tuberculosis-99.png")
    run_curate(folders)
    reasons = _reasons(spark, warehouse)
    assert reasons["person3_virus_900.jpeg"] == "duplicate" or (
        reasons["person0_virus_0.jpeg"] == "duplicate"
    )
    assert reasons["person1_virus_2.jpeg"] == reasons["Tuberculosis-99.png"] == "label_conflict"
    (copy,) = [r for r in _contents(spark, warehouse, "rejects") if r.duplicate_of]
    assert copy.reason == "duplicate"
    images = {row.image_id: row for row in _contents(spark, warehouse, "images")}
    assert copy.duplicate_of in images
    groups = {r.group_id for r in images.values() if r.patient_id in ("virus0", "virus3")}
    assert groups == {"pneumonia:virus0"}


def test_a_source_that_is_not_named_stays_and_another_size_decodes_it_again(
    spark: SparkSession, warehouse: Warehouse, folders: dict[str, Path], run_curate: Curate
) -> None:
    run_curate(folders)
    tuberculosis = {"tuberculosis": folders["tuberculosis"]}
    assert run_curate(tuberculosis).counts["images"] == 16
    run = run_curate(tuberculosis, size=48)
    assert run.counts["images"] == 16
    assert run.counts["rejects"] == 6
    assert {len(row.pixels) for row in _contents(spark, warehouse, "images")} == {48 * 48}
    # Both preprocessings are kept, so going back decodes nothing.
    assert run_curate(tuberculosis).counts["decoded"] == 0


@pytest.mark.parametrize("commits", [1, 2, 3])
def test_a_run_that_dies_between_its_commits_publishes_nothing_and_the_rerun_does(
    spark: SparkSession,
    warehouse: Warehouse,
    folders: dict[str, Path],
    run_curate: Curate,
    monkeypatch: pytest.MonkeyPatch,
    commits: int,
) -> None:
    run_curate(folders)
    published = warehouse.published()
    before = _contents(spark, warehouse, "images")
    chest = folders["pneumonia"] / "chest_xray" / "train" / "PNEUMONIA"
    draw(chest / "person95_virus_95.jpeg", 95)
    real, done = delta.commit, []

    def commit(*arguments: Any, **named: Any) -> int:
        if len(done) == commits:
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments, **named)

    monkeypatch.setattr(delta, "commit", commit)
    with pytest.raises(KeyboardInterrupt):
        run_curate(folders)
    monkeypatch.setattr(delta, "commit", real)
    assert warehouse.published() == published
    assert _contents(spark, warehouse, "images") == before
    run = run_curate(folders)
    assert run.counts["decoded"] == 0
    after = _contents(spark, warehouse, "images")
    assert len(after) == 17 == len({row.image_id for row in after})
    assert warehouse.published() != published


def test_a_refused_audit_commits_nothing_and_names_rows(
    spark: SparkSession,
    warehouse: Warehouse,
    folders: dict[str, Path],
    run_curate: Curate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(selection, "LABEL_INDEX", {"Tuberculosis": 8, "Pneumonia": 77})
    with pytest.raises(expectations.AuditRefused) as refused:
        run_curate(folders)
    assert "label_index" in str(refused.value)
    assert "person" in str(refused.value)
    assert {name for name in ("images_raw", "images", "rejects") if warehouse.exists(name)} == set()
    assert warehouse.published() == {}


def test_files_are_read_by_path_whatever_their_names(
    spark: SparkSession, warehouse: Warehouse, folders: dict[str, Path], run_curate: Curate
) -> None:
    database = folders["tuberculosis"] / "TB_Chest_Radiography_Database" / "Tuberculosis"
    names = ["a b (1).png", "%41.png", "new\nline.png", "[x]{y}*?.png", "é.png"]
    for seed, name in enumerate(names):
        os.replace(draw(database / "tmp.png", 300 + seed), database / name)
    run_curate(folders)
    found = {row.image_id.split("/")[-1] for row in _contents(spark, warehouse, "images")}
    assert set(names) <= found
