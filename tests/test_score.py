"""Scoring: a row for each image and model, nothing scored twice, nothing lost by kill or race."""

import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from cxr_spark import delta, job, models, score, score_inputs
from cxr_spark.artifact import load_card
from cxr_spark.images import Preprocessing, facts_of_file
from cxr_spark.labels import CLASS_COLUMNS, CLASSES
from cxr_spark.prediction_commits import Writer
from cxr_spark.scoring import Scoring, load_model
from cxr_spark.tables import Warehouse
from tests import artifacts
from tests.test_curate import draw

A_DAY = 86_400


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.save(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.save(tmp_path_factory.mktemp("models"), seed=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six files of yesterday: four pictures in three contents, an empty one, one no picture."""
    folder = tmp_path / "in box [1]"
    for i in range(3):
        draw(folder / "a" / f"{i}.png", i)
    shutil.copy(folder / "a" / "0.png", folder / "copy of 0.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    return aged(folder)


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path / "warehouse")


def aged(folder: Path, seconds: float = A_DAY) -> Path:
    """A folder whose files were written some time ago: new ones may not be whole yet."""
    then = time.time() - seconds
    for path in folder.rglob("*.*"):
        os.utime(path, (then, then))
    return folder


def scored(
    spark: SparkSession, warehouse: Warehouse, scoring: Scoring | Path, *folders: Path
) -> tuple[job.Run, DataFrame]:
    """Score folders in this process; the run and all predictions."""
    if isinstance(scoring, Path):
        scoring = Scoring((load_model(scoring),))
    run = job.Run("score")
    listed = score_inputs.image_files(folders, [])
    score.score(spark, warehouse, listed, scoring, run)
    return run, warehouse.read(spark, "predictions")


def by_name(predictions: DataFrame) -> dict[str, Any]:
    return {Path(row.path).name: row for row in predictions.collect()}


def test_every_file_is_a_row_with_probabilities_or_an_error(
    spark: SparkSession, warehouse: Warehouse, model: Path, folder: Path
) -> None:
    run, predictions = scored(spark, warehouse, model, folder)
    rows = by_name(predictions)
    assert set(rows) == {"0.png", "1.png", "2.png", "copy of 0.png", "empty.png", "broken.jpg"}
    assert (run.counts["listed"], run.counts["scored"], run.counts["errors"]) == (6, 6, 2)
    assert rows["empty.png"].error == "empty_file"
    assert rows["broken.jpg"].error in ("unreadable", "truncated")
    for name in ("empty.png", "broken.jpg"):
        assert rows[name].probabilities is None
        assert rows[name].predicted_label is None
    good = rows["1.png"]
    probabilities = np.array([good.probabilities[name] for name in CLASS_COLUMNS])
    assert probabilities.sum() == pytest.approx(1)
    assert good.predicted_label == CLASSES[probabilities.argmax()]
    assert good.confidence == probabilities.max()
    assert good.entropy == pytest.approx(-(probabilities * np.log(probabilities)).sum())
    assert good.image_id == f"file:{folder}/a/1.png"
    assert (good.images_version, good.sop_instance_uid) == (None, None)
    assert good.model_version == load_card(model).model_version
    assert good.preprocessing == load_card(model).preprocessing_fingerprint


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_the_rows_are_what_the_model_says_of_the_pixels(
    spark: SparkSession, warehouse: Warehouse, model: Path, folder: Path, engine: str
) -> None:
    scoring = Scoring((load_model(model),), engine=engine)
    _, predictions = scored(spark, warehouse, scoring, folder)
    network, card = models.load_model(model)
    preprocessing = Preprocessing.from_json(card.preprocessing)
    rows = by_name(predictions)
    for name in ("0.png", "1.png", "2.png"):
        pixels = facts_of_file(str(folder / "a" / name), preprocessing).pixels
        square = np.frombuffer(pixels or b"", np.uint8).reshape(1, 64, 64)
        expected = models.predict(network, card, square)
        found = [rows[name].probabilities[column] for column in CLASS_COLUMNS]
        np.testing.assert_allclose(found, expected[0], atol=1e-6)


def test_the_same_content_is_inferred_once_and_a_rerun_commits_nothing(
    spark: SparkSession, warehouse: Warehouse, model: Path, folder: Path, tmp_path: Path
) -> None:
    run, predictions = scored(spark, warehouse, model, folder)
    rows = by_name(predictions)
    assert rows["copy of 0.png"].probabilities == rows["0.png"].probabilities
    assert run.counts["inferred"] <= 4
    version = warehouse.version("predictions")
    rerun, _ = scored(spark, warehouse, model, folder)
    assert rerun.counts["skipped"] == 6
    assert warehouse.version("predictions") == version
    # Elsewhere the same content has a row of its own, without inference.
    other = tmp_path / "other"
    shutil.copytree(folder / "a", other)
    draw(other / "new.png", 99)
    again, predictions = scored(spark, warehouse, model, aged(other, 2 * A_DAY))
    assert (again.counts["scored"], again.counts["inferred"]) == (4, 1)
    assert predictions.count() == 10
    moved = predictions.where(F.col("path").startswith(f"{other}/0")).collect()[0]
    assert moved.probabilities == rows["0.png"].probabilities


def test_a_file_of_the_same_path_size_and_time_is_not_opened(
    spark: SparkSession, warehouse: Warehouse, model: Path, folder: Path
) -> None:
    scored(spark, warehouse, model, folder)
    state = (folder / "a" / "1.png").stat()
    (folder / "a" / "1.png").write_bytes(b"x" * state.st_size)
    os.utime(folder / "a" / "1.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    run, _ = scored(spark, warehouse, model, folder)
    assert run.counts["skipped"] == 6


def test_a_changed_file_is_scored_again_and_a_touched_one_is_read_once_more_only(
    spark: SparkSession, warehouse: Warehouse, model: Path, folder: Path
) -> None:
    scored(spark, warehouse, model, folder)
    os.utime(draw(folder / "empty.png", 1234), (0, 10**9))
    os.utime(folder / "a" / "2.png", (0, 10**9))
    run, predictions = scored(spark, warehouse, model, folder)
    assert (run.counts["scored"], run.counts["inferred"]) == (2, 1)
    rows = predictions.where(F.col("path").endswith("empty.png")).orderBy("scored_at").collect()
    assert [row.error for row in rows] == ["empty_file", None]
    third, _ = scored(spark, warehouse, model, folder)
    assert third.counts["skipped"] == 6


def test_rescoring_appends_rows_and_the_newest_count(
    spark: SparkSession, warehouse: Warehouse, model: Path, folder: Path
) -> None:
    scored(spark, warehouse, model, folder)
    scoring = Scoring((load_model(model),), rescore=True)
    run, predictions = scored(spark, warehouse, scoring, folder)
    assert (run.counts["scored"], run.counts["inferred"]) == (6, 3)
    assert predictions.count() == 12


def test_a_file_that_could_not_be_read_is_tried_again_and_has_one_row_until_it_can(
    spark: SparkSession, warehouse: Warehouse, model: Path, folder: Path
) -> None:
    (folder / "away.png").symlink_to(folder / "elsewhere.dat")
    scored(spark, warehouse, model, folder)
    rerun, predictions = scored(spark, warehouse, model, folder)
    assert (rerun.counts["errors"], rerun.counts["scored"]) == (1, 0)
    assert by_name(predictions)["away.png"].error == "missing_file"
    assert predictions.count() == 7
    draw(folder.parent / "5.png", 5).rename(folder / "elsewhere.dat")
    _, predictions = scored(spark, warehouse, model, aged(folder, 2 * A_DAY))
    rows = predictions.where(F.col("path").endswith("away.png")).orderBy("scored_at").collect()
    assert [row.error for row in rows] == ["missing_file", None]


def test_a_file_that_is_as_it_was_before_its_last_row_gets_that_answer_once_more(
    spark: SparkSession, warehouse: Warehouse, model: Path, tmp_path: Path
) -> None:
    folder, mount = tmp_path / "in", tmp_path / "in" / ".mount"
    draw(mount / "away.png", 1)
    (folder / "away.png").symlink_to(mount / "away.png")
    old = draw(folder / "restored.png", 2).read_bytes()
    aged(folder)

    def write(content: bytes, second: int) -> None:
        (folder / "restored.png").write_bytes(content)
        os.utime(folder / "restored.png", (second, second))

    write(old, 10**9)
    first, _ = scored(spark, warehouse, model, folder)
    mount.rename(folder / ".gone")
    write(b"broken", 10**9 + 1)
    scored(spark, warehouse, model, folder)
    (folder / ".gone").rename(mount)
    write(old, 10**9)
    healed, predictions = scored(spark, warehouse, model, folder)
    assert (first.counts["inferred"], healed.counts["inferred"], healed.counts["scored"]) == (
        2,
        0,
        2,
    )
    for name in ("away.png", "restored.png"):
        rows = predictions.where(F.col("path").endswith(name)).orderBy("scored_at").collect()
        assert [row.error is None for row in rows] == [True, False, True]
        assert rows[2].probabilities == rows[0].probabilities
    rerun, _ = scored(spark, warehouse, model, folder)
    assert rerun.counts["skipped"] == 2


def test_an_answer_that_is_no_distribution_is_an_error(
    spark: SparkSession, warehouse: Warehouse, folder: Path, tmp_path: Path
) -> None:
    run, predictions = scored(
        spark, warehouse, artifacts.save(tmp_path / "models", bias=float("nan")), folder / "a"
    )
    assert (run.counts["scored"], run.counts["errors"]) == (3, 3)
    for row in predictions.collect():
        said = (row.error, row.probabilities, row.predicted_label, row.confidence)
        assert said == ("no_distribution", None, None, None)


def test_a_file_that_may_be_half_written_is_left_for_the_next_run(
    spark: SparkSession, warehouse: Warehouse, model: Path, folder: Path
) -> None:
    whole = draw(folder / "growing.png", 7).read_bytes()
    (folder / "growing.png").write_bytes(whole[:99])  # a moment ago
    (folder / "paused.png").write_bytes(whole[:99])
    aged(folder / "a")
    then = time.time() - 20
    os.utime(folder / "paused.png", (then, then))
    run, predictions = scored(spark, warehouse, model, folder)
    assert (run.counts["unstable"], run.counts["scored"]) == (2, 6)
    for name in ("growing.png", "paused.png"):
        (folder / name).write_bytes(whole)
    run, predictions = scored(spark, warehouse, model, aged(folder, 2 * A_DAY))
    rows = by_name(predictions)
    assert rows["growing.png"].error is None and rows["paused.png"].error is None
    assert run.counts["unstable"] == 0


def test_a_file_that_changes_or_goes_between_listing_and_reading_has_no_row(
    spark: SparkSession, warehouse: Warehouse, model: Path, folder: Path
) -> None:
    listed, run = score_inputs.image_files([folder], []), job.Run("score")
    os.utime(folder / "a" / "0.png", (0, 10**9))
    (folder / "a" / "1.png").unlink()
    score.score(spark, warehouse, listed, Scoring((load_model(model),)), run)
    assert (run.counts["unstable"], run.counts["scored"]) == (2, 4)
    assert by_name(warehouse.read(spark, "predictions")).keys() & {"0.png", "1.png"} == set()


def test_several_models_share_one_pass_and_an_ensemble_is_their_mean(
    spark: SparkSession, warehouse: Warehouse, model: Path, other_model: Path, folder: Path
) -> None:
    scored(spark, warehouse, model, folder / "a")
    scoring = Scoring((load_model(model), load_model(other_model)), ensemble="both")
    run, predictions = scored(spark, warehouse, scoring, folder)
    # The first model has seen all three contents.
    assert (run.counts["scored"], run.counts["errors"], run.counts["inferred"]) == (6, 2, 3)
    by_model = {
        version: by_name(predictions.where(F.col("model_version") == version))
        for version in scoring.model_versions
    }
    assert [len(rows) for rows in by_model.values()] == [6, 6, 6]
    for name in ("0.png", "copy of 0.png", "2.png"):
        first, second, mean = (
            np.array(list(rows[name].probabilities)) for rows in by_model.values()
        )
        assert np.abs(first - second).max() > 1e-3
        np.testing.assert_allclose(mean, (first + second) / 2)
        assert by_model["both"][name].predicted_label == CLASSES[mean.argmax()]
    assert by_model["both"]["empty.png"].error == "empty_file"
    rerun, _ = scored(spark, warehouse, scoring, folder)
    assert rerun.counts["skipped"] == 6


def test_an_ensemble_of_models_that_have_scored_all_needs_no_inference(
    spark: SparkSession, warehouse: Warehouse, model: Path, other_model: Path, folder: Path
) -> None:
    both = (load_model(model), load_model(other_model))
    scored(spark, warehouse, Scoring(both), folder)
    run, predictions = scored(spark, warehouse, Scoring(both, ensemble="both"), folder)
    assert (run.counts["scored"], run.counts["inferred"]) == (6, 0)
    errors = predictions.where("model_version = 'both' AND error IS NOT NULL")
    assert by_name(errors).keys() == {"empty.png", "broken.jpg"}


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_the_models_are_loaded_once_a_worker_and_an_image_inferred_once(
    spark: SparkSession, warehouse: Warehouse, model: Path, tmp_path: Path, engine: str
) -> None:
    for i in range(40):
        draw(tmp_path / "many" / f"{i}.png", i, size=40)
    fresh = tmp_path / "models" / model.name  # a folder that no worker has loaded yet
    shutil.copytree(model, fresh)
    scoring = Scoring((load_model(fresh),), commit_every=15, engine=engine)
    run, predictions = scored(spark, warehouse, scoring, aged(tmp_path / "many"))
    # Three pieces of two tasks, two workers at most.
    assert 1 <= run.counts["model_loads"] <= 2
    assert run.counts["inferred"] == predictions.count() == 40
    assert run.counts["decode_seconds"] > 0 and run.counts["model_seconds"] > 0


def test_sigterm_ends_a_run_after_the_piece_at_work_and_a_rerun_goes_on_from_there(
    spark: SparkSession, warehouse: Warehouse, model: Path, folder: Path
) -> None:
    scoring, run = Scoring((load_model(model),), commit_every=2), job.Run("score")
    run.progress = lambda done, total, unit: done and run.sigterm()  # type: ignore[method-assign]
    listed = score_inputs.image_files([folder], [])
    with pytest.raises(job.Stopped):
        score.score(spark, warehouse, listed, scoring, run)
    assert run.counts["scored"] == warehouse.read(spark, "predictions").count() == 2
    assert run.counts["left"] == 4
    rerun, predictions = scored(spark, warehouse, scoring, folder)
    assert (rerun.counts["skipped"], rerun.counts["scored"], rerun.counts["left"]) == (2, 4, 0)
    assert len(by_name(predictions)) == predictions.count() == 6
    # Rescoring begins with what was scored longest ago, so it gets further if it is stopped again.
    for rows_of_images in ({1: 4, 2: 2}, {1: 2, 2: 4}):
        again = job.Run("score")
        again.progress = lambda done, *_, run=again: done and run.sigterm()  # type: ignore
        with pytest.raises(job.Stopped):
            score.score(spark, warehouse, listed, replace(scoring, rescore=True), again)
        rows = delta.read_rows(warehouse.path("predictions"), ["image_id"])
        assert Counter(Counter(row["image_id"] for row in rows).values()) == rows_of_images


def test_workers_are_at_the_next_piece_while_one_is_written_and_leave_it_where_the_run_stops(
    spark: SparkSession,
    warehouse: Warehouse,
    model: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inferred_while_written: list[int] = []
    write = score.Pass._write

    def slow_write(self: score.Pass, *found: Any) -> None:
        until = time.monotonic() + 30
        while self.meters.inferred.value < 3 and time.monotonic() < until:
            time.sleep(0.05)
        inferred_while_written.append(self.meters.inferred.value)
        write(self, *found)
        self.run.sigterm()

    monkeypatch.setattr(score.Pass, "_write", slow_write)
    run = job.Run("score")
    with pytest.raises(job.Stopped):
        listed = score_inputs.image_files([folder / "a"], [])
        score.score(spark, warehouse, listed, Scoring((load_model(model),), commit_every=2), run)
    assert inferred_while_written == [3]  # two of the first piece, one of the second
    assert run.counts["scored"] == warehouse.read(spark, "predictions").count() == 2


def test_pieces_keep_to_the_time_that_is_left_at_the_pace_seen(
    spark: SparkSession, warehouse: Warehouse, model: Path
) -> None:
    run = job.Run("score")
    writer = Writer(warehouse, ["m"], run.run_id)
    one_pass = score.Pass(spark, Scoring((load_model(model),)), [], writer, run)
    first = one_pass.images_of_a_piece()
    assert first == score.FIRST_PIECE_OF_A_CORE * 2
    one_pass.worked = 100
    one_pass.meters.model_seconds.add(20.0)  # 0.2 s of a core an image, on two cores
    assert one_pass.images_of_a_piece() == 300
    run.max_runtime = 10.0
    assert 80 <= one_pass.images_of_a_piece() <= 100
    assert 70 <= one_pass.images_of_a_piece(ahead=10) <= 90  # that many come first


def test_two_runs_at_once_whose_lock_was_stolen_double_no_row_and_lose_none(
    spark: SparkSession, warehouse: Warehouse, model: Path, tmp_path: Path
) -> None:
    for i in range(12):
        draw(tmp_path / "in" / f"{i}.png", i, size=40)
    aged(tmp_path / "in")
    scoring = Scoring((load_model(model),), commit_every=4)
    at_once([lambda: scored(spark, warehouse, scoring, tmp_path / "in")] * 2)
    names = Counter(Path(row.path).name for row in warehouse.read(spark, "predictions").collect())
    assert set(names.values()) == {1} and len(names) == 12


def at_once(calls: list[Callable[[], Any]]) -> None:
    failed: list[Exception] = []

    def run(call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_curated_images_are_scored_from_their_pixels_and_known_contents_without_inference(
    spark: SparkSession, curated: tuple[Path, Any], model: Path, tmp_path: Path
) -> None:
    warehouse = Warehouse(shutil.copytree(curated[0], tmp_path / "warehouse"))
    scoring, run = Scoring((load_model(model),)), job.Run("score")
    images = warehouse.read(spark, "images").select("image_id", "content_sha256", "split")
    expected = {row.image_id: row.content_sha256 for row in images.collect()}
    source = warehouse.read(spark, "images_raw").where(F.col("image_id").isin(list(expected)))
    path = source.head().path  # type: ignore[union-attr]
    shutil.copy2(path, tmp_path / "one.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "one.png").rename(tmp_path / "in" / "one.png")
    scored(spark, warehouse, scoring, aged(tmp_path / "in"))
    listed = score.list_images(warehouse, scoring, run, "all", None)
    score.score(spark, warehouse, listed, scoring, run)
    rows = warehouse.read(spark, "predictions").where("images_version IS NOT NULL").collect()
    assert {row.image_id: row.content_sha256 for row in rows} == expected
    assert run.counts["inferred"] == len(expected) - 1
    assert all(row.path and row.size_bytes and row.error is None for row in rows)
    test = score.list_images(warehouse, scoring, run, "test", None)
    assert len(test) == images.where("split = 'test'").count()
    again = job.Run("score")
    score.score(spark, warehouse, test, scoring, again)
    assert again.counts["skipped"] == len(test)


def test_pixels_of_a_table_and_of_its_files_give_the_same_probabilities(
    spark: SparkSession, curated: tuple[Path, Any], sources: Path, model: Path, tmp_path: Path
) -> None:
    warehouse = Warehouse(shutil.copytree(curated[0], tmp_path / "warehouse"))
    scoring, run = Scoring((load_model(model),)), job.Run("score")
    listed = score.list_images(warehouse, scoring, run, "val", None)
    score.score(spark, warehouse, listed, scoring, run)
    paths = tmp_path / "paths.csv"
    paths.write_text("path\n" + "\n".join(listed["path"].to_pylist()))
    files = score_inputs.image_files([], [paths])
    again = replace(scoring, rescore=True)
    score.score(spark, warehouse, files, again, job.Run("score"))
    ours = F.col("model_version") == scoring.model_versions[0]
    rows = warehouse.read(spark, "predictions").where(ours).collect()
    sides = [
        {
            row.path: list(row.probabilities)
            for row in rows
            if (row.images_version is None) == is_file
        }
        for is_file in (False, True)
    ]
    assert sides[0].keys() == sides[1].keys() and len(sides[0]) == len(listed)
    for path, probabilities in sides[0].items():
        np.testing.assert_allclose(probabilities, sides[1][path], atol=1e-6)


def test_a_dicom_file_is_known_by_its_uids_and_nothing_else_of_its_patient(
    spark: SparkSession, warehouse: Warehouse, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    made = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    made.SOPInstanceUID, made.StudyInstanceUID = "1.2.3.4", "1.2.3"
    made.save_as(tmp_path / "in" / "1.2.3")
    shutil.copy(tmp_path / "in" / "1.2.3", tmp_path / "in" / "copy.dcm")
    for path in (tmp_path / "in").iterdir():
        os.utime(path, (0, 10**9))
    _, predictions = scored(spark, warehouse, model, tmp_path / "in")
    rows = predictions.collect()
    assert [row.error for row in rows] == [None, None]
    for row in rows:
        assert row.sop_instance_uid == made.SOPInstanceUID
        assert row.study_instance_uid == made.StudyInstanceUID
        for secret in (made.PatientID, str(made.PatientName), made.StudyDate):
            assert secret not in str(row)
    # A content that was scored from the images table has no UIDs there: the file itself has.
    made.SOPInstanceUID = "1.2.3.5"
    made.save_as(tmp_path / "in" / "other.dcm")
    os.utime(tmp_path / "in" / "other.dcm", (0, 10**9))
    content = facts_of_file(str(tmp_path / "in" / "other.dcm"), Preprocessing()).content_sha256
    curated_row = rows[0].asDict(recursive=True) | {"images_version": 1, "content_sha256": content}
    curated_row |= {"image_id": "own:other.dcm", "sop_instance_uid": None}
    warehouse.append_rows("predictions", [curated_row | {"study_instance_uid": None}])
    run, predictions = scored(spark, warehouse, model, tmp_path / "in")
    assert (run.counts["scored"], run.counts["inferred"]) == (1, 0)
    (row,) = predictions.where(F.col("path").endswith("other.dcm")).collect()
    assert (row.sop_instance_uid, row.study_instance_uid) == ("1.2.3.5", "1.2.3")


def test_a_table_made_before_it_had_all_columns_gets_them(
    spark: SparkSession, warehouse: Warehouse, model: Path, folder: Path, monkeypatch: Any
) -> None:
    from cxr_spark import tables

    now = tables.contract("predictions")
    fields = [field for field in now.schema if not field.name.endswith("_uid")]
    then = replace(now, schema=type(now.schema)(fields))
    row = {"image_id": "x", "model_version": "m", "run_id": "r"}
    from cxr_spark import commits, staging

    staged = staging.stage_rows([row], warehouse.path("predictions"), then)
    commits.commit(staged, run_id="r")
    _, predictions = scored(spark, warehouse, model, folder)
    assert predictions.count() == 7
    assert "sop_instance_uid" in predictions.columns


def test_sixteen_bit_and_rgb_files_are_scored_like_grey_ones(
    spark: SparkSession, warehouse: Warehouse, model: Path, tmp_path: Path
) -> None:
    grey = cv2.imread(str(draw(tmp_path / "in" / "grey.png", 5)), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "in" / "rgb.png"), cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR))
    cv2.imwrite(str(tmp_path / "in" / "deep.png"), grey.astype(np.uint16) * 257)
    _, predictions = scored(spark, warehouse, model, aged(tmp_path / "in"))
    rows = {name: row.probabilities for name, row in by_name(predictions).items()}
    assert len(rows) == 3
    for name in ("rgb.png", "deep.png"):
        np.testing.assert_allclose(rows[name], rows["grey.png"], atol=1e-6)
