"""A submission has a row for each image listed, in order, whether it could be scored or not."""

import csv
import shutil
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from cxr_spark import job, score_inputs, submission
from cxr_spark.labels import CLASS_COLUMNS
from cxr_spark.scoring import Scoring, load_model
from cxr_spark.tables import Warehouse
from tests import artifacts
from tests.test_curate import draw
from tests.test_score import aged, by_name, scored


def test_every_image_listed_has_its_probabilities_or_the_train_splits_shares(
    spark: SparkSession, tmp_path: Path
) -> None:
    folder, warehouse = tmp_path / "in", Warehouse(tmp_path / "warehouse")
    for i in range(3):
        draw(folder / "b" / f"{i}.png", i)
    (folder / "a, b.jpg").write_bytes(b"broken")
    shutil.copy(folder / "b" / "2.png", folder / "z.png")
    scoring = Scoring((load_model(artifacts.save(tmp_path / "models")),))
    run, predictions = scored(spark, warehouse, scoring, aged(folder))
    listed = score_inputs.image_files([folder], [])
    submission.write(tmp_path / "out.csv", listed, warehouse, scoring, run)
    header, *lines = csv.reader((tmp_path / "out.csv").read_text().splitlines())
    assert header == ["id", *CLASS_COLUMNS]
    assert [line[0] for line in lines] == ["a, b.jpg", "b/0.png", "b/1.png", "b/2.png", "z.png"]
    rows = {line[0]: [float(cell) for cell in line[1:]] for line in lines}
    assert rows["a, b.jpg"] == pytest.approx(scoring.card.train_priors)
    said = list(by_name(predictions)["1.png"].probabilities)
    assert rows["b/1.png"] == pytest.approx(said, abs=1e-9)
    assert rows["z.png"] == rows["b/2.png"] != rows["b/1.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in",
        "models",
        "out.csv",
        "warehouse",
    ]


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere" / "out.csv"):
        with pytest.raises(submission.SubmissionError, match="folder that is there"):
            submission.target(place)
    assert submission.target(tmp_path / "out.csv") == tmp_path / "out.csv"
    assert job.EXIT_CODES["invalid"] == 2 and issubclass(submission.SubmissionError, ValueError)
