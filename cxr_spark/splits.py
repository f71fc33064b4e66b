"""Groups of related images and their split: train, val or test, never two of them."""

from dataclasses import dataclass
from typing import Self

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

SPLITS = ("train", "val", "test")
SPLIT_POLICIES = ("official", "hash")
"""`official`: NIH's own lists say what is test; `hash`: no list counts."""
# 13 hexadecimal digits are 52 bits, all of which a double holds.
HASH_DIGITS = 13


class SplitError(ValueError):
    """Shares that don't divide a whole."""


@dataclass(frozen=True)
class Ratios:
    """Shares of train, val and test among groups; they add up to 1."""

    train: float = 0.8
    val: float = 0.1
    test: float = 0.1

    def __post_init__(self) -> None:
        shares = (self.train, self.val, self.test)
        # Written so that NaN fails too.
        if not (min(shares) >= 0 and self.train > 0 and abs(sum(shares) - 1) < 1e-9):
            raise SplitError(f"shares {self} of train, val, test: must add up to 1, train above 0")

    def __str__(self) -> str:
        return f"{self.train},{self.val},{self.test}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `TRAIN,VAL,TEST`, as in `0.8,0.1,0.1`.

        Raises:
            SplitError: it isn't three numbers that add up to 1.
        """
        try:
            train, val, test = (float(share) for share in text.split(","))
        except ValueError as error:
            raise SplitError(
                f"ratios {text!r}: expected TRAIN,VAL,TEST such as 0.8,0.1,0.1"
            ) from error
        return cls(train, val, test)


def position(group_id: str | Column) -> Column:
    """A number in [0, 1) that depends on nothing but the group's name."""
    digits = F.substring(F.sha2(group_id, 256), 1, HASH_DIGITS)
    return F.conv(digits, 16, 10).cast("double") / F.lit(float(16**HASH_DIGITS))


def assign_splits(
    images: DataFrame, ratios: Ratios, split_policy: str, recorded: DataFrame
) -> DataFrame:
    """Give each image the split of its group.

    A group with an image of an official test list is test as a whole. Else a group keeps what is
    recorded: test if any of its images has been in test, and otherwise the split that one of its
    images was given first; so adding images moves none, unless they join two groups. A new group
    of the official train_val list is divided between train and val, in the proportion of those
    two; every other falls where the hash of its name puts it.

    A record holds for a picture under whatever name it comes, be it a copy or renamed, and for a
    file whose picture has changed.

    Args:
        images: has image_id, pixel_sha256, group_id and official_split (`train_val`, `test` or
            null); of copies those that aren't kept are there too, as their lists and records count.
        ratios: shares of the groups.
        split_policy: one of `SPLIT_POLICIES`.
        recorded: image_id, pixel_sha256 (unique), split and split_since, as published before;
            empty to begin afresh.

    Returns:
        The images with columns `split`, `recorded_split` and `recorded_since` (null: not recorded).
    """
    known = _with_records(images, recorded)
    group = Window.partitionBy("group_id")
    listed = F.col("official_split") if split_policy == "official" else F.lit(None).cast("string")
    in_test_list = F.coalesce(F.max(listed == "test").over(group), F.lit(False))
    in_train_val_list = F.max(listed).over(group).isNotNull()
    was_in_test = F.coalesce(F.max(F.col("recorded_split") == "test").over(group), F.lit(False))
    record = F.struct("recorded_since", "image_id", "recorded_split")
    earliest = F.min(F.when(F.col("recorded_split").isNotNull(), record)).over(group)
    at = position("group_id")
    train_of_train_val = F.lit(ratios.train / (ratios.train + ratios.val))
    split = (
        F.when(in_test_list | was_in_test, "test")
        .when(earliest.isNotNull(), earliest["recorded_split"])
        .when(in_train_val_list, F.when(at < train_of_train_val, "train").otherwise("val"))
        .when(at < F.lit(ratios.train), "train")
        .when(at < F.lit(ratios.train + ratios.val), "val")
        .otherwise("test")
    )
    return known.withColumn("split", split)


def _with_records(images: DataFrame, recorded: DataFrame) -> DataFrame:
    """The images with the record of their picture, or else of their name."""
    record = F.struct(
        F.col("split").alias("recorded_split"), F.col("split_since").alias("recorded_since")
    )
    of_picture = recorded.select("pixel_sha256", record.alias("of_picture"))
    of_name = recorded.select("image_id", record.alias("of_name"))
    known = images.join(of_picture, on="pixel_sha256", how="left")
    known = known.join(of_name, on="image_id", how="left")
    known = known.withColumn("record", F.coalesce("of_picture", "of_name"))
    return known.select(*images.columns, "record.recorded_split", "record.recorded_since")
