"""A competition's file from predictions: an id and nine probabilities for each image listed."""

import csv
import io
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cxr_spark.labels import CLASS_COLUMNS
from cxr_spark.run import Run
from cxr_spark.scored import Scored
from cxr_spark.scoring import Scoring
from cxr_spark.tables import Warehouse
from cxr_spark.whole_files import replaced

DIGITS = 9


class SubmissionError(ValueError):
    """The file can't be written where it was asked for, or two of its rows would have one id."""


def target(path: str | Path) -> Path:
    """The absolute path of a submission, checked before any work is done.

    Raises:
        SubmissionError: its folder isn't there, or can't be written to.
    """
    place = Path(path).absolute()
    if place.is_dir() or not place.parent.is_dir():
        raise SubmissionError(f"--submission {path}: give a file in a folder that is there")
    try:
        with tempfile.TemporaryFile(dir=place.parent):
            return place
    except OSError as error:
        raise SubmissionError(
            f"--submission {path}: {place.parent} can't be written to ({error.strerror})"
        ) from error


def check_ids(listed: pa.Table) -> None:
    """Make sure before any work is done that no two rows will have the same id.

    Raises:
        SubmissionError: they would.
    """
    ((name, times),) = Counter(listed["name"].to_pylist()).most_common(1) or [("", 0)]
    if times > 1:
        same = listed.filter(pc.equal(listed["name"], name))["path"].to_pylist()
        raise SubmissionError(
            f"--submission: the id {name} would stand for {same[0]} and for {same[1]}; give one "
            "--input above them all, or --paths without rows that are there twice"
        )


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
        for name, row in zip(listed["name"].to_pylist(), scored.probabilities(listed), strict=True):
            without += row is None
            values = scoring.card.train_priors if row is None else row
            lines.writerow([name, *np.round(values, DIGITS)])
        text.detach()
    run.outputs["submission"] = str(path)
    run.say(
        f"{path}: {len(listed):,} images"
        + (f", {without:,} of them without a prediction" if without else "")
    )
