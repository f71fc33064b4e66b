"""A competition's file from predictions: an id and nine probabilities for each image listed."""

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow as pa

from cxr_spark.labels import CLASS_COLUMNS
from cxr_spark.run import Run
from cxr_spark.scored import Scored
from cxr_spark.scoring import Scoring
from cxr_spark.tables import Warehouse
from cxr_spark.whole_files import replaced

DIGITS = 9


class SubmissionError(ValueError):
    """The file can't be written where it was asked for."""


def target(path: str | Path) -> Path:
    """The absolute path of a submission, checked before any work is done.

    Raises:
        SubmissionError: its folder isn't there.
    """
    place = Path(path).absolute()
    if place.is_dir() or not place.parent.is_dir():
        raise SubmissionError(f"--submission {path}: give a file in a folder that is there")
    return place


def write(path: Path, listed: pa.Table, warehouse: Warehouse, scoring: Scoring, run: Run) -> None:
    """Write the newest predictions of what is listed, whole or not at all, in its order.

    An image without probabilities gets the class shares of the train split: without a picture they
    are the best guess there is, and a submission must not lack a row.

    Args:
        path: of the CSV.
        listed: columns of `score_inputs.listed_schema`; `name` becomes the id.
        warehouse: holds the predictions.
        scoring: its last model version is the one that counts.
        run: is told how many images had no probabilities.
    """
    at = warehouse.version("predictions")
    scored = Scored.read(warehouse, scoring.model_versions[-1], at)
    without = 0
    with replaced(path) as file:
        text = io.TextIOWrapper(file, "utf-8", newline="")
        lines = csv.writer(text)
        lines.writerow(["id", *CLASS_COLUMNS])
        for name, row in zip(listed["name"].to_pylist(), scored.newest(listed), strict=True):
            without += row is None
            values = scoring.card.train_priors if row is None else row
            lines.writerow([name, *np.round(values, DIGITS)])
        text.detach()
    run.outputs["submission"] = str(path)
    run.say(
        f"{path}: {len(listed):,} images"
        + (f", {without:,} of them without a prediction" if without else "")
    )
