"""Grad-CAM on executors: overlays of chosen images, and how heat fits the boxes of a split."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from cxr_spark import arrow_batches, localisation
from cxr_spark.labels import LABEL_INDEX

IMAGES_AT_ONCE = 16
PICTURE_SIDE = 224
FITS = (
    "image_id string, pointed boolean, iou double, pointed_by_chance double, iou_by_chance double"
)
OVERLAYS = "image_id string, overlay binary"
HEAT_FIELDS = ("pointed", "iou", "pointed_by_chance", "iou_by_chance")

Heats = NDArray[np.float32]


def overlays(
    spark: SparkSession, images: DataFrame, classes: Mapping[str, int], model_folder: str
) -> dict[str, bytes]:
    """PNGs of images with the heat of a class laid over them.

    Args:
        images: image_id, pixels; prepared as the model expects.
        classes: whose heat, by image_id; only these images are explained.
        model_folder: the artifact.
    """
    wanted = spark.createDataFrame([*classes.items()], "image_id string, class_index int")
    rows = images.join(F.broadcast(wanted), on="image_id", how="inner")
    made = _on_executors(rows, _overlays, OVERLAYS, model_folder)
    return {row.image_id: bytes(row.overlay) for row in made.collect()}


def fits_of_boxes(images: DataFrame, fit: str, model_folder: str) -> pd.DataFrame:
    """How the heat of an image's own class fits the boxes drawn for it.

    Args:
        images: image_id, label, boxes, width, height, image_size, pixels, of one split.
        fit: of the preprocessing: `crop`, `pad` or `stretch`.
        model_folder: the artifact.

    Returns:
        image_id and the fields of localisation.Hit, of the images with a box of their own label
        that lies in the square, at least in part.
    """
    rows = images.withColumn("boxes", F.expr("filter(boxes, box -> box.label = label)")).where(
        "size(boxes) > 0"
    )
    tell = partial(_fits, fit=fit)
    with arrow_batches.bounded(images.sparkSession, arrow_batches.pixels_bytes(rows)):
        fits: pd.DataFrame = _on_executors(rows, tell, FITS, model_folder).toPandas()
    return fits.sort_values("image_id", ignore_index=True)


def _on_executors(
    rows: DataFrame,
    tell: Callable[[pd.DataFrame, str], pd.DataFrame],
    schema: str,
    model_folder: str,
) -> DataFrame:
    tasks = rows.sparkSession.sparkContext.defaultParallelism

    def told(batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            for start in range(0, len(batch), IMAGES_AT_ONCE):
                yield tell(batch.iloc[start : start + IMAGES_AT_ONCE], model_folder)

    return rows.repartition(tasks).mapInPandas(told, schema)


def _overlays(batch: pd.DataFrame, model_folder: str) -> pd.DataFrame:
    from cxr_spark.gradcam import overlay

    pixels = _squares(batch)
    heats = _heats(pixels, batch["class_index"].to_numpy(np.int64), model_folder)
    made = [_shrunk(overlay(image, heat)) for image, heat in zip(pixels, heats, strict=True)]
    return pd.DataFrame({"image_id": batch["image_id"], "overlay": made})


def _fits(batch: pd.DataFrame, model_folder: str, fit: str) -> pd.DataFrame:
    pixels = _squares(batch)
    classes = batch["label"].map(LABEL_INDEX).to_numpy(np.int64)
    heats = _heats(pixels, classes, model_folder)
    found = []
    for row, heat in zip(batch.itertuples(), heats, strict=True):
        boxes = localisation.boxes_in_square(
            row.boxes, width=row.width, height=row.height, size=row.image_size, fit=fit
        )
        if boxes:
            found.append((row.image_id, *localisation.fit_of(heat, boxes)))
    return pd.DataFrame(found, columns=["image_id", *HEAT_FIELDS])


def _heats(pixels: NDArray[np.uint8], classes: NDArray[np.int64], model_folder: str) -> Heats:
    # Drivers never come here, so they never pay for importing torch.
    import torch

    from cxr_spark.gradcam import grad_cam
    from cxr_spark.models import standardise

    model, card = _loaded(model_folder)
    images = torch.from_numpy(pixels.copy())[:, None]
    return grad_cam(model, standardise(images, card.mean, card.std), torch.from_numpy(classes))


# Of this worker process: one model, kept from batch to batch.
_models: dict[str, Any] = {}


def _loaded(model_folder: str) -> Any:
    if model_folder not in _models:
        import torch

        from cxr_spark.models import load_model

        torch.set_num_threads(1)  # Spark runs a worker a core
        _models.clear()
        _models[model_folder] = load_model(model_folder)
    return _models[model_folder]


def _squares(batch: pd.DataFrame) -> NDArray[np.uint8]:
    side = int(np.sqrt(len(batch["pixels"].iloc[0])))
    return np.frombuffer(b"".join(batch["pixels"]), np.uint8).reshape(-1, side, side)


def _shrunk(png: bytes) -> bytes:
    picture = Image.open(io.BytesIO(png))
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    small = io.BytesIO()
    picture.save(small, format="PNG", optimize=True)
    return small.getvalue()
