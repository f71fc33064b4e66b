"""Which files become images: the order of reasons, the label policies, the caps."""

from datetime import UTC, datetime
from typing import Any

from pyspark.sql import SparkSession

from cxr_spark import selection, tables
from cxr_spark.images import Preprocessing
from cxr_spark.selection import Policy, curate_files, selection_of
from cxr_spark.splits import Ratios

BEFORE, NOW = datetime(2026, 1, 1), datetime(2026, 1, 2, tzinfo=UTC)


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


def test_the_selection_of_a_run_is_read_from_its_arguments() -> None:
    selected = {"nih": ("Edema", "Effusion"), "mercy": ("Covid",)}
    assert selection_of(Policy(selected).to_text()) == selected
    assert selection_of({}) == {}


def raw(image_id: str, picture: str, **known: Any) -> dict[str, Any]:
    """A row of images_raw; each file is a content of its own."""
    row = {"image_id": image_id, "source": image_id.split(":")[0], "path": f"/{image_id}"}
    row |= {"content_sha256": image_id, "pixel_sha256": picture, "raw_labels": ["Covid"]}
    return row | known


def test_a_copy_that_is_not_kept_still_says_where_its_picture_belongs(spark: SparkSession) -> None:
    files = [
        raw("covid:480", "P"),  # new, and kept before 481 by its name
        raw("covid:481", "P"),
        raw("nih:listed", "Q", official_split="test"),
        raw("nih:short", "Q", path="/short"),
        raw("nih:a patient's other", "R", patient_id="7", raw_labels=["Edema"]),
        raw("nih:a patient's", "S", patient_id="7", raw_labels=["Edema"]),
        raw("mercy:copy", "S", raw_labels=["Edema"]),
        raw("covid:moves", "T"),
        raw("nih:moves it", "T", official_split="test"),
    ]
    schemas = [tables.schema(name) for name in ("images_raw", "near_duplicates", "images")]
    recorded = [
        {"image_id": "covid:481", "pixel_sha256": "P", "split": "test", "split_since": BEFORE},
        {"image_id": "mercy:copy", "pixel_sha256": "S", "split": "val", "split_since": BEFORE},
        {"image_id": "covid:moves", "pixel_sha256": "T", "split": "train", "split_since": BEFORE},
    ]
    frames = [
        spark.createDataFrame(rows, schema)
        for rows, schema in zip((files, [], recorded), schemas, strict=True)
    ]
    policy = Policy({}, ratios=Ratios(1.0, 0.0, 0.0))
    curated = curate_files(*frames, policy, Preprocessing(), NOW)
    images = {row.image_id: row for row in curated.images.collect()}
    assert {name: row.split for name, row in images.items()} == {
        "covid:480": "test",
        "nih:short": "test",
        "nih:a patient's other": "val",
        "nih:a patient's": "val",
        "nih:moves it": "test",
    }
    # The picture has been in test since then, whoever shows it: nothing has moved.
    kept = images["covid:480"]
    assert (kept.recorded_split, kept.split_since) == ("test", BEFORE)
    moved = {name for name, row in images.items() if row.recorded_split not in (None, row.split)}
    assert moved == {"nih:moves it"}
    assert {row.image_id for row in curated.rejects.collect()} == {
        "covid:481",
        "nih:listed",
        "mercy:copy",
        "covid:moves",
    }
