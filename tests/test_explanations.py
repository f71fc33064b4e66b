"""Overlays beside the predictions: of the images asked for, of the class predicted, each once."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pyspark.sql import SparkSession

from cxr_spark import explanations, job, score_inputs
from cxr_spark.gradcam import grad_cam, overlay
from cxr_spark.images import Preprocessing, facts_of_file
from cxr_spark.labels import LABEL_INDEX
from cxr_spark.models import load_model as load_network
from cxr_spark.models import standardise
from cxr_spark.scoring import Scoring, ScoringError, load_model
from cxr_spark.tables import Warehouse
from tests import artifacts
from tests.test_curate import draw
from tests.test_score import aged, by_name, scored


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures in two contents, and no picture."""
    for number in range(2):
        draw(tmp_path / "in" / f"{number}.png", number)
    shutil.copy(tmp_path / "in" / "0.png", tmp_path / "in" / "copy.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"broken")
    return aged(tmp_path / "in")


def test_images_are_chosen_by_id_by_path_or_all(folder: Path) -> None:
    listed = score_inputs.image_files([folder], [])
    assert explanations.choose(listed, ["all", "0.png"]) is listed
    chosen = explanations.choose(listed, ["copy.png", f"file:{folder}/0.png"])
    assert chosen["name"].to_pylist() == ["0.png", "copy.png"]
    with pytest.raises(ScoringError, match=r"--explain 7\.png: none of the 4 images listed"):
        explanations.choose(listed, ["0.png", "7.png"])


def heat_over(model: Path, path: Path, label: str) -> np.ndarray:
    """The overlay as it comes of this process."""
    network, card = load_network(model)
    square = facts_of_file(str(path), Preprocessing(size=card.image_size)).pixels
    pixels = np.frombuffer(square or b"", np.uint8).reshape(card.image_size, -1)
    given = standardise(torch.from_numpy(pixels.copy())[None, None], card.mean, card.std)
    heat = grad_cam(network, given, LABEL_INDEX[label])[0]
    return np.asarray(Image.open(io.BytesIO(overlay(pixels, heat))))


def test_each_content_with_a_prediction_has_one_overlay_of_the_class_predicted(
    spark: SparkSession, folder: Path, tmp_path: Path
) -> None:
    model = artifacts.save(tmp_path / "models")
    warehouse, scoring = Warehouse(tmp_path / "warehouse"), Scoring((load_model(model),))
    _, predictions = scored(spark, warehouse, scoring, folder)
    rows, listed = by_name(predictions), score_inputs.image_files([folder], [])

    def write(names: list[str], **given: bool) -> float:
        run = job.Run("score")
        wanted = Scoring(scoring.models, **given)  # type: ignore[arg-type]
        chosen = explanations.choose(listed, names)
        explanations.write(spark, warehouse, chosen, wanted, run)
        return run.counts["explained"]

    assert write(["0.png", "broken.png"]) == 1
    (there,) = (tmp_path / "warehouse" / "explanations").rglob("*.png")
    first = rows["0.png"]
    assert there == explanations.place(warehouse, first.model_version, first.content_sha256)
    expected = heat_over(model, folder / "0.png", first.predicted_label)
    np.testing.assert_allclose(np.asarray(Image.open(there)), expected, atol=2)

    assert write(["copy.png"]) == 0  # its content's is there
    (folder / "1.png").write_bytes(b"it has changed since it was scored")
    assert write(["all"], rescore=True) == 1
    stopped = job.Run("score")
    stopped.max_runtime = 1e-9
    with pytest.raises(job.Stopped):
        explanations.write(spark, warehouse, listed, Scoring(scoring.models, rescore=True), stopped)
