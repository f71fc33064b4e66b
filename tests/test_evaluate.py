"""The stage that judges a model: which rows count, which prediction, and what it refuses."""

import math
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from cxr_spark import commits, delta, evaluate, refusals, staging, tables
from cxr_spark.artifact import WEIGHTS_FILE
from cxr_spark.figures import HEADLINE, Evaluation
from cxr_spark.html_pages import PageError
from cxr_spark.job import Run
from cxr_spark.labels import CLASS_COLUMNS, CLASSES, LABEL_INDEX
from cxr_spark.tables import Warehouse
from jobs import evaluate as job
from tests import artifacts

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = datetime(2026, 1, 2, 12, tzinfo=UTC)


def image(image_id: str, label: str, split: str, **changed: Any) -> dict[str, Any]:
    """A row of images, 8 px a side, whose content and group are its own unless told otherwise."""
    row = {
        "image_id": image_id,
        "source": image_id.split(":")[0],
        "label": label,
        "label_index": LABEL_INDEX[label],
        "group_id": f"group of {image_id}",
        "split": split,
        "content_sha256": f"content of {image_id}",
        "pixel_sha256": f"pixels of {image_id}",
        "preprocessing": "p1",
        "image_size": 8,
        "pixels": bytes(64),
    }
    return row | changed


def distribution(label: str, probability: float) -> dict[str, float]:
    """The given probability for one class, the rest shared by the others."""
    rest = (1 - probability) / (len(CLASSES) - 1)
    return {
        column: probability if name == label else rest
        for column, name in zip(CLASS_COLUMNS, CLASSES, strict=True)
    }


def prediction(image_id: str, label: str, probability: float, **changed: Any) -> dict[str, Any]:
    """A row of predictions by model m1."""
    row = {
        "image_id": image_id,
        "content_sha256": f"content of {image_id}",
        "model_version": "m1",
        "probabilities": distribution(label, probability),
        "preprocessing": "p1",
        "scored_at": NOON,
        "run_id": "score-1",
    }
    return row | changed


def model(model_version: str = "m1", **changed: Any) -> dict[str, Any]:
    row = {
        "model_version": model_version,
        "artifact_path": f"/models/{model_version}",
        "architecture": "resnet18",
        "image_size": 8,
        "preprocessing": "p1",
        "images_version": 1,
        "arguments": {"epochs": "1"},
        "run_id": "train-1",
        "created_at": NOON,
    }
    return row | changed


IMAGES = [
    image("nih:a", "Edema", "train"),
    image("nih:b", "Edema", "train"),
    image("nih:c", "No Finding", "train"),
    image("nih:d", "Edema", "train"),
    image("covid:a", "Covid", "train"),
    image("nih:v", "Edema", "val"),
    image("nih:t1", "Edema", "test"),
    image("nih:t2", "No Finding", "test"),
    image("covid:t3", "Covid", "test"),
]
PREDICTIONS = [
    prediction("nih:t1", "Edema", 0.5),
    prediction("nih:t2", "Edema", 0.6),
    prediction("covid:t3", "Covid", 0.9),
]


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    """Three test rows, scored by m1; t2 is misread."""
    place = Warehouse(tmp_path / "warehouse")
    append(place, "images", IMAGES)
    append(place, "predictions", PREDICTIONS)
    append(place, "models", [model()])
    return place


def append(warehouse: Warehouse, name: str, rows: list[dict[str, Any]]) -> None:
    warehouse.append_rows(name, [{"run_id": "made-up"} | row for row in rows])


def replace(warehouse: Warehouse, name: str, rows: list[dict[str, Any]]) -> None:
    staged = staging.stage_rows(rows, warehouse.path(name), tables.contract(name))
    commits.commit(staged, run_id="made-up", mode="overwrite")


def judge(spark: SparkSession, warehouse: Warehouse, **options: Any) -> tuple[Evaluation, Run]:
    run = Run("evaluate")
    try:
        return evaluate.evaluate(spark, warehouse, run=run, **options), run
    finally:
        run.release()


def metric_rows(warehouse: Warehouse) -> list[dict[str, Any]]:
    return delta.read_rows(warehouse.path("metrics"), tables.schema("metrics").names)


def test_the_headline_and_its_baselines_are_what_a_hand_calculation_gives(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    evaluation, run = judge(spark, warehouse)
    assert run.outputs["cce"] == pytest.approx(-math.log(0.5 * 0.05 * 0.9) / 3)
    # Train: Edema 3, No Finding 1, Covid 1; within nih 3 to 1, within covid all Covid.
    assert run.outputs["cce_prior"] == pytest.approx(-math.log(3 / 5 * 1 / 5 * 1 / 5) / 3)
    assert run.outputs["cce_source_only"] == pytest.approx(-math.log(3 / 4 * 1 / 4 * 1) / 3)
    assert run.outputs["accuracy"] == pytest.approx(2 / 3)
    assert run.counts == {"n": 3, "missing": 0, "errors": 0, "related": 0}
    assert run.versions_read == {"images": 1, "predictions": 1}
    assert evaluation.value("cce") == run.outputs["cce"]


def test_metrics_get_one_row_a_figure_with_its_key_and_interval(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    _, run = judge(spark, warehouse)
    rows = metric_rows(warehouse)
    found = {(row["slice"], row["class"], row["metric"]): row for row in rows}
    assert len(found) == len(rows)
    assert run.versions_written == {"metrics": 1}
    headline = found["all", "all", "cce"]
    assert headline["ci_low"] < headline["value"] < headline["ci_high"]
    assert headline["n"] == 3
    key = ("model_version", "images_version", "predictions_version", "split", "run_id")
    assert [headline[name] for name in key] == ["m1", 1, 1, "test", run.run_id]
    of_nih = found["source=nih", "all", "cce"]
    assert (of_nih["value"], of_nih["n"]) == (None, 2)
    assert found["all", "Covid", "sensitivity"]["value"] == 1.0
    assert found["all", "Edema", "cce"]["value"] == pytest.approx(-math.log(0.5))
    assert found["all", "No Finding", "predicted_as_edema"]["value"] == 1
    assert found["all", "No Finding", "predicted_as_no_finding"]["value"] == 0
    assert found["all", "Covid", "auroc"]["value"] == 1.0
    assert found["all", "all", "auroc"]["value"] is not None
    for absent in ("cce", "auroc"):
        assert found["all", "Pneumonia", absent]["value"] is None
    assert found["all", "Pneumonia", "cce"]["n"] == 0
    assert found["source=nih", "all", "cce"]["n"] == 2


def test_without_a_name_the_newest_model_is_judged_and_a_named_one_by_its_name(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    append(warehouse, "models", [model("m0", created_at=LATER), model("m2", created_at=NOON)])
    scored = [row | {"model_version": "m0"} for row in PREDICTIONS]
    append(warehouse, "predictions", scored)
    assert judge(spark, warehouse)[0].model["model_version"] == "m0"
    assert judge(spark, warehouse, model_version="m1")[0].model["model_version"] == "m1"


def test_rows_that_a_newer_version_moved_from_train_to_test_do_not_count(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    moved = [row | {"split": "test"} for row in IMAGES]
    replace(warehouse, "images", moved)
    append(warehouse, "predictions", [prediction("nih:a", "Edema", 0.99)])
    evaluation, run = judge(spark, warehouse)
    assert sorted(evaluation.rows.image_id) == ["covid:t3", "nih:t1", "nih:t2"]
    assert run.versions_read["images"] == 1


def test_a_test_row_related_to_train_or_val_by_group_or_content_is_left_out_and_counted(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    related = [
        image("nih:r1", "Edema", "test", group_id="group of nih:a"),
        image("nih:r2", "Edema", "test", content_sha256="content of nih:v"),
        image("nih:r3", "Edema", "test", pixel_sha256="pixels of covid:a"),
        image("nih:r4", "Edema", "test", group_id="group of nih:v", pixel_sha256="pixels of nih:v"),
    ]
    replace(warehouse, "images", [*IMAGES, *related])
    replace(warehouse, "models", [model(images_version=2)])
    evaluation, run = judge(spark, warehouse)
    assert list(evaluation.rows.image_id) == ["covid:t3", "nih:t1", "nih:t2"]
    assert run.counts == {"n": 3, "missing": 0, "errors": 0, "related": 4}


def test_train_and_val_can_be_judged_too(spark: SparkSession, warehouse: Warehouse) -> None:
    scored = [prediction(row["image_id"], row["label"], 0.8) for row in IMAGES]
    append(warehouse, "predictions", scored)
    for split, n in (("train", 5), ("val", 1)):
        evaluation, _ = judge(spark, warehouse, split=split)
        assert (evaluation.counts["n"], evaluation.value("cce")) == (
            n,
            pytest.approx(-math.log(0.8)),
        )


def test_within_a_source_every_row_of_val_counts_though_no_list_calls_it_test(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    lists = [{"image_id": row["image_id"], "official_split": "train_val"} for row in IMAGES]
    append(warehouse, "images_raw", lists)
    curated = {"images": 1, "images_raw": 1, "rejects": 0, "near_duplicates": 0}
    run = {"run_id": "c", "job": "curate", "status": "finished", "versions_written": curated}
    append(warehouse, "runs", [run | {"finished_at": NOON}])
    append(warehouse, "predictions", [prediction("nih:v", "Edema", 0.8)])
    evaluation, _ = judge(spark, warehouse, split="val")
    assert evaluation.figure("cce", slice_name="within=nih").n == 1


def test_the_newest_prediction_counts_and_among_equals_the_greatest_run_id(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    again = [
        prediction("nih:t1", "Edema", 0.3, scored_at=LATER, run_id="score-2"),
        prediction("nih:t1", "Edema", 0.2, scored_at=LATER, run_id="score-1"),
        prediction("nih:t2", "Edema", 0.1, scored_at=datetime(2025, 1, 1, tzinfo=UTC)),
    ]
    append(warehouse, "predictions", again)
    evaluation, run = judge(spark, warehouse)
    assert run.counts["n"] == 3
    assert evaluation.value("cce") == pytest.approx(-math.log(0.3 * 0.05 * 0.9) / 3)


def test_a_prediction_of_another_content_or_model_is_none(
    spark: SparkSession, tmp_path: Path
) -> None:
    warehouse = Warehouse(tmp_path)
    append(warehouse, "images", IMAGES)
    append(warehouse, "models", [model()])
    others = [
        PREDICTIONS[0],
        PREDICTIONS[1] | {"content_sha256": "an older file"},
        PREDICTIONS[2] | {"model_version": "m0"},
    ]
    append(warehouse, "predictions", others)
    with pytest.raises(refusals.UnscoredRows, match=r"2 of 3 rows .* 2 without a prediction"):
        judge(spark, warehouse)


def test_a_missing_prediction_fails_the_headline_and_says_what_to_run(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    replace(warehouse, "predictions", PREDICTIONS[:2])
    with pytest.raises(refusals.UnscoredRows) as raised:
        judge(spark, warehouse)
    message = str(raised.value)
    assert "1 of 3 rows" in message
    assert "covid:t3 (no prediction)" in message
    command = "--model /models/m1 --split test --images-version 1"
    assert f"jobs/score.py --warehouse {warehouse.root} {command}" in message
    assert not isinstance(raised.value, ValueError)
    assert not warehouse.exists("metrics")


def test_failed_predictions_fail_the_headline_and_are_counted_where_that_is_allowed(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    replace(warehouse, "images", [*IMAGES, image("nih:t4", "Edema", "test")])
    replace(warehouse, "models", [model(images_version=2)])
    failed = [
        prediction("nih:t1", "Edema", 0.5, probabilities=None, error="corrupt", scored_at=LATER),
        prediction("nih:t2", "Edema", 0.5, scored_at=LATER)
        | {"probabilities": dict.fromkeys(CLASS_COLUMNS, 0.5)},
        prediction("nih:t4", "Edema", 0.5, preprocessing="p2"),
    ]
    append(warehouse, "predictions", failed)
    reasons = r"nih:t1 \(corrupt\), nih:t2 \(no_distribution\), nih:t4 \(other_preprocessing\)"
    with pytest.raises(refusals.UnscoredRows, match=rf"3 with an error, first {reasons}"):
        judge(spark, warehouse)
    assert not warehouse.exists("metrics")
    evaluation, run = judge(spark, warehouse, allow_missing=True)
    assert run.counts == {"n": 1, "missing": 0, "errors": 3, "related": 0}
    assert evaluation.value("cce") == pytest.approx(-math.log(0.9))
    assert evaluation.value("errors") == 3


def test_allowed_missing_rows_are_counted_in_metrics_beside_the_cce(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    replace(warehouse, "predictions", PREDICTIONS[:2])
    _, run = judge(spark, warehouse, allow_missing=True)
    assert run.counts == {"n": 2, "missing": 1, "errors": 0, "related": 0}
    missing = [row for row in metric_rows(warehouse) if row["metric"] == "missing"]
    assert [(row["value"], row["n"]) for row in missing] == [(1.0, 3)]


def test_where_every_prediction_is_missing_even_allow_missing_fails(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    append(warehouse, "models", [model("m9", created_at=LATER)])
    with pytest.raises(refusals.UnscoredRows, match="3 of 3 rows"):
        judge(spark, warehouse, allow_missing=True)


def test_judging_again_adds_nothing_until_there_are_new_predictions(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    first, _ = judge(spark, warehouse)
    again, run = judge(spark, warehouse)
    assert again.figures == first.figures
    assert run.versions_written == {}
    append(warehouse, "predictions", [prediction("nih:t1", "Edema", 0.7, scored_at=LATER)])
    judge(spark, warehouse)
    rows = metric_rows(warehouse)
    key = tables.contract("metrics").key
    assert max(Counter(tuple(row[name] for name in key) for row in rows).values()) == 1
    assert len(rows) == 2 * len(first.figures)


def test_a_figure_that_metrics_lacks_is_added_alone(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    judge(spark, warehouse)
    replace(warehouse, "metrics", [r for r in metric_rows(warehouse) if r["metric"] != "accuracy"])
    _, run = judge(spark, warehouse)
    added = [row["metric"] for row in metric_rows(warehouse) if row["run_id"] == run.run_id]
    assert added
    assert set(added) == {"accuracy"}


@pytest.mark.parametrize(
    "options, error, complaint",
    [
        (
            {"model_version": "m7"},
            refusals.UnknownModel,
            "no model version 'm7' in .*newest: m1",
        ),
        ({"compare": "m7"}, refusals.UnknownModel, "no model version 'm7' in"),
        ({"compare": "m1"}, refusals.NothingToEvaluate, "m1 is the model that is judged"),
        ({"split": "holdout"}, refusals.NothingToEvaluate, "expected one of train, val, test"),
    ],
)
def test_a_name_that_is_none_is_refused_before_anything_is_written(
    spark: SparkSession,
    warehouse: Warehouse,
    options: dict[str, str],
    error: type[ValueError],
    complaint: str,
) -> None:
    assert issubclass(error, ValueError)
    with pytest.raises(error, match=complaint):
        judge(spark, warehouse, **options)
    assert not warehouse.exists("metrics")


def test_an_empty_warehouse_and_one_without_predictions_say_what_to_run(
    spark: SparkSession, tmp_path: Path
) -> None:
    warehouse = Warehouse(tmp_path)
    with pytest.raises(refusals.UnknownModel, match=r"no model yet; run jobs/train\.py first"):
        judge(spark, warehouse)
    append(warehouse, "models", [model()])
    with pytest.raises(refusals.NothingToEvaluate, match=r"no predictions yet.*jobs/score\.py"):
        judge(spark, warehouse)


def test_a_split_without_rows_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    append(warehouse, "images", [row for row in IMAGES if row["split"] != "test"])
    append(warehouse, "predictions", PREDICTIONS)
    append(warehouse, "models", [model()])
    with pytest.raises(refusals.NothingToEvaluate, match="images has no row in test"):
        judge(spark, warehouse)


def test_images_prepared_in_another_way_than_the_model_expects_are_refused(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    append(warehouse, "models", [model("m2", preprocessing="p2", created_at=LATER)])
    with pytest.raises(refusals.OtherPreprocessing, match="model m2 expects p2"):
        judge(spark, warehouse)
    assert not warehouse.exists("metrics")


def test_other_splits_that_are_all_scored_are_told_beside_the_one_that_is_judged(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    of_train = [prediction(r["image_id"], r["label"], 0.8) for r in IMAGES if r["split"] == "train"]
    append(warehouse, "predictions", of_train)
    evaluation, run = judge(spark, warehouse)
    assert evaluation.other_splits.keys() == {"train"}
    found = {(r["split"], r["slice"], r["class"], r["metric"]): r for r in metric_rows(warehouse)}
    assert {key[0] for key in found} == {"test", "train"}
    cce = found["train", "all", "all", "cce"]
    assert (cce["value"], cce["n"]) == (pytest.approx(-math.log(0.8)), 5)
    assert found["train", "all", "Edema", "sensitivity"]["value"] == 1
    assert found["train", "all", "all", "cce_prior"]["value"] == pytest.approx(
        -(3 * math.log(3 / 5) + 2 * math.log(1 / 5)) / 5
    )
    assert run.outputs["cce"] == found["test", "all", "all", "cce"]["value"]
    _, again = judge(spark, warehouse, split="train")
    rows = metric_rows(warehouse)
    added = [row for row in rows if row["run_id"] == again.run_id]
    assert added and all(row["split"] == "train" for row in added)
    key = tables.contract("metrics").key
    assert max(Counter(tuple(row[name] for name in key) for row in rows).values()) == 1


def of_share(version: str, share: float, **changed: Any) -> dict[str, Any]:
    arguments = {"train_share": str(share), "arch": "resnet18"} | changed.pop("arguments", {})
    return model(version, arguments=arguments, created_at=LATER) | changed


def test_by_share_judges_models_trained_alike_on_shares_of_train(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    models = [
        of_share("half", 0.5, arguments={"epochs": "9"}),
        of_share("older half", 0.5) | {"created_at": NOON},
        of_share("another kind", 0.25, arguments={"imbalance": "weights"}),
        of_share("another version", 0.125, images_version=2),
        of_share("whole", 1.0) | {"created_at": datetime(2026, 1, 3, tzinfo=UTC)},
    ]
    append(warehouse, "models", models)
    append(warehouse, "predictions", [row | {"model_version": "whole"} for row in PREDICTIONS])
    with pytest.raises(refusals.UnscoredRows, match="--model /models/half"):
        judge(spark, warehouse, by_share=True)
    halves = [
        prediction("nih:t1", "Edema", 0.4),
        prediction("nih:t2", "No Finding", 0.3),
        prediction("covid:t3", "Covid", 0.2),
    ]
    append(warehouse, "predictions", [row | {"model_version": "half"} for row in halves])
    evaluation, _ = judge(spark, warehouse, by_share=True)
    told = [(point.share, point.model_version) for point in evaluation.learning_curve]
    assert told == [(0.5, "half"), (1, "whole")]
    values = [evaluation.value("cce", slice_name=f"train_share={share}") for share in ("0.5", "1")]
    assert values == pytest.approx([-math.log(0.4 * 0.3 * 0.2) / 3, evaluation.value("cce")])
    images = [
        evaluation.value("train_images", slice_name=f"train_share={share}")
        for share in ("0.5", "1")
    ]
    assert images == [3, 5]
    stored = [row["slice"] for row in metric_rows(warehouse) if row["metric"] == "train_images"]
    assert stored == ["train_share=0.5", "train_share=1"]


def test_a_model_without_others_of_its_kind_has_no_learning_curve(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    with pytest.raises(refusals.NothingToEvaluate, match="m1 is the only one of its kind"):
        judge(spark, warehouse, by_share=True)
    assert not warehouse.exists("metrics")


def other_model(warehouse: Warehouse, scored: list[dict[str, Any]], **changed: Any) -> None:
    """Model m0 and its predictions."""
    append(
        warehouse, "models", [model("m0", created_at=datetime(2025, 1, 1, tzinfo=UTC), **changed)]
    )
    append(warehouse, "predictions", [row | {"model_version": "m0"} for row in scored])


def test_two_models_are_compared_on_the_same_images(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    theirs = [
        prediction("nih:t1", "No Finding", 0.7),
        prediction("nih:t2", "No Finding", 0.7),
        prediction("covid:t3", "Covid", 0.9),
    ]
    other_model(warehouse, theirs)
    evaluation, _ = judge(spark, warehouse, compare="m0")
    against = {"slice_name": "compared_with=m0"}
    assert [evaluation.value(name, **against) for name in ("gained", "lost")] == [1, 1]
    ours, its = 0.5 * 0.05 * 0.9, 0.0375 * 0.7 * 0.9
    expected = (math.log(its) - math.log(ours)) / 3
    assert evaluation.value("cce_difference", **against) == pytest.approx(expected)
    stored = {row["metric"] for row in metric_rows(warehouse) if "compared" in row["slice"]}
    assert {"cce_difference", "mcnemar_p", "gained", "lost"} <= stored


def test_images_that_the_other_model_was_made_with_are_no_part_of_the_comparison(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    moved = [row | {"split": "train"} if row["image_id"] == "nih:t1" else row for row in IMAGES]
    replace(warehouse, "images", moved)
    other_model(warehouse, PREDICTIONS[1:], images_version=2)
    evaluation, run = judge(spark, warehouse, compare="m0")
    assert evaluation.comparison is not None
    assert list(evaluation.comparison.rows.image_id) == ["covid:t3", "nih:t2"]
    assert evaluation.comparison.related == 1
    assert run.counts["n"] == 3


def test_an_image_whose_group_has_another_name_there_is_known_to_the_other_model_all_the_same(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    patient = [
        image(name, "Edema", "test", group_id="joined") for name in ("nih:t1", "nih:t4", "nih:t5")
    ]
    images = [*(row for row in IMAGES if row["image_id"] != "nih:t1"), *patient]
    replace(warehouse, "images", images)
    replace(warehouse, "models", [model(images_version=2)])
    append(warehouse, "predictions", [prediction(f"nih:t{n}", "Edema", 0.5) for n in (4, 5)])
    # Before their groups were joined, one of the three was in train.
    parted = [row | {"group_id": f"group of {row['image_id']}"} for row in images]
    moved = [r | {"split": "train"} if r["image_id"] == "nih:t4" else r for r in parted]
    replace(warehouse, "images", moved)
    other_model(warehouse, PREDICTIONS[1:], images_version=3)
    evaluation, _ = judge(spark, warehouse, compare="m0")
    assert evaluation.comparison is not None
    assert list(evaluation.comparison.rows.image_id) == ["covid:t3", "nih:t2"]
    assert evaluation.comparison.related == 3


def test_a_model_of_another_preprocessing_is_to_score_the_images_of_its_own_version(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    other = {"preprocessing": "p2", "image_size": 16}
    replace(warehouse, "images", [row | other for row in IMAGES])
    theirs = [row | {"model_version": "m0", "preprocessing": "p2"} for row in PREDICTIONS]
    other_model(warehouse, theirs[:2], preprocessing="p2", images_version=2)
    with pytest.raises(refusals.UnscoredRows) as raised:
        judge(spark, warehouse, compare="m0")
    assert "--model /models/m0 --split all --images-version 2 " in str(raised.value)
    append(warehouse, "predictions", theirs[2:])
    evaluation, _ = judge(spark, warehouse, compare="m0")
    assert evaluation.comparison is not None
    assert len(evaluation.comparison.rows) == 3


def test_what_the_other_model_has_not_scored_fails_the_comparison_unless_allowed(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    other_model(warehouse, PREDICTIONS[:1])
    with pytest.raises(refusals.UnscoredRows, match=r"2 of 3 rows .* --model /models/m0 "):
        judge(spark, warehouse, compare="m0")
    assert not warehouse.exists("metrics")
    evaluation, _ = judge(spark, warehouse, compare="m0", allow_missing=True)
    assert evaluation.comparison is not None
    assert (len(evaluation.comparison.rows), evaluation.comparison.unscored) == (1, 2)
    assert evaluation.counts["n"] == 3


def test_operating_thresholds_come_from_val_where_all_of_it_is_scored(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    labels = ["Edema", "No Finding", "No Finding"]
    val = [image(f"nih:v{i}", label, "val") for i, label in enumerate(labels)]
    replace(warehouse, "images", [row for row in IMAGES if row["split"] != "val"] + val)
    replace(warehouse, "models", [model(images_version=2)])
    scored = [prediction(f"nih:v{i}", "Edema", p) for i, p in enumerate((0.45, 0.4, 0.3))]
    append(warehouse, "predictions", scored[:2])
    assert not [f for f in judge(spark, warehouse)[0].figures if f.metric == "threshold"]
    append(warehouse, "predictions", scored[2:])
    evaluation, _ = judge(spark, warehouse)
    threshold = evaluation.figure("threshold", class_name="Edema")
    assert (threshold.value, threshold.n) == (pytest.approx(0.45), 3)
    of_edema = {"class_name": "Edema"}
    assert evaluation.value("sensitivity_at_threshold", **of_edema) == 1
    assert evaluation.value("specificity_at_threshold", **of_edema) == 0.5


def test_facts_of_the_images_and_of_their_files_make_slices(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    bright = [
        image(
            f"nih:s{i}",
            "Edema",
            "test",
            sex="F",
            age_years=70,
            view="AP",
            width=1024,
            height=1024,
            pixels=b"\xff" * 64,
        )
        for i in range(2)
    ]
    replace(warehouse, "images", [*IMAGES, *bright])
    replace(warehouse, "models", [model(images_version=2)])
    append(warehouse, "predictions", [prediction(row["image_id"], "Edema", 0.5) for row in bright])
    files = [
        {"image_id": row["image_id"], "format": "PNG", "official_split": "train_val"}
        for row in bright
    ]
    append(warehouse, "images_raw", files)
    curated = {"images": 2, "images_raw": 1, "rejects": 0, "near_duplicates": 0}
    run = {"run_id": "c", "job": "curate", "status": "finished", "versions_written": curated}
    append(warehouse, "runs", [run | {"finished_at": NOON}])
    evaluation, _ = judge(spark, warehouse)
    for name in (
        "sex=F",
        "age=60-79",
        "view=AP",
        "size=1000-1999 px",
        "format=PNG",
        "brightness=bright",
    ):
        assert evaluation.figure("cce", slice_name=name).n == 2, name
    assert evaluation.figure("cce", slice_name="sex=unknown").n == 3
    # NIH's own list calls those two train, so they are no part of its official test.
    assert evaluation.figure("cce", slice_name="within=nih").n == 2


@pytest.mark.parametrize("damage", ["cut", "lost"])
def test_the_job_gives_figures_and_report_though_the_weights_are_cut_or_lost(
    spark: SparkSession,
    warehouse: Warehouse,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    artifact = artifacts.save(tmp_path / "models", size=32)
    weights = artifact / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1])
    if damage == "lost":
        weights.unlink()
    box = {"label": "Edema", "x": 0.0, "y": 0.0, "width": 20.0, "height": 20.0}
    boxed = {"boxes": [box], "width": 32, "height": 32, "image_size": 32, "pixels": bytes(32 * 32)}
    replace(warehouse, "images", [row | boxed for row in IMAGES])
    replace(warehouse, "models", [model(images_version=2, artifact_path=str(artifact))])
    report, run = tmp_path / "new folder" / "report.html", Run("evaluate")
    words = ["--warehouse", str(warehouse.root), "--report", str(report)]
    job.main(job.parser().parse_args(words), run)
    run.release()
    assert set(run.outputs) == {*HEADLINE, "metrics", "report"}
    assert run.outputs["report"] == str(report)
    assert "no localisation, as the model can't be opened" in capsys.readouterr().err
    page = report.read_text("utf-8")
    assert "Model m1 on test" in page
    # The card can be read, and says what it says.
    assert "<dt>Intended use</dt><dd>tests</dd>" in page and "<dt>Limits</dt><dd>all</dd>" in page


def test_a_report_that_can_not_be_written_is_refused_before_anything_is_done(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    words = ["--warehouse", str(warehouse.root), "--report", str(tmp_path)]
    with pytest.raises(PageError, match="this is a folder"):
        job.main(job.parser().parse_args(words), Run("evaluate"))
    assert not warehouse.exists("metrics")


def test_the_job_ends_with_1_and_writes_no_figure_where_a_prediction_is_missing(
    run_job: Callable[..., Any], warehouse: Warehouse, tmp_path: Path
) -> None:
    replace(warehouse, "predictions", PREDICTIONS[:2])
    report = tmp_path / "report.html"
    done = run_job("evaluate", "--warehouse", warehouse.root, "--report", report)
    assert (done.exit_code, done.summary["status"]) == (1, "failed")
    assert done.summary["counts"] == {"n": 2, "missing": 1, "errors": 0, "related": 0}
    assert done.summary["outputs"] == {}
    assert not warehouse.exists("metrics")
    assert not report.exists()
