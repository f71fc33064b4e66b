"""The ledger: what is listed, minus each rule in turn, is what is kept."""

from pyspark.sql import SparkSession

from cxr_spark import job, ledger
from cxr_spark.reasons import REASONS

FILES = "source string, reason string"
KEPT = "source string, split string, patient_id string"


def _run(spark: SparkSession) -> job.Run:
    listed = [("nih", None)] * 6 + [("nih", "blank")] + [("covid", None)] * 2
    rejects = [("nih", "blank"), ("nih", "duplicate"), ("covid", "multi_label")]
    images = [("nih", "train", "1")] * 3 + [("nih", "test", None)] * 2 + [("covid", "val", None)]
    run = job.Run("curate")
    frames = (
        spark.createDataFrame(listed, FILES),
        spark.createDataFrame(images, KEPT),
        spark.createDataFrame(rejects, FILES),
    )
    ledger.count(*frames, run)
    rows = {row.source: row for row in ledger.accounts(*frames).collect()}
    assert (rows["nih"].listed, rows["nih"].accounted) == (7, 7)
    assert (rows["covid"].listed, rows["covid"].accounted) == (2, 2)
    return run


def test_each_rule_takes_away_and_what_is_left_are_the_images(spark: SparkSession) -> None:
    run = _run(spark)
    lines = ledger.lines(run.counts)
    assert [line.rule for line in lines] == [
        "listed",
        "blank",
        "multi_label",
        "duplicate",
        "images",
        "train",
        "val",
        "test",
    ]
    for source, listed in (("nih", 7), ("covid", 2)):
        left = listed
        for line in lines:
            if line.rule in REASONS:
                left -= line.files[source]
        assert left == run.counts[f"{source}.images"]
    assert {line.rule: line.total for line in lines}["listed"] == 9
    assert (run.counts["images"], run.counts["rejects"]) == (6, 3)


def test_sources_without_any_patient_are_named(spark: SparkSession, capsys) -> None:
    run = _run(spark)
    ledger.say(run)
    assert run.outputs["patients_unknown"] == ["covid"] == ledger.patients_unknown(run.counts)
    words = capsys.readouterr().err
    assert "no patient ids in covid" in words
    assert "- duplicate" in words
