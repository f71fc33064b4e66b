"""Ingest and curation on small drawn sources: every file is accounted for, and reruns are exact."""

import argparse
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from pyspark import cloudpickle
from pyspark.sql import DataFrame, Row, SparkSession

from cxr_spark import commits, curate, delta, expectations, ingest, job, phantom, selection
from cxr_spark.images import Preprocessing
from cxr_spark.labels import CLASSES, SELECTED
from cxr_spark.listing import ListedFile
from cxr_spark.pseudonyms import pseudonym
from cxr_spark.selection import Policy
from cxr_spark.splits import Ratios
from cxr_spark.tables import Warehouse
from tests.test_dicom import dataset as dicom_dataset
from tests.test_dicom import written as dicom_written

SIZE = 32
SALT = b"salt of the tests, 32 bytes long."
PUBLISHED = ("images_raw", "images", "rejects", "near_duplicates")


def draw(path: Path, seed: int, size: int = 80) -> Path:
    """A grey picture that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 8), dtype=np.uint8)
    picture = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    assert cv2.imwrite(str(path), picture)
    return path


def draw_sources(ground: Path) -> dict[str, Path]:
    """Two small sources: twelve tuberculosis files, ten of pneumonia."""
    roots = sources_of(ground)
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


def sources_of(ground: Path) -> dict[str, Path]:
    return {name: ground / name for name in ("tuberculosis", "pneumonia")}


def curate_all(
    spark: SparkSession,
    warehouse: Warehouse,
    folders: dict[str, Path],
    size: int = SIZE,
    policy: Policy | None = None,
    full: bool = False,
    piece_files: int = ingest.PIECE_FILES,
    strict: bool = False,
    manifests: dict[str, Path] | None = None,
) -> job.Run:
    """Runs both stages and publishes, as jobs/curate.py does, in this process."""
    one = job.Run("curate")
    preprocessing = Preprocessing(size=size)
    listed = ingest.list_sources(folders, manifests or {}, SALT)
    reading = ingest.Reading(preprocessing, SALT, piece_files, full)
    files = curate.Change(*ingest.ingest(spark, warehouse, listed, reading, one))
    chosen = policy or Policy()
    how = {"afresh": full, "strict": strict}
    curate.curate(spark, warehouse, files, preprocessing, chosen, one, **how)
    job.record(one, argparse.Namespace(warehouse=str(warehouse.root)), "", datetime.now(UTC))
    assert one.status == "finished"
    return one


Curate = Callable[..., job.Run]


class Curated(NamedTuple):
    """The two sources and the run that curated them, in a folder and as it was left."""

    folders: dict[str, Path]
    run: job.Run


@pytest.fixture(scope="module")
def ground_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every test has its sources and its warehouse: files are known by their paths."""
    return tmp_path_factory.mktemp("curate") / "ground"


@pytest.fixture(scope="module")
def kept(
    spark: SparkSession, ground_once: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, job.Run]:
    """A copy of `ground` after a first run."""
    shutil.rmtree(ground_once, ignore_errors=True)  # a test without it may have been there before
    run = curate_all(spark, Warehouse(ground_once / "warehouse"), draw_sources(ground_once))
    return Path(shutil.move(ground_once, tmp_path_factory.mktemp("kept") / "ground")), run


@pytest.fixture
def ground(ground_once: Path) -> Path:
    shutil.rmtree(ground_once, ignore_errors=True)
    ground_once.mkdir()
    return ground_once


@pytest.fixture
def warehouse(ground: Path) -> Warehouse:
    return Warehouse(ground / "warehouse")


@pytest.fixture
def run_curate(spark: SparkSession, warehouse: Warehouse) -> Curate:
    return partial(curate_all, spark, warehouse)


@pytest.fixture
def folders(ground: Path) -> dict[str, Path]:
    """The two sources, and no warehouse yet."""
    return draw_sources(ground)


@pytest.fixture
def curated(kept: tuple[Path, job.Run], ground: Path) -> Curated:
    """The two sources, curated once."""
    shutil.copytree(kept[0], ground, dirs_exist_ok=True)
    return Curated(sources_of(ground), kept[1])


@contextmanager
def dying_after(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A block that must end as if its process died after so many commits."""
    real, done = commits.commit, []

    def commit(*arguments: Any, **named: Any) -> int:
        if len(done) == number:
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments, **named)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(commits, "commit", commit)
        yield


def _contents(spark: SparkSession, warehouse: Warehouse, name: str) -> list[Row]:
    frame = warehouse.read(spark, name)
    columns = [column for column in frame.columns if column != "run_id"]
    return sorted(frame.select(*columns).collect(), key=lambda row: row.image_id)


def _reasons(spark: SparkSession, warehouse: Warehouse) -> dict[str, str]:
    return {
        row.image_id.split("/")[-1]: row.reason for row in _contents(spark, warehouse, "rejects")
    }


def test_every_file_is_an_image_or_a_reject_with_its_reason(
    spark: SparkSession, warehouse: Warehouse, curated: Curated
) -> None:
    run = curated.run
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
    spark: SparkSession, warehouse: Warehouse, curated: Curated
) -> None:
    rows = [r for r in _contents(spark, warehouse, "images") if r.source == "pneumonia"]
    assert {row.group_id for row in rows} == {f"pneumonia:virus{i}" for i in range(4)}
    assert len({(row.group_id, row.split) for row in rows}) == 4


def test_a_rerun_without_changes_commits_nothing_but_its_runs_row(
    spark: SparkSession, warehouse: Warehouse, curated: Curated, run_curate: Curate
) -> None:
    first = curated.run
    tables = (*PUBLISHED, "pixels", "runs")
    before = {name: warehouse.version(name) for name in tables}
    files = {p for p in warehouse.root.rglob("*") if p.is_file() and "runs" not in p.parts}
    run = run_curate(curated.folders)
    after = {name: warehouse.version(name) for name in tables}
    assert after == before | {"runs": before["runs"] + 1}
    assert {p for p in warehouse.root.rglob("*") if p.is_file() and "runs" not in p.parts} == files
    assert run.counts["decoded"] == 0
    assert run.versions_written == {name: before[name] for name in PUBLISHED}
    assert Path(run.outputs["data_docs"]).is_file()
    # Half of the classes aren't there, and of that the audit warned.
    assert run.counts["audit_warnings"] == first.counts["audit_warnings"] > 0
    with pytest.raises(expectations.WarningsStand, match=r"audited with 1 warnings: .*index\.html"):
        run_curate(curated.folders, strict=True)
    assert warehouse.published() == run.versions_written


def test_a_new_file_is_appended_and_only_it_is_decoded(
    spark: SparkSession, warehouse: Warehouse, curated: Curated, run_curate: Curate
) -> None:
    before = {file.path for file in warehouse.files("images")}
    database = curated.folders["tuberculosis"] / "TB_Chest_Radiography_Database"
    draw(database / "Tuberculosis" / "Tuberculosis-77.png", 77)
    run = run_curate(curated.folders)
    assert run.counts["decoded"] == 1
    assert before < {file.path for file in warehouse.files("images")}
    assert len(_contents(spark, warehouse, "images")) == 17


@pytest.mark.long
def test_what_is_written_and_audited_of_images_follows_the_change(
    warehouse: Warehouse, tmp_path: Path, run_curate: Curate, monkeypatch: pytest.MonkeyPatch
) -> None:
    audited: dict[str, list[str]] = {}

    def audit(frames: dict[str, DataFrame], *others: Any, **named: Any) -> None:
        audited.update({name: frame.columns for name, frame in frames.items()})

    monkeypatch.setattr(expectations, "audit", audit)
    folder = tmp_path / "tuberculosis"
    for i in range(101):
        draw(folder / "Tuberculosis" / f"Tuberculosis-{i}.png", i)
        if i == 99:
            run_curate({folder.name: folder}, size=128)
            before = {file.path for file in warehouse.files("images")}
    assert run_curate({folder.name: folder}, size=128).counts["decoded"] == 1
    after = {file.path for file in warehouse.files("images")}
    assert before < after
    new_bytes, old_bytes = (
        sum(os.path.getsize(path) for path in paths) for paths in (after - before, before)
    )
    assert new_bytes < 0.025 * old_bytes
    assert set(audited) == {*PUBLISHED, "ledger"}
    assert not [name for name, columns in audited.items() if "pixels" in columns]


def test_changed_and_vanished_files_are_followed(
    spark: SparkSession, warehouse: Warehouse, curated: Curated, run_curate: Curate
) -> None:
    chest = curated.folders["pneumonia"] / "chest_xray" / "train" / "PNEUMONIA"
    draw(chest / "person91_virus_91.jpeg", 91)  # a reject that was mended
    (chest / "person0_virus_0.jpeg").unlink()
    before = {file.path: file.partition["split"] for file in warehouse.files("images")}
    run = run_curate(curated.folders)
    names = {row.image_id.split("/")[-1] for row in _contents(spark, warehouse, "images")}
    assert run.counts["decoded"] == run.counts["vanished"] == 1
    # The split that an image left is written anew, and no other.
    after = {file.path for file in warehouse.files("images")}
    (left,) = {split for path, split in before.items() if path not in after}
    assert {path for path, split in before.items() if split == left}.isdisjoint(after)
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
    spark: SparkSession, warehouse: Warehouse, curated: Curated, run_curate: Curate
) -> None:
    tuberculosis = {"tuberculosis": curated.folders["tuberculosis"]}
    assert run_curate(tuberculosis).counts["images"] == 16
    run = run_curate(tuberculosis, size=48)
    assert run.counts["images"] == 16
    assert run.counts["rejects"] == 6
    assert {len(row.pixels) for row in _contents(spark, warehouse, "images")} == {48 * 48}
    # Both preprocessings are kept, so going back decodes nothing.
    assert run_curate(tuberculosis).counts["decoded"] == 0


def test_other_rules_curate_anew_without_decoding(
    spark: SparkSession, warehouse: Warehouse, curated: Curated, run_curate: Curate
) -> None:
    splits = {row.image_id: row.split for row in _contents(spark, warehouse, "images")}
    chosen = Policy({"tuberculosis": CLASSES, "pneumonia": CLASSES}, caps={"Pneumonia": 3})
    run = run_curate(curated.folders, policy=chosen)
    assert run.counts["decoded"] == run.counts["compared"] == 0
    assert run.counts["pneumonia.over_cap"] == 5
    images = _contents(spark, warehouse, "images")
    assert len([row for row in images if row.label == "No Finding"]) == 4
    assert len(images) == 15
    assert all(row.split == splits.get(row.image_id, row.split) for row in images)
    # Other ratios draw all splits afresh.
    everything = Policy(chosen.selected, ratios=Ratios(1.0, 0.0, 0.0))
    run_curate(curated.folders, policy=everything)
    assert {row.split for row in _contents(spark, warehouse, "images")} == {"train"}


def test_a_full_run_reads_all_again_and_gives_the_same(
    spark: SparkSession, warehouse: Warehouse, curated: Curated, run_curate: Curate
) -> None:
    before = _contents(spark, warehouse, "images")
    run = run_curate(curated.folders, full=True)
    assert run.counts["decoded"] == 22
    assert run.counts["compared"] == 20
    after = _contents(spark, warehouse, "images")
    since = {row.split_since for row in after}
    assert [row.asDict() | {"split_since": None} for row in after] == [
        row.asDict() | {"split_since": None} for row in before
    ]
    assert since.isdisjoint({row.split_since for row in before})
    assert warehouse.read(spark, "pixels").groupBy("content_sha256").count().count() == 21
    assert warehouse.read(spark, "pixels").count() == 21


def test_a_killed_ingest_keeps_its_finished_pieces(
    spark: SparkSession,
    warehouse: Warehouse,
    folders: dict[str, Path],
    run_curate: Curate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with dying_after(2, monkeypatch):
        run_curate(folders, piece_files=6)
    assert warehouse.published() == {}
    run = run_curate(folders, piece_files=6)
    assert run.counts["decoded"] == 10 + 1  # the file without bytes has no content to be known by
    assert run.counts["images"] == 16
    assert warehouse.read(spark, "pixels").count() == 21


def test_near_duplicates_share_a_group_and_those_that_disagree_are_refused(
    spark: SparkSession, warehouse: Warehouse, folders: dict[str, Path], run_curate: Curate
) -> None:
    policy = Policy(SELECTED | {"covid": ("Pneumonia",)})
    chest = folders["pneumonia"] / "chest_xray" / "train" / "PNEUMONIA"
    films = [phantom.draw(["Pneumonia"], seed=[4, seed]).pixels for seed in range(2)]
    for number, film in enumerate(films):
        assert cv2.imwrite(str(chest / f"person7{number}_virus_7.jpeg"), film)
    run_curate(folders, policy=policy)
    groups = {row.image_id: row.group_id for row in _contents(spark, warehouse, "images")}
    assert len({group for name, group in groups.items() if "person7" in name}) == 2

    smaller = [cv2.resize(film, (300, 300), interpolation=cv2.INTER_AREA) for film in films]
    # The same label in another source, and three files of one picture.
    folders["covid"] = folders["pneumonia"].parent / "covid"
    wraps = [folders["covid"] / "test" / "PNEUMONIA" / f"person7_virus_{i}.png" for i in range(3)]
    wraps[0].parent.mkdir(parents=True)
    for level, wrap in enumerate(wraps):
        assert cv2.imwrite(str(wrap), smaller[0], [cv2.IMWRITE_PNG_COMPRESSION, 3 * level])
    other = folders["tuberculosis"] / "TB_Chest_Radiography_Database" / "Tuberculosis"
    assert cv2.imwrite(str(other / "Tuberculosis-71.png"), smaller[1])
    run = run_curate(folders, policy=policy)
    assert run.counts["compared"] == 2  # pictures
    pairs = warehouse.read(spark, "near_duplicates").collect()
    assert len(pairs) == 2
    near = [row for row in _contents(spark, warehouse, "images") if "person7" in row.image_id]
    assert {row.source for row in near} == {"pneumonia", "covid"}
    assert len({(row.group_id, row.split) for row in near}) == 1
    refused = {name: why for name, why in _reasons(spark, warehouse).items() if "7" in name}
    assert refused == {
        "person7_virus_1.png": "duplicate",
        "person7_virus_2.png": "duplicate",
        "person71_virus_7.jpeg": "label_conflict",
        "Tuberculosis-71.png": "label_conflict",
    }
    # The content that the pair names goes; the picture stays, and so does its pair.
    of_pair = {sha for pair in pairs for sha in (pair.content_sha256, pair.other_sha256)}
    (named,) = [w for w in wraps if hashlib.sha256(w.read_bytes()).hexdigest() in of_pair]
    named.unlink()
    assert run_curate(folders, policy=policy).counts["compared"] == 1
    near = [row for row in _contents(spark, warehouse, "images") if "person7" in row.image_id]
    assert {row.source for row in near} == {"pneumonia", "covid"}
    assert len({row.group_id for row in near}) == 1


def test_a_group_that_is_joined_keeps_the_earliest_split_and_the_move_is_told(
    spark: SparkSession, warehouse: Warehouse, curated: Curated, run_curate: Curate
) -> None:
    rows = [r for r in _contents(spark, warehouse, "images") if r.source == "pneumonia"]
    in_train = next(row for row in rows if row.split == "train")
    in_val = next(row for row in rows if row.split == "val")
    chest = curated.folders["pneumonia"] / "chest_xray"
    (chest / "val" / "PNEUMONIA").mkdir(parents=True)
    path = in_train.image_id.removeprefix("pneumonia:")
    number = in_val.patient_id.removeprefix("virus")
    shutil.copy(
        curated.folders["pneumonia"] / path,
        chest / "val" / "PNEUMONIA" / f"person{number}_virus_99_copy.jpeg",
    )
    run = run_curate(curated.folders)
    assert run.counts["moved"] == 2
    after = {row.image_id: row for row in _contents(spark, warehouse, "images")}
    ours = [r for r in after.values() if r.patient_id in (in_train.patient_id, in_val.patient_id)]
    assert len(ours) == 4
    assert len({row.group_id for row in ours}) == 1
    assert len({row.split for row in ours}) == 1
    stays = [row for row in ours if row.split_since == in_train.split_since]
    assert len(stays) == 2
    # Of a run that moves none, none is told.
    assert run_curate(curated.folders).counts["moved"] == 0


def test_a_hospitals_own_images_join_with_their_patients_hashed(
    spark: SparkSession, warehouse: Warehouse, run_curate: Curate, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    draw(archive / "a.png", 500)
    draw(archive / "b.png", 501)
    (archive / "list.csv").write_text(
        "path,label,patient_id,view,age\na.png,edema,P-1,PA,058Y\nb.png,Gout,P-1,,\nc.png,Covid,,,\n"
    )
    run_curate({}, manifests={"mercy": archive / "list.csv"})
    (image,) = _contents(spark, warehouse, "images")
    assert (image.image_id, image.label, image.view, image.age_years) == (
        "mercy:a.png",
        "Edema",
        "PA",
        58,
    )
    assert image.patient_id == pseudonym("P-1", SALT)
    assert image.group_id == f"mercy:{image.patient_id}"
    assert _reasons(spark, warehouse) == {
        "mercy:b.png": "unknown_label",
        "mercy:c.png": "missing_file",
    }


def _ingested(
    spark: SparkSession, warehouse: Warehouse, listed: list[ListedFile]
) -> tuple[job.Run, dict[str, Row]]:
    """Ingest alone, published as if curation had followed; the run and images_raw by file name."""
    run = job.Run("curate")
    reading = ingest.Reading(Preprocessing(size=SIZE), SALT)
    found = ingest.ingest(spark, warehouse, listed, reading, run)
    narrow = found.images_raw.drop("run_id")
    rows = {row.image_id.split("/")[-1]: row for row in narrow.collect()}
    if found.staged:
        version = commits.commit(found.staged, run_id=run.run_id, sequence=0, mode="overwrite")
        run.versions_written["images_raw"] = version
    else:
        run.versions_written["images_raw"] = warehouse.published()["images_raw"]
    job.record(run, argparse.Namespace(warehouse=str(warehouse.root)), "", datetime.now(UTC))
    return run, rows


@pytest.mark.long
def test_a_reason_of_listing_lasts_as_long_as_listing_gives_it(
    spark: SparkSession, warehouse: Warehouse, tmp_path: Path
) -> None:
    nih = tmp_path / "nih"
    table, rows = nih / "Data_Entry_2017.csv", [f"{i}.png,Edema|Mass,0,7,58,M,PA" for i in "ab"]
    for seed, name in enumerate(("a.png", "b.png")):
        draw(nih / "images" / name, seed)
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender"
    header += ",View Position\n"
    table.write_text(header + "\n".join(rows))
    (nih / "BBox_List_2017.csv").write_text("Image Index,F,x,y,w,h\na.png,Mass,1,2,3,4\n")

    def run(**folders: Path) -> tuple[job.Run, dict[str, Row]]:
        return _ingested(spark, warehouse, ingest.list_sources(folders, {}, SALT))

    _, found = run(nih=nih)
    (box,) = found["a.png"].boxes
    assert box.asDict() == {"label": "Mass", "x": 1, "y": 2, "width": 3, "height": 4}
    assert (found["a.png"].raw_labels, found["b.png"].boxes) == (["Edema", "Mass"], None)

    os.utime(nih / "images" / "b.png", (1, 1))
    pixels = warehouse.version("pixels")
    again, touched = run(nih=nih)
    assert (again.counts["decoded"], warehouse.version("pixels")) == (1, pixels)
    later = touched["b.png"].modified_at
    assert touched["b.png"].asDict() == found["b.png"].asDict() | {"modified_at": later}

    table.write_text(header + rows[1])
    _, without = run(nih=nih)
    assert (without["a.png"].reason, without["b.png"].reason) == ("not_in_manifest", None)
    # A run that names another source alone leaves it so.
    draw(tmp_path / "tuberculosis" / "Tuberculosis-1.png", 9)
    _, unnamed = run(tuberculosis=tmp_path / "tuberculosis")
    assert (unnamed["a.png"].reason, unnamed["a.png"].detail) == (
        "not_in_manifest",
        without["a.png"].detail,
    )
    table.write_text(header + "\n".join(rows))
    restored, found_again = run(nih=nih)
    assert restored.counts["decoded"] == 0
    assert found_again["a.png"] == found["a.png"]


def test_of_a_dicom_file_the_manifest_speaks_first_and_then_its_tags(
    spark: SparkSession, warehouse: Warehouse, tmp_path: Path
) -> None:
    tags = {"ViewPosition": "AP", "PatientSex": "F", "PatientAge": "058Y"}
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 4096, (64, 64))
        patient = "N/A" if number == 2 else "MRN-4711"
        made = dicom_dataset(pixels, PatientID=patient, **tags)
        (tmp_path / f"{number}.dcm").write_bytes(dicom_written(made))
    (tmp_path / "list.csv").write_text(
        "path,label,patient_id,view,sex,age\n0.dcm,Edema,,,,\n1.dcm,Edema,P-1,PA,M,7\n2.dcm,Edema,,,,\n"
    )
    listed = ingest.list_sources({}, {"mercy": tmp_path / "list.csv"}, SALT)
    _, found = _ingested(spark, warehouse, listed)
    rows = {name: (r.patient_id, r.view, r.sex, r.age_years) for name, r in found.items()}
    assert rows == {
        "mercy:0.dcm": (pseudonym("MRN-4711", SALT), "AP", "F", 58),
        "mercy:1.dcm": (pseudonym("P-1", SALT), "PA", "M", 7),
        "mercy:2.dcm": (None, "AP", "F", 58),
    }


def test_an_image_that_kills_its_worker_costs_one_row(
    spark: SparkSession,
    warehouse: Warehouse,
    folders: dict[str, Path],
    run_curate: Curate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ingest, "_decode_to_part", _decode_with_a_bad_decoder)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        run = run_curate(folders)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert run.counts["images"] == 15
    assert _reasons(spark, warehouse)["Tuberculosis-3.png"] == "decoder_crashed"


def _decode_with_a_bad_decoder(batches: Any, **named: Any) -> Any:
    """Runs in the worker: there alone, one file's decoder is one that crashes."""
    import ctypes

    from cxr_spark import images, ingest

    def decode(path: str, **named: Any) -> images.Facts:
        if path.endswith("Tuberculosis-3.png"):
            ctypes.string_at(0)
        return images.facts_of_file(path, **named)

    ingest.facts_of_file = decode
    try:
        yield from ingest._decode_to_part(batches, **named)  # the worker's own: not replaced
    finally:
        ingest.facts_of_file = images.facts_of_file


@pytest.mark.parametrize(
    "number", [2, *(pytest.param(number, marks=pytest.mark.long) for number in (1, 3))]
)
def test_a_run_that_dies_between_its_commits_publishes_nothing_and_the_rerun_does(
    spark: SparkSession,
    warehouse: Warehouse,
    curated: Curated,
    run_curate: Curate,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    published = warehouse.published()
    before = _contents(spark, warehouse, "images")
    chest = curated.folders["pneumonia"] / "chest_xray" / "train" / "PNEUMONIA"
    draw(chest / "person95_virus_95.jpeg", 95)
    with dying_after(number, monkeypatch):
        run_curate(curated.folders)
    assert warehouse.published() == published
    assert _contents(spark, warehouse, "images") == before
    run = run_curate(curated.folders)
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
    assert {name for name in PUBLISHED if warehouse.exists(name)} == set()
    assert warehouse.published() == {}


@pytest.mark.long
def test_what_another_writer_commits_meanwhile_is_not_replaced(
    warehouse: Warehouse,
    folders: dict[str, Path],
    run_curate: Curate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    audit = expectations.audit

    def audit_while_another_writes(*arguments: Any, **named: Any) -> None:
        row = {"run_id": "another", "image_id": "theirs", "reason": "blank"}
        warehouse.append_rows("rejects", [row])
        audit(*arguments, **named)

    monkeypatch.setattr(expectations, "audit", audit_while_another_writes)
    with pytest.raises(commits.ConcurrentWrite, match=r"rejects: another writer was faster"):
        run_curate(folders)
    rows = delta.read_rows(warehouse.path("rejects"), ["image_id"])
    assert [row["image_id"] for row in rows] == ["theirs"]
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
