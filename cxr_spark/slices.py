"""The slices of an evaluation: which part of the images a row belongs to, by what is known."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

UNKNOWN = "unknown"
AGE_BANDS = {0: "0-17", 18: "18-39", 40: "40-59", 60: "60-79", 80: "80+"}
SIZES = {0: "under 500 px", 500: "500-999 px", 1000: "1000-1999 px", 2000: "2000+ px"}
"""Of the original's shorter side."""
BRIGHTNESSES = {0: "dark", 85: "middle", 170: "bright"}
"""Of the mean grey level of the prepared image: thirds of the scale."""

Names = NDArray[np.str_]


def slices_of(rows: pd.DataFrame) -> Mapping[str, Names]:
    """The slice of each row, by kind.

    Args:
        rows: source, sex, view, format (text or null); age_years, width, height, brightness
            (numbers or null).

    Returns:
        (N,) names by kind: source, sex, age, view, size, format, brightness. What isn't known of a
        row puts it into `unknown`: where that is one kind of source, the slice is one too.
    """
    shorter_side = rows[["width", "height"]].min(axis=1, skipna=False)
    return {
        "source": _named(rows["source"]),
        "sex": _named(rows["sex"]),
        "age": _banded(rows["age_years"], AGE_BANDS),
        "view": _named(rows["view"]),
        "size": _banded(shorter_side, SIZES),
        "format": _named(rows["format"]),
        "brightness": _banded(rows["brightness"], BRIGHTNESSES),
    }


def in_order(names: Names) -> list[str]:
    """The distinct names, bands by their place, `unknown` last."""
    bands = [*AGE_BANDS.values(), *SIZES.values(), *BRIGHTNESSES.values(), UNKNOWN]
    places = {name: place for place, name in enumerate(bands)}
    return sorted({str(name) for name in names}, key=lambda name: (places.get(name, -1), name))


def _named(column: pd.Series) -> Names:
    return column.where(column.notna(), UNKNOWN).to_numpy(dtype=str)


def _banded(column: pd.Series, bands: Mapping[int, str]) -> Names:
    numbers = pd.to_numeric(column).to_numpy(dtype=np.float64)
    names = np.array([*bands.values()])
    place = np.digitize(numbers, [*bands][1:])
    return np.where(np.isnan(numbers), UNKNOWN, names[place])
