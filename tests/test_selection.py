"""Which files become images: the order of reasons, the label policies, the caps."""

from pyspark.sql import SparkSession

from cxr_spark import selection
from cxr_spark.selection import Policy
from cxr_spark.splits import Ratios


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
    found = selection.select_labels(files, Policy({"covid": ("Covid",)})).collect()
    assert [(row.label, row.reason) for row in found] == [row[3:] for row in rows]


def test_sole_target_allows_findings_that_are_none_of_the_nine(spark: SparkSession) -> None:
    rows = [
        (["Edema", "Mass"], "Edema", None),
        (["Edema", "Effusion"], None, "multi_label"),
        (["Mass", "Hernia"], None, "no_target_label"),
        (["Edema", "Gout"], None, "unknown_label"),
        (["Covid", "Mass"], None, "class_not_selected"),
        (["Edema", "Covid"], None, "multi_label"),
        (["No Finding", "Mass"], None, "multi_label"),
        (["No Finding"], "No Finding", None),
    ]
    files = spark.createDataFrame(
        [("nih", labels, None) for labels, _, _ in rows],
        "source string, raw_labels array<string>, reason string",
    ).coalesce(1)
    policy = Policy({"nih": ("Edema", "Effusion", "No Finding")}, label_policy="sole-target")
    found = selection.select_labels(files, policy).collect()
    assert [(row.label, row.reason) for row in found] == [row[1:] for row in rows]


def test_a_cap_counts_what_is_kept_and_always_keeps_the_same(spark: SparkSession) -> None:
    rows = [(f"{i:02}", "Edema" if i % 2 else "Covid", None) for i in range(20)]
    rows += [("00a", "Edema", "duplicate")]
    schema = "content_sha256 string, label string, reason string"
    images = spark.createDataFrame(rows, schema)
    found = selection.mark_over_caps(images, {"Edema": 3}).collect()
    over = {row.content_sha256 for row in found if row.reason == "over_cap"}
    assert over == {f"{i:02}" for i in range(7, 20, 2)}
    fewer = selection.mark_over_caps(images.where("content_sha256 < '10'"), {"Edema": 3}).collect()
    assert {r.content_sha256 for r in fewer if r.reason == "over_cap"} == {"07", "09"}


def test_splits_are_kept_only_from_runs_of_the_same_rule() -> None:
    arguments = Policy(ratios=Ratios(0.7, 0.2, 0.1)).to_text()
    assert Policy(ratios=Ratios(0.7, 0.2, 0.1), label_policy="sole-target").splits_as(arguments)
    assert not Policy().splits_as(arguments)
    assert not Policy(split_policy="hash", ratios=Ratios(0.7, 0.2, 0.1)).splits_as(arguments)
    assert not Policy().splits_as({})
