"""Scoring: a row for each image, the model loaded once a worker, nothing scored twice."""

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from cxr_spark import job, models, score
from cxr_spark.artifact import load_card
from cxr_spark.images import Preprocessing
from cxr_spark.labels import CLASS_COLUMNS, CLASSES
from cxr_spark.tables import Warehouse
from tests.test_curate import draw


@pytest.fixture(scope="module")
def model(chain: Any) -> Path:
    """The artifact of the tiny chain."""
    return Path(chain.train["model"])


@pytest.fixture
def folder(tmp_path: Path, chain: Any) -> Path:
    """Six files: four pictures in three contents, one empty, one that is no picture."""
    folder = tmp_path / "in box [1]"
    for i in range(3):
        draw(folder / "a" / f"{i}.png", i)
    shutil.copy(folder / "a" / "0.png", folder / "copy of 0.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    return folder


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path / "warehouse")


def _scored(
    spark: SparkSession, warehouse: Warehouse, model: Path, *folders: Path
) -> tuple[job.Run, DataFrame]:
    run = job.Run("score")
    score.score_folders(spark, warehouse, model, folders, run)
    return run, warehouse.read(spark, "predictions")


def test_every_file_is_a_row_with_probabilities_or_an_error(
    spark: SparkSession, warehouse: Warehouse, model: Path, folder: Path
) -> None:
    run, predictions = _scored(spark, warehouse, model, folder)
    rows = {Path(row.path).name: row for row in predictions.collect()}
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
    assert good.images_version is None
    assert good.model_version == load_card(model).model_version


def test_the_rows_are_what_the_model_says_of_the_pixels(
    spark: SparkSession, warehouse: Warehouse, model: Path, folder: Path
) -> None:
    _, predictions = _scored(spark, warehouse, model, folder)
    network, card = models.load_model(model)
    preprocessing = Preprocessing.from_json(card.preprocessing)
    pixels = score.facts_of_file(str(folder / "a" / "2.png"), preprocessing).pixels
    size = card.image_size
    expected = models.predict(network, card, np.frombuffer(pixels, np.uint8).reshape(1, size, size))
    (row,) = predictions.where(F.col("path").endswith("2.png")).collect()
    found = [row.probabilities[name] for name in CLASS_COLUMNS]
    np.testing.assert_allclose(found, expected[0], atol=1e-6)


def test_the_same_content_is_inferred_once_and_a_rerun_infers_nothing(
    spark: SparkSession, warehouse: Warehouse, model: Path, folder: Path, tmp_path: Path
) -> None:
    run, predictions = _scored(spark, warehouse, model, folder)
    rows = {Path(row.path).name: row for row in predictions.collect()}
    assert rows["copy of 0.png"].probabilities == rows["0.png"].probabilities
    version = warehouse.version("predictions")
    rerun, _ = _scored(spark, warehouse, model, folder)
    assert rerun.counts["skipped"] == 6
    assert warehouse.version("predictions") == version
    # Elsewhere the same content has a row of its own, without inference.
    other = tmp_path / "other"
    shutil.copytree(folder / "a", other)
    draw(other / "new.png", 99)
    again, predictions = _scored(spark, warehouse, model, other)
    assert (again.counts["scored"], again.counts["inferred"]) == (4, 1)
    assert predictions.count() == 10
    assert run.counts["inferred"] <= 4


def test_a_changed_file_is_scored_again(
    spark: SparkSession, warehouse: Warehouse, model: Path, folder: Path
) -> None:
    _scored(spark, warehouse, model, folder)
    draw(folder / "empty.png", 1234)
    run, predictions = _scored(spark, warehouse, model, folder)
    assert run.counts["scored"] == 1
    rows = predictions.where(F.col("path").endswith("empty.png")).orderBy("scored_at").collect()
    assert [row.error for row in rows] == ["empty_file", None]


def test_the_model_is_loaded_once_a_worker_and_the_udf_evaluated_once(
    spark: SparkSession, warehouse: Warehouse, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    for i in range(40):
        draw(folder / f"{i}.png", i, size=40)
    fresh = tmp_path / "models" / model.name  # a folder that no worker has loaded yet
    shutil.copytree(model, fresh)
    few_rows_a_task, score.ROWS_PER_TASK = score.ROWS_PER_TASK, 4
    try:
        run, _ = _scored(spark, warehouse, fresh, folder)
    finally:
        score.ROWS_PER_TASK = few_rows_a_task
    # Ten tasks, two workers at most.
    assert 1 <= run.counts["model_loads"] <= 2
    assert run.counts["inferred"] == 40


def test_what_cannot_be_scored_is_refused_before_anything_is_written(
    spark: SparkSession, chain: Any, model: Path, tmp_path: Path
) -> None:
    warehouse = Warehouse(tmp_path / "none")
    run = job.Run("score")
    with pytest.raises(ValueError, match="no such folder"):
        score.score_folders(spark, warehouse, model, [tmp_path / "nowhere"], run)
    with pytest.raises(ValueError, match="no curate run has finished"):
        score.score_images(spark, warehouse, model, run)
    weights = tmp_path / "models" / model.name
    shutil.copytree(model, weights)
    content = bytearray((weights / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (weights / "weights.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"sha256|changed"):
        score.score_images(spark, Warehouse(chain.warehouse), weights, run)
    assert not warehouse.root.exists()


def test_images_of_another_preprocessing_are_refused(
    spark: SparkSession, chain: Any, model: Path
) -> None:
    card = load_card(model)
    images = Warehouse(chain.warehouse).read(spark, "images")
    other = images.withColumn("preprocessing", F.lit("another"))
    with pytest.raises(score.ScoreError, match="--image-size"):
        score._check_preprocessing(other, card)
    score._check_preprocessing(images, card)


def test_sixteen_bit_and_rgb_files_are_scored_like_grey_ones(
    spark: SparkSession, warehouse: Warehouse, model: Path, tmp_path: Path
) -> None:
    grey = cv2.imread(str(draw(tmp_path / "in" / "grey.png", 5)), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "in" / "rgb.png"), cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR))
    cv2.imwrite(str(tmp_path / "in" / "deep.png"), grey.astype(np.uint16) * 257)
    _, predictions = _scored(spark, warehouse, model, tmp_path / "in")
    rows = {Path(row.path).name: row.probabilities for row in predictions.collect()}
    assert len(rows) == 3
    for name in ("rgb.png", "deep.png"):
        np.testing.assert_allclose(rows[name], rows["grey.png"], atol=1e-6)
