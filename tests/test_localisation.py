"""Boxes in the prepared square, and how heat fits them, against pixels and chance."""

import numpy as np
import pandas as pd
import pytest

from cxr_spark import localisation
from cxr_spark.image_arrays import square
from cxr_spark.localisation import boxes_in_square, fit_of, iou, mask
from cxr_spark.scored_rows import ScoredRows


def box(x: float, y: float, width: float, height: float) -> dict[str, float]:
    return {"x": x, "y": y, "width": width, "height": height}


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(400, 400), (400, 640), (640, 400), (401, 640)])
def test_a_box_lies_in_the_square_where_its_pixels_do(fit: str, shape: tuple[int, int]) -> None:
    height, width = shape
    drawn = np.zeros(shape, dtype=np.uint8)
    drawn[150:250, 160:300] = 255
    pixels = square(drawn, 100, fit)
    (found,) = boxes_in_square(
        [box(160, 150, 140, 100)], width=width, height=height, size=100, fit=fit
    )
    assert iou(mask([found], 100), pixels > 127) > 0.9


def test_what_a_crop_cuts_off_is_cut_off_boxes_and_none_is_left_of_one_outside() -> None:
    options = {"width": 200, "height": 100, "size": 100, "fit": "crop"}
    assert boxes_in_square([box(40, 0, 20, 100)], **options) == [(0, 0, 10, 100)]
    assert boxes_in_square([box(0, 0, 50, 100)], **options) == []


def heat_at(row: int, column: int) -> np.ndarray:
    heat = np.zeros((100, 100), dtype=np.float32)
    heat[row : row + 20, column : column + 20] = 0.6
    heat[row + 10, column + 10] = 1
    return heat


def test_heat_on_the_box_fits_and_heat_beside_it_does_not() -> None:
    there = fit_of(heat_at(30, 40), [(40, 30, 60, 50)])
    assert (there.pointed, there.iou) == (True, 1.0)
    beside = fit_of(heat_at(30, 40), [(60, 30, 80, 50)])
    assert (beside.pointed, beside.iou) == (False, 0.0)
    half = fit_of(heat_at(30, 40), [(50, 30, 70, 50)])
    assert half.iou == pytest.approx(1 / 3)


def test_any_of_several_boxes_may_be_pointed_at_and_their_union_counts() -> None:
    boxes = [(0, 0, 20, 20), (40, 30, 60, 50)]
    found = fit_of(heat_at(30, 40), boxes)
    assert found.pointed
    assert found.iou == pytest.approx(0.5)


def test_no_heat_points_nowhere() -> None:
    found = fit_of(np.zeros((100, 100), dtype=np.float32), [(0, 0, 50, 50)])
    assert (found.pointed, found.iou) == (False, 0.0)


def test_chance_is_near_what_geometry_says() -> None:
    # The middle of a random box of 20 x 20 is uniform over 80 x 80, of which the box is 20 x 20.
    found = fit_of(heat_at(0, 0), [(40, 40, 60, 60)])
    assert found.pointed_by_chance == pytest.approx((20 / 80) ** 2, abs=0.05)
    assert 0.005 < found.iou_by_chance < 0.06
    whole = fit_of(heat_at(0, 0), [(0, 0, 100, 100)])
    assert (whole.pointed_by_chance, whole.iou_by_chance) == (1.0, 1.0)


def test_figures_are_means_over_judged_images_with_boxes_of_all_and_of_each_class() -> None:
    names = np.array(["a", "b", "c", "d"])
    labels = np.array([0, 0, 1, 2])
    rows = ScoredRows(names, names, names, labels, np.full((4, 9), 1 / 9))
    fits = pd.DataFrame(
        [("a", True, 0.5, 0.1, 0.2), ("c", False, 0.1, 0.1, 0.2), ("other", True, 1, 1, 1)],
        columns=["image_id", *localisation.METRICS],
    )
    found = {f[1:3]: f for f in localisation.figures_of(fits, rows)}
    assert (found["all", "pointing_game"].value, found["all", "pointing_game"].n) == (0.5, 2)
    assert found["all", "box_iou"].value == pytest.approx(0.3)
    assert found["Atelectasis", "pointing_game"].value == 1
    assert found["Cardiomegaly", "box_iou_by_chance"].value == pytest.approx(0.2)
    assert not any(name == "Covid" for name, _ in found)
    assert localisation.figures_of(fits[2:], rows) == []
