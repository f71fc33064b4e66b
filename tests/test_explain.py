"""Grad-CAM on executors gives what it gives here, for the images asked for and no others."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyspark.sql import DataFrame, SparkSession

from cxr_spark import explain, localisation, tables
from cxr_spark.gradcam import grad_cam, overlay
from cxr_spark.labels import LABEL_INDEX
from cxr_spark.models import load_model, standardise
from tests import artifacts

SIZE = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(artifacts.save(tmp_path_factory.mktemp("models"), size=SIZE))


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)


def heat(model: str, image: np.ndarray, label: str) -> np.ndarray:
    """What grad_cam gives in this process."""
    network, card = load_model(model)
    given = standardise(torch.from_numpy(image)[None, None], card.mean, card.std)
    return grad_cam(network, given, LABEL_INDEX[label])[0]


def row(image_id: str, seed: int, label: str, *boxed: str) -> dict[str, Any]:
    box = {"x": 10.0, "y": 20.0, "width": 60.0, "height": 50.0}
    return {
        "image_id": image_id,
        "label": label,
        "width": 128,
        "height": 128,
        "image_size": SIZE,
        "pixels": pixels(seed).tobytes(),
        "boxes": [box | {"label": name} for name in boxed] or None,
    }


@pytest.fixture(scope="module")
def images(spark: SparkSession) -> DataFrame:
    rows = [
        row("a", 1, "Edema"),
        row("b", 2, "Covid", "Covid"),
        row("c", 3, "Edema", "Covid"),
        row("d", 4, "Effusion", "Edema", "Effusion"),
    ]
    frame = spark.createDataFrame(rows, tables.schema("images"))
    return frame.select("image_id", "label", "boxes", "width", "height", "image_size", "pixels")


def test_an_overlay_is_made_of_each_image_that_is_asked_for(
    spark: SparkSession, images: DataFrame, model: str
) -> None:
    wanted = {"a": LABEL_INDEX["Covid"], "d": LABEL_INDEX["Edema"]}
    found = explain.overlays(spark, images, wanted, model)
    assert found.keys() == wanted.keys()
    shown = np.asarray(Image.open(io.BytesIO(found["a"])))
    expected = Image.open(io.BytesIO(overlay(pixels(1), heat(model, pixels(1), "Covid"))))
    np.testing.assert_allclose(shown, np.asarray(expected), atol=2)


def test_heat_of_an_images_own_class_is_held_against_the_boxes_of_that_class(
    images: DataFrame, model: str
) -> None:
    found = explain.fits_of_boxes(images, "crop", model)
    assert list(found["image_id"]) == ["b", "d"]
    boxes = localisation.boxes_in_square(
        [{"x": 10, "y": 20, "width": 60, "height": 50}],
        width=128,
        height=128,
        size=SIZE,
        fit="crop",
    )
    for place, (seed, label) in enumerate([(2, "Covid"), (4, "Effusion")]):
        expected = localisation.fit_of(heat(model, pixels(seed), label), boxes)
        assert found.iloc[place].to_dict() == pytest.approx(
            {"image_id": "bd"[place], **expected._asdict()}, abs=1e-2
        )


def test_large_images_give_pictures_of_a_pages_size() -> None:
    large = overlay(np.zeros((512, 512), np.uint8), np.zeros((512, 512), np.float32))
    assert Image.open(io.BytesIO(explain._shrunk(large))).size == (224, 224)
