"""A submission has a row for each image listed, in order, whether it could be scored or not."""

import csv
import shutil
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from cxr_spark import job, score, score_inputs, submission
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
    with pytest.raises(submission.SubmissionError, match="can't be written to"):
        submission.target("/proc/out.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == []
    assert job.EXIT_CODES["invalid"] == 2 and issubclass(submission.SubmissionError, ValueError)


def test_two_images_of_one_id_are_refused_before_any_work(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        draw(tmp_path / folder / "1.png", 1)
    submission.check_ids(score_inputs.image_files([tmp_path], []))
    submission.check_ids(score_inputs.listed_schema().empty_table())
    both = score_inputs.image_files([tmp_path / "a", tmp_path / "b"], [])
    with pytest.raises(submission.SubmissionError, match=r"the id 1\.png .*/a/1\.png .*/b/1\.png"):
        submission.check_ids(both)


def test_a_list_that_names_an_image_twice_gets_a_row_for_each(
    spark: SparkSession, tmp_path: Path
) -> None:
    draw(tmp_path / "1.png", 1)
    (tmp_path / "list.csv").write_text("path\n1.png\n./1.png\n")
    aged(tmp_path)
    listed = score_inputs.image_files([], [tmp_path / "list.csv"])
    submission.check_ids(listed)
    warehouse = Warehouse(tmp_path / "warehouse")
    scoring, run = Scoring((load_model(artifacts.save(tmp_path / "models")),)), job.Run("score")
    score.score(spark, warehouse, listed, scoring, run)
    assert (run.counts["listed"], run.counts["scored"]) == (1, 1)
    submission.write(tmp_path / "out.csv", listed, warehouse, scoring, run)
    _, first, second = csv.reader((tmp_path / "out.csv").read_text().splitlines())
    assert (first[0], second[0]) == ("1.png", "./1.png") and first[1:] == second[1:]
