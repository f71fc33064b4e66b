"""Copies: of exact ones one is kept by rule, and copies that disagree are all refused."""

from pyspark.sql import SparkSession

from cxr_spark.duplicates import mark_copies

COLUMNS = (
    "image_id string, source string, path string, label string, pixel_sha256 string, picture string"
)


def _marked(spark: SparkSession, rows: list[tuple[str, ...]]) -> dict[str, tuple]:
    frame = mark_copies(spark.createDataFrame(rows, COLUMNS))
    return {row.image_id: (row.reason, row.first_copy) for row in frame.collect()}


def test_the_copy_kept_is_by_source_then_shorter_path_then_name(spark: SparkSession) -> None:
    marked = _marked(
        spark,
        [
            ("covid:a", "covid", "/c/a", "Covid", "same", "p"),
            ("nih:b", "nih", "/n/long/b", "Covid", "same", "p"),
            ("nih:c", "nih", "/n/c", "Covid", "same", "p"),
            ("nih:d", "nih", "/n/d", "Covid", "same", "p"),
            ("nih:e", "nih", "/n/e", "Covid", "other", "q"),
        ],
    )
    assert marked["nih:c"] == (None, "nih:c")
    assert marked["nih:e"] == (None, "nih:e")
    for copy in ("covid:a", "nih:b", "nih:d"):
        assert marked[copy] == ("duplicate", "nih:c")


def test_copies_with_different_labels_are_all_refused(spark: SparkSession) -> None:
    marked = _marked(
        spark,
        [
            ("nih:a", "nih", "/a", "No Finding", "same", "p"),
            ("covid:b", "covid", "/b", "Covid", "same", "p"),
            ("covid:c", "covid", "/c", "Covid", "same", "p"),
        ],
    )
    assert {reason for reason, _ in marked.values()} == {"label_conflict"}


def test_near_duplicates_are_all_kept_unless_their_labels_differ(spark: SparkSession) -> None:
    marked = _marked(
        spark,
        [
            ("nih:a", "nih", "/a", "Edema", "one", "agreed"),
            ("nih:b", "nih", "/b", "Edema", "two", "agreed"),
            ("nih:c", "nih", "/c", "Edema", "three", "disputed"),
            ("covid:d", "covid", "/d", "Covid", "four", "disputed"),
        ],
    )
    assert {name: reason for name, (reason, _) in marked.items()} == {
        "nih:a": None,
        "nih:b": None,
        "nih:c": "label_conflict",
        "covid:d": "label_conflict",
    }
