"""Whether heat lies where a reader drew a box: the pointing game and IoU, beside chance."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr_spark import bootstrap
from cxr_spark.metrics import Booleans
from cxr_spark.scored_rows import ScoredRows
from cxr_spark.slice_figures import Figure, Ratio, classes_of, figure_of, of_ratios

HOT = 0.5
"""Of the hottest place: from there on a place is part of the region that IoU is about."""
CHANCES = 200

METRICS = {
    "pointed": "pointing_game",
    "iou": "box_iou",
    "pointed_by_chance": "pointing_game_by_chance",
    "iou_by_chance": "box_iou_by_chance",
}
"""The metrics by the fields of Hit."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


class Hit(NamedTuple):
    """How heat fits boxes, and how boxes of the same sizes at random places would, on average.

    Attributes:
        pointed: the hottest place is in a box (Zhang et al. 2018, doi 10.1007/s11263-017-1059-x;
            without its tolerance).
        iou: of the places that are at least half as hot and the boxes.
        pointed_by_chance: the share of random boxes whose middle is in a box.
        iou_by_chance: of random boxes and the boxes, the mean.
    """

    pointed: bool
    iou: float
    pointed_by_chance: float
    iou_by_chance: float


def boxes_in_square(
    boxes: Sequence[Mapping[str, float]], *, width: int, height: int, size: int, fit: str
) -> list[Box]:
    """Boxes of an original as they lie in the prepared square, see image_arrays.square.

    What a crop cuts off is cut off the boxes; a box that is all outside is left out.

    Args:
        boxes: x, y, width, height in pixels of the original.
        width, height: of the original.
        size: side of the square.
        fit: `crop`, `pad` or `stretch`.

    Returns:
        In pixels of the square.
    """
    side_x, side_y, left, top = float(width), float(height), 0.0, 0.0
    if fit != "stretch":
        side = min(width, height) if fit == "crop" else max(width, height)
        side_x = side_y = float(side)
        # A crop begins inside the image, along its longer side; padding outside, along the shorter.
        margin = abs(height - width) // 2
        begins = float(margin if fit == "crop" else -margin)
        if (width > height) == (fit == "crop"):
            left = begins
        else:
            top = begins
    scale_x, scale_y = size / side_x, size / side_y
    inside = []
    for box in boxes:
        x0, x1 = ((box["x"] + w - left) * scale_x for w in (0.0, box["width"]))
        y0, y1 = ((box["y"] + h - top) * scale_y for h in (0.0, box["height"]))
        x0, y0, x1, y1 = (min(max(edge, 0.0), float(size)) for edge in (x0, y0, x1, y1))
        if x1 - x0 >= 1 and y1 - y0 >= 1:
            inside.append((x0, y0, x1, y1))
    return inside


def fit_of(heat: NDArray[np.float32], boxes: Sequence[Box], *, seed: int = 0) -> Hit:
    """How heat (S, S) fits boxes, at least one.

    Heat without any hot place points nowhere and covers nothing.
    """
    size = len(heat)
    truth = mask(boxes, size)
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    is_hot = heat >= HOT
    pointed = bool(heat.max() > 0 and truth[row, column])
    generator = np.random.default_rng(seed)
    chances = [_moved(boxes, size, generator) for _ in range(CHANCES)]
    middles = [((x0 + x1) / 2, (y0 + y1) / 2) for (x0, y0, x1, y1), *_ in chances]
    return Hit(
        pointed,
        iou(is_hot, truth),
        float(np.mean([truth[int(y), int(x)] for x, y in middles])),
        float(np.mean([iou(mask(moved, size), truth) for moved in chances])),
    )


def figures_of(fits: pd.DataFrame, rows: ScoredRows) -> list[Figure]:
    """The means over images with boxes, of all and of each class, beside those of chance.

    Args:
        fits: image_id and the fields of Hit.
        rows: the images that are judged; others don't count.
    """
    table = fits[fits["image_id"].isin(set(rows.image_id))].set_index("image_id")
    if table.empty:
        return []
    boxed = rows.where(np.isin(rows.image_id, table.index))
    values = table.loc[boxed.image_id]
    ratios = [
        Ratio(name, metric, values[column].to_numpy(np.float64) * of, of)
        for name, of in classes_of(boxed)
        for column, metric in METRICS.items()
    ]
    spreads = of_ratios(ratios, bootstrap.draw_groups(boxed.group_id))
    return [figure_of("all", spread, boxed.group_id) for spread in spreads]


def mask(boxes: Sequence[Box], size: int) -> Booleans:
    """(size, size) True in the boxes."""
    covered = np.zeros((size, size), dtype=bool)
    for box in boxes:
        x0, y0, x1, y1 = (round(edge) for edge in box)
        covered[y0:y1, x0:x1] = True
    return covered


def iou(one: Booleans, other: Booleans) -> float:
    """Intersection over union of two masks; 0 where both are empty."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 0.0


def _moved(boxes: Sequence[Box], size: int, generator: np.random.Generator) -> list[Box]:
    """Boxes of the same sizes anywhere in the square."""
    moved = []
    for x0, y0, x1, y1 in boxes:
        x, y = generator.uniform(0, size - (x1 - x0)), generator.uniform(0, size - (y1 - y0))
        moved.append((x, y, x + x1 - x0, y + y1 - y0))
    return moved
