"""Glances made in Spark: of which rows, the same ones each time, and what a model of them says."""

from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from cxr_spark import baselines, glances, tables

GREY = {"train": 100, "val": 120, "test": 200}


def row(number: int, split: str) -> dict[str, Any]:
    """Even images are class 0 and dark at the top, odd ones class 1 and dark at the bottom."""
    pixels = np.full((32, 32), GREY[split], dtype=np.uint8)
    pixels[:16] -= 50 * (number % 2 == 0)
    pixels[16:] -= 50 * (number % 2 == 1)
    return {
        "image_id": f"{split}{number:02d}",
        "split": split,
        "label_index": number % 2,
        "image_size": 32,
        "pixels": pixels.tobytes(),
    }


@pytest.fixture(scope="module")
def images(spark: SparkSession) -> DataFrame:
    rows = [
        row(number, split)
        for split, n in (("train", 40), ("val", 6), ("test", 4))
        for number in range(n)
    ]
    return spark.createDataFrame(rows, tables.schema("images"))


def test_glances_of_train_val_and_the_judged_split_come_in_order(images: DataFrame) -> None:
    seen = glances.read_glances(images, "test", 40)
    assert seen["split"].value_counts().to_dict() == {"train": 40, "val": 6, "test": 4}
    assert list(seen["image_id"]) == sorted(seen["image_id"])
    assert set(seen["glance"].map(len)) == {baselines.GLANCE_SIZE}
    assert set(glances.read_glances(images, "val", 40)["split"]) == {"train", "val"}


def test_of_a_large_train_split_the_same_part_is_drawn_each_time(
    images: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glances, "TRAIN_ROWS", 20)
    seen = glances.read_glances(images, "test", 40)
    again = glances.read_glances(images.repartition(3), "test", 40)
    assert 8 < (seen["split"] == "train").sum() < 32
    assert list(seen["image_id"]) == list(again["image_id"])
    assert (seen["split"] == "test").sum() == 4
    # Where train itself is judged, all of it is looked at, and the same part teaches.
    of_train = glances.read_glances(images, "train", 40)
    assert (of_train["split"] == "train").sum() == 40
    taught = list(seen["image_id"][seen["teaches"]])
    given = glances.border_only(of_train, of_train["image_id"])
    assert given is not None
    np.testing.assert_allclose(
        given[of_train["image_id"].isin(taught)], glances.border_only(seen, taught), atol=1e-12
    )


def test_brightness_is_the_mean_grey_level(images: DataFrame) -> None:
    levels = glances.brightness(glances.read_glances(images, "test", 40))
    assert levels["test00"] == pytest.approx(175)
    assert levels["train01"] == pytest.approx(75)


def test_border_only_learns_what_borders_tell(images: DataFrame) -> None:
    seen = glances.read_glances(images, "test", 40)
    given = glances.border_only(seen, ["test03", "test00"])
    assert given is not None
    assert given.argmax(axis=1).tolist() == [1, 0]
    assert given.max(axis=1).min() > 0.6


def test_without_train_or_without_a_glance_at_an_image_there_is_no_such_model(
    images: DataFrame,
) -> None:
    seen = glances.read_glances(images, "test", 40)
    assert glances.border_only(seen, ["test00", "unseen"]) is None
    assert glances.border_only(seen[seen["split"] != "train"], ["test00"]) is None
