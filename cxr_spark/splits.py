"""Groups of related images and their split: train, val or test, never two of them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

SPLITS = ("train", "val", "test")
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
        if min(shares) < 0 or self.train <= 0 or abs(sum(shares) - 1) > 1e-9:
            raise SplitError(
                f"shares of train, val, test must add up to 1, train above 0: {shares}"
            )


def join_groups(edges: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Which group each key belongs to once all pairs are joined, transitively.

    Args:
        edges: pairs of keys (a patient, or an image without one) that belong together.

    Returns:
        For each key that occurs, the least key of its connected component.
    """
    pairs = [tuple(edge) for edge in edges]
    keys = sorted({key for pair in pairs for key in pair})
    if not keys:
        return {}
    index = {key: i for i, key in enumerate(keys)}
    ends = np.array([[index[a], index[b]] for a, b in pairs])
    graph = coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(keys),) * 2)
    _, component = connected_components(graph, directed=False)
    # Keys are sorted, so the first of a component is its least.
    _, first = np.unique(component, return_index=True)
    return {key: keys[first[component[i]]] for i, key in enumerate(keys)}


def position(group_id: str | Column) -> Column:
    """A number in [0, 1) that depends on nothing but the group's name."""
    digits = F.substring(F.sha2(group_id, 256), 1, HASH_DIGITS)
    return F.conv(digits, 16, 10).cast("double") / F.lit(float(16**HASH_DIGITS))


def assign_splits(images: DataFrame, ratios: Ratios) -> DataFrame:
    """Give each image the split of its group.

    A group with an image of an official test list is test as a whole. A group of the official
    train_val list is divided between train and val, in the proportion of those two. Every other
    group falls where the hash of its name puts it, so that adding images moves no other.

    Args:
        images: has group_id and official_split (`train_val`, `test` or null).
        ratios: shares of the groups.

    Returns:
        The images with a column `split`.
    """
    group = Window.partitionBy("group_id")
    in_test = F.coalesce(F.max(F.col("official_split") == "test").over(group), F.lit(False))
    in_train_val = F.max("official_split").over(group).isNotNull()
    at = position("group_id")
    train_of_train_val = F.lit(ratios.train / (ratios.train + ratios.val))
    split = (
        F.when(in_test, "test")
        .when(in_train_val, F.when(at < train_of_train_val, "train").otherwise("val"))
        .when(at < F.lit(ratios.train), "train")
        .when(at < F.lit(ratios.train + ratios.val), "val")
        .otherwise("test")
    )
    return images.withColumn("split", split)
