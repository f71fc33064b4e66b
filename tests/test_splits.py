"""Groups and splits: who belongs together stays together, wherever the hash puts them."""

from datetime import datetime

import pytest
from pyspark.sql import SparkSession

from cxr_spark.splits import Ratios, SplitError, assign_splits

IMAGES = "image_id string, group_id string, official_split string, pixel_sha256 string"
RECORDED = "image_id string, split string, split_since timestamp, pixel_sha256 string"


def _splits(
    spark: SparkSession,
    rows: list[tuple[str, str | None]],
    ratios: Ratios,
    policy: str = "official",
    recorded: list[tuple[str, str, datetime]] | None = None,
) -> dict:
    """The split of each group of images `group_id:number`, whose pictures are named like them."""
    names = [f"{group}:{i}" for i, (group, _) in enumerate(rows)]
    named = [(name, *row, name) for name, row in zip(names, rows, strict=True)]
    images = spark.createDataFrame(named, IMAGES)
    known = spark.createDataFrame([(*record, record[0]) for record in recorded or []], RECORDED)
    found = assign_splits(images, ratios, policy, known).collect()
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


def test_no_list_counts_under_the_policy_hash(spark: SparkSession) -> None:
    rows: list[tuple[str, str | None]] = [(f"g{i}", "test") for i in range(200)]
    splits = _splits(spark, rows, Ratios(), policy="hash")
    assert splits == _splits(spark, [(group, None) for group, _ in rows], Ratios())
    assert set(splits.values()) == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("recorded", "split"),
    [
        ({0: ("train", 2), 1: ("val", 1)}, "val"),  # the earliest counts
        ({0: ("train", 1), 1: ("test", 2)}, "test"),  # but who has been in test stays there
        ({1: ("val", 1)}, "val"),  # a new image joins the group where it is
    ],
)
def test_a_merged_group_keeps_what_is_recorded(
    spark: SparkSession, recorded: dict[int, tuple[str, int]], split: str
) -> None:
    # Each of these groups would fall elsewhere too, were nothing recorded.
    rows: list[tuple[str, str | None]] = [("g", "train_val"), ("g", None), ("g", None)]
    known = [(f"g:{i}", was, datetime(2026, 1, day)) for i, (was, day) in recorded.items()]
    assert _splits(spark, rows, Ratios(1.0, 0.0, 0.0), recorded=known) == {"g": split}


def test_the_official_test_list_wins_over_what_is_recorded(spark: SparkSession) -> None:
    known = [("g:0", "train", datetime(2026, 1, 1))]
    assert _splits(spark, [("g", None), ("g", "test")], Ratios(), recorded=known) == {"g": "test"}


def test_a_record_goes_with_the_picture_and_else_with_the_name(spark: SparkSession) -> None:
    # b was renamed from a, c has another picture than before, d took the place and name of c's.
    images = [(name, name, None, picture) for name, picture in ("bA", "cX", "dC", "eE")]
    day = datetime(2026, 1, 1)
    known = [("a", "test", day, "A"), ("c", "val", day, "C"), ("d", "train", day, "D")]
    found = assign_splits(
        spark.createDataFrame(images, IMAGES),
        Ratios(1.0, 0.0, 0.0),
        "official",
        spark.createDataFrame(known, RECORDED),
    ).collect()
    assert {row.image_id: (row.split, row.recorded_split, row.recorded_since) for row in found} == {
        "b": ("test", "test", day),
        "c": ("val", "val", day),
        "d": ("val", "val", day),
        "e": ("train", None, None),
    }


@pytest.mark.parametrize("text", ["0.8,0.2", "a,b,c", "", "0.8;0.1;0.1", "nan,0.5,0.5"])
def test_ratios_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(SplitError):
        Ratios.parse(text)


def test_ratios_are_read_as_they_are_written() -> None:
    assert Ratios.parse(" .7, .2,0.1") == Ratios(0.7, 0.2, 0.1) == Ratios.parse("0.7,0.2,0.1")
    assert str(Ratios(0.7, 0.2, 0.1)) == "0.7,0.2,0.1"


@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.5), (0.0, 0.5, 0.5), (1.2, -0.1, -0.1)])
def test_shares_must_divide_a_whole(shares: tuple[float, float, float]) -> None:
    with pytest.raises(SplitError, match="add up to 1"):
        Ratios(*shares)
