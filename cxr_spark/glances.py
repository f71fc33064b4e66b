"""Glances at the images of a version, made on executors, and what a model of them alone says."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cxr_spark import arrow_batches, baselines
from cxr_spark.baselines import GLANCE_SIZE, THUMBNAIL_SIDE
from cxr_spark.metrics import Floats

TRAIN_ROWS = 20_000
"""More train images than this teach a model of 500 inputs nothing, and the driver would wait."""
PARTS = 1_000_000


def read_glances(images: DataFrame, split: str, n_train: int) -> pd.DataFrame:
    """Glances at the split to be judged, at val and at some of train.

    Args:
        images: the table, pixels included; they stay on the executors.
        split: to be judged.
        n_train: rows of train.

    Returns:
        image_id, split, label_index, teaches, glance (GLANCE_SIZE bytes), in the order of
        image_id. Of train about TRAIN_ROWS rows teach, the same ones each time.
    """
    share = min(1.0, TRAIN_ROWS / max(n_train, 1))
    is_drawn = F.pmod(F.xxhash64("image_id"), F.lit(PARTS)) < F.lit(int(share * PARTS))
    teaches = (F.col("split") == "train") & is_drawn
    wanted = F.col("split").isin("val", split) | teaches
    has_pixels = F.length("pixels") == F.col("image_size") * F.col("image_size")
    rows = images.where(wanted & has_pixels).select(
        "image_id",
        "split",
        "label_index",
        teaches.alias("teaches"),
        _glances("pixels").alias("glance"),
    )
    with arrow_batches.bounded(images.sparkSession, arrow_batches.pixels_bytes(images)):
        glances: pd.DataFrame = rows.toPandas()
    return glances.sort_values("image_id", ignore_index=True)


def brightness(glances: pd.DataFrame) -> pd.Series:
    """Mean grey level, 0 to 255, by image_id."""
    means = _stacked(glances["glance"])[:, -(THUMBNAIL_SIDE**2) :].mean(axis=1)
    return pd.Series(means, index=glances["image_id"].to_numpy())


def border_only(glances: pd.DataFrame, image_ids: Iterable[str]) -> Floats | None:
    """(N, 9) what a model of glances, fitted to those that teach, says of these images.

    None where there is nothing to fit it to, or no glance at one of them.
    """
    train, val = glances[glances["teaches"]], glances[glances["split"] == "val"]
    known = glances.set_index("image_id")["glance"]
    wanted = known.reindex(list(image_ids))
    if train.empty or wanted.isna().any():
        return None
    model = baselines.fit_glance_model(
        _stacked(train["glance"]),
        train["label_index"].to_numpy(np.int64),
        _stacked(val["glance"]),
        val["label_index"].to_numpy(np.int64),
    )
    given = _stacked(wanted)
    parts = (given[start : start + TRAIN_ROWS] for start in range(0, len(given), TRAIN_ROWS))
    return np.concatenate([model.probabilities(part) for part in parts])


@F.pandas_udf(T.BinaryType())  # type: ignore[call-overload]
def _glances(pixels: pd.Series) -> pd.Series:
    return pixels.map(lambda content: baselines.glance(_square(content)).tobytes())


def _square(content: bytes) -> np.ndarray:
    side = int(np.sqrt(len(content)))
    return np.frombuffer(content, dtype=np.uint8).reshape(side, side)


def _stacked(glances: pd.Series) -> np.ndarray:
    joined = np.frombuffer(b"".join(glances), dtype=np.uint8)
    return joined.reshape(len(glances), GLANCE_SIZE)
