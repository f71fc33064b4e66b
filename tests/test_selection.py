"""Which files become images: the order of reasons, and the groups that copies join."""

from pyspark.sql import SparkSession

from cxr_spark import selection


def test_labels_follow_the_order_of_precedence(spark: SparkSession) -> None:
    rows = [
        ("nih", ["Edema"], None, "Edema", None),
        ("nih", ["Edema"], "truncated", None, "truncated"),
        ("nih", ["Edema", "Mass"], None, None, "multi_label"),
        ("nih", ["Mass"], None, None, "no_target_label"),
        ("nih", ["Mass", "Hernia"], None, None, "no_target_label"),
        ("nih", ["Gout"], None, None, "unknown_label"),
        ("nih", [], None, None, "unknown_label"),
        ("covid", ["No Finding"], None, None, "class_not_selected"),
        ("covid", ["Covid"], None, "Covid", None),
        ("hospital", ["Covid"], None, "Covid", None),
    ]
    files = spark.createDataFrame(
        [row[:3] for row in rows], "source string, raw_labels array<string>, reason string"
    ).coalesce(1)
    found = selection.select_labels(files, {"covid": ("Covid",)}).collect()
    assert [(row.label, row.reason) for row in found] == [row[3:] for row in rows]


def test_copies_join_the_groups_of_their_patients(spark: SparkSession) -> None:
    rows = [
        ("nih:a", "nih", "7", "nih:a"),
        ("nih:b", "nih", "7", "nih:b"),
        ("pneumonia:c", "pneumonia", "virus1", "nih:a"),
        ("pneumonia:d", "pneumonia", "virus1", "pneumonia:d"),
        ("covid:e", "covid", None, "pneumonia:d"),
        ("covid:f", "covid", None, "covid:f"),
        ("pneumonia:g", "pneumonia", "7", "pneumonia:g"),
    ]
    schema = "image_id string, source string, patient_id string, first_copy string"
    found = selection.group_images(spark.createDataFrame(rows, schema)).collect()
    groups = {row.image_id: row.group_id for row in found}
    joined = groups.pop("nih:a")
    assert {groups.pop(name) for name in ("nih:b", "pneumonia:c", "pneumonia:d", "covid:e")} == {
        joined
    }
    # The same number in another source is another patient.
    assert groups == {"covid:f": "covid:f", "pneumonia:g": "pneumonia:7"}
