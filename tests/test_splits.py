"""Groups and splits: who belongs together stays together, wherever the hash puts them."""

import pytest
from pyspark.sql import SparkSession

from cxr_spark.splits import Ratios, SplitError, assign_splits, join_groups


def test_pairs_join_transitively_under_their_least_key() -> None:
    groups = join_groups([("b", "a"), ("c", "b"), ("x", "y"), ("z", "z")])
    assert groups == {"a": "a", "b": "a", "c": "a", "x": "x", "y": "x", "z": "z"}
    assert join_groups([]) == {}


def _splits(spark: SparkSession, rows: list[tuple[str, str | None]], ratios: Ratios) -> dict:
    images = spark.createDataFrame(rows, "group_id string, official_split string")
    found = assign_splits(images, ratios).collect()
    by_group: dict[str, set[str]] = {}
    for row in found:
        by_group.setdefault(row.group_id, set()).add(row.split)
    assert all(len(splits) == 1 for splits in by_group.values())
    return {group: splits.pop() for group, splits in by_group.items()}


def test_a_group_with_one_official_test_image_is_test_as_a_whole(spark: SparkSession) -> None:
    rows = [(f"g{i}", split) for i in range(50) for split in ("train_val", None, "test")]
    assert set(_splits(spark, rows, Ratios()).values()) == {"test"}


def test_official_train_val_is_never_test_and_others_follow_the_ratios(
    spark: SparkSession,
) -> None:
    rows = [(f"o{i}", "train_val") for i in range(2000)] + [(f"h{i}", None) for i in range(2000)]
    splits = _splits(spark, rows, Ratios(0.6, 0.2, 0.2))
    official = [split for group, split in splits.items() if group.startswith("o")]
    hashed = [split for group, split in splits.items() if group.startswith("h")]
    assert "test" not in official
    assert official.count("train") / 2000 == pytest.approx(0.75, abs=0.04)
    assert hashed.count("train") / 2000 == pytest.approx(0.6, abs=0.04)
    assert hashed.count("test") / 2000 == pytest.approx(0.2, abs=0.04)


def test_adding_images_moves_no_other(spark: SparkSession) -> None:
    rows: list[tuple[str, str | None]] = [(f"g{i}", None) for i in range(200)]
    before = _splits(spark, rows[:100], Ratios())
    after = _splits(spark, rows, Ratios())
    assert {group: after[group] for group in before} == before


@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.5), (0.0, 0.5, 0.5), (1.2, -0.1, -0.1)])
def test_shares_must_divide_a_whole(shares: tuple[float, float, float]) -> None:
    with pytest.raises(SplitError, match="add up to 1"):
        Ratios(*shares)
