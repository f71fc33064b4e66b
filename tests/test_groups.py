"""Groups: who belongs together stays together, by patient and by picture, transitively."""

from pyspark.sql import SparkSession

from cxr_spark.groups import group_images, join_groups, mark_pictures


def test_pairs_join_transitively_under_their_least_key() -> None:
    groups = join_groups([("b", "a"), ("c", "b"), ("x", "y"), ("z", "z")])
    assert groups == {"a": "a", "b": "a", "c": "a", "x": "x", "y": "x", "z": "z"}
    assert join_groups([]) == {}


def test_near_duplicates_and_exact_copies_are_one_picture(spark: SparkSession) -> None:
    # a and b have the same pixels, b is near c, c near d as e shows, which is none of the images;
    # x and y are near what isn't among them.
    files = [("a", "P"), ("b", "P"), ("c", "Q"), ("d", "R"), ("x", "X"), ("y", "Y")]
    others = [("e", "R"), ("other", "O")]
    schema = "content_sha256 string, pixel_sha256 string"
    images = spark.createDataFrame(files, schema)
    near = spark.createDataFrame(
        [("b", "c"), ("c", "e"), ("gone", "x"), ("other", "y"), ("a", "b")],
        "content_sha256 string, other_sha256 string",
    )
    marked = mark_pictures(images, near, spark.createDataFrame(files + others, schema))
    pictures = {row.content_sha256: row.picture for row in marked.collect()}
    assert pictures == {"a": "P", "b": "P", "c": "P", "d": "P", "x": "X", "y": "Y"}


def test_pictures_join_the_groups_of_their_patients(spark: SparkSession) -> None:
    rows = [
        ("nih:a", "nih", "7", "one"),
        ("nih:b", "nih", "7", "two"),
        ("pneumonia:c", "pneumonia", "virus1", "one"),
        ("pneumonia:d", "pneumonia", "virus1", "three"),
        ("covid:e", "covid", None, "three"),
        ("covid:f", "covid", None, "four"),
        ("pneumonia:g", "pneumonia", "7", "five"),
    ]
    schema = "image_id string, source string, patient_id string, picture string"
    found = group_images(spark.createDataFrame(rows, schema)).collect()
    groups = {row.image_id: row.group_id for row in found}
    joined = groups.pop("nih:a")
    assert {groups.pop(name) for name in ("nih:b", "pneumonia:c", "pneumonia:d", "covid:e")} == {
        joined
    }
    # The same number in another source is another patient.
    assert groups == {"covid:f": "covid:f", "pneumonia:g": "pneumonia:7"}
