"""Which listed files are images of the data set, by labels, copies and groups, and which not."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from cxr_spark import tables
from cxr_spark.duplicates import mark_copies
from cxr_spark.groups import group_images, mark_pictures
from cxr_spark.images import Preprocessing
from cxr_spark.labels import CLASSES, FINDINGS, LABEL_INDEX, LABEL_POLICIES, SELECTED
from cxr_spark.reasons import REASONS
from cxr_spark.splits import SPLIT_POLICIES, Ratios, assign_splits


@dataclass(frozen=True)
class Policy:
    """What decides which files are images, and in which split; recorded with each run.

    Attributes:
        selected: the classes taken from each source; all nine from a source not named.
        label_policy: one of `labels.LABEL_POLICIES`.
        caps: the most images of a class, for classes that have such a bound.
        split_policy: one of `splits.SPLIT_POLICIES`.
        ratios: shares of train, val and test.
    """

    selected: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(SELECTED))
    label_policy: str = LABEL_POLICIES[0]
    caps: Mapping[str, int] = field(default_factory=dict)
    split_policy: str = SPLIT_POLICIES[0]
    ratios: Ratios = field(default_factory=Ratios)

    def to_text(self) -> dict[str, str]:
        """Returns the attributes as the runs table holds them."""
        return {
            "selected": json.dumps(dict(self.selected), sort_keys=True),
            "label_policy": self.label_policy,
            "caps": json.dumps(dict(self.caps), sort_keys=True),
            "split_policy": self.split_policy,
            "ratios": str(self.ratios),
        }

    def splits_as(self, arguments: Mapping[str, str]) -> bool:
        """Tells whether a run with these arguments drew its splits by the same rule."""
        ours = self.to_text()
        return all(arguments.get(name) == ours[name] for name in ("split_policy", "ratios"))


def selection_of(arguments: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Returns the classes by source of a run with these arguments."""
    selected = json.loads(arguments.get("selected", "{}"))
    return {source: tuple(classes) for source, classes in selected.items()}


class Curated(NamedTuple):
    """Narrow frames: images without their pixels, and rejects.

    `images` has, beside the table's columns, `recorded_split`: where an image was before.
    """

    images: DataFrame
    rejects: DataFrame


def select_labels(files: DataFrame, policy: Policy) -> DataFrame:
    """Give each file its label, or the reason why it has none.

    Args:
        files: has source, raw_labels and reason (null: readable).

    Returns:
        The files with `label` (null unless selected) and `reason` filled in.
    """
    findings = F.coalesce("raw_labels", F.array().cast("array<string>"))
    targets = F.array_intersect(findings, _words(CLASSES))
    wanted = F.array_intersect(targets, _selected_of_source(policy.selected))
    is_unknown = (F.size(findings) == 0) | (F.size(F.array_except(findings, _words(FINDINGS))) > 0)
    counted = findings
    if policy.label_policy == "sole-target":
        # "No finding" beside one contradicts itself, whatever the other is.
        counted = F.when(F.array_contains(targets, "No Finding"), findings).otherwise(targets)
    reason = (
        F.when(F.col("reason").isNotNull(), F.col("reason"))
        .when(is_unknown, "unknown_label")
        .when(F.size(targets) == 0, "no_target_label")
        .when(F.size(wanted) == 0, "class_not_selected")
        .when(F.size(counted) > 1, "multi_label")
    )
    labelled = files.withColumn("reason", reason)
    return labelled.withColumn("label", F.when(F.col("reason").isNull(), F.element_at(wanted, 1)))


def _words(labels: tuple[str, ...] | frozenset[str]) -> Column:
    return F.array(*[F.lit(label) for label in sorted(labels)])


def _selected_of_source(selected: Mapping[str, tuple[str, ...]]) -> Column:
    of_source = _words(CLASSES)
    for source, labels in selected.items():
        of_source = F.when(F.col("source") == source, _words(labels)).otherwise(of_source)
    return of_source


def mark_over_caps(images: DataFrame, caps: Mapping[str, int]) -> DataFrame:
    """Refuse what a class has beyond its cap; the contents' hashes say which are kept.

    Args:
        images: has label, content_sha256 and reason; only those without a reason are counted.
    """
    if not caps:
        return images
    is_kept = F.col("reason").isNull()
    of_label = Window.partitionBy("label", is_kept).orderBy("content_sha256")
    cap = F.create_map(*[F.lit(part) for pair in caps.items() for part in pair])[F.col("label")]
    is_over = is_kept & (F.row_number().over(of_label) > cap)
    return images.withColumn("reason", F.when(is_over, "over_cap").otherwise(F.col("reason")))


def curate_files(
    images_raw: DataFrame,
    near_duplicates: DataFrame,
    recorded: DataFrame,
    policy: Policy,
    preprocessing: Preprocessing,
    now: datetime,
) -> Curated:
    """Divide the files into images of the data set and rejects; every file is in one of them.

    Args:
        images_raw: every listed file with its facts.
        near_duplicates: pairs of contents that show one picture.
        recorded: image_id, pixel_sha256, split and split_since of the images published before,
            whose splits count; empty to draw all splits afresh.
        policy: what decides.
        preprocessing: of the pixels that the images will have.
        now: when this run's splits count as given.
    """
    labelled = select_labels(images_raw, policy).persist()
    without_label = labelled.where("reason IS NOT NULL")
    pictures = mark_pictures(labelled.where("reason IS NULL"), near_duplicates, images_raw)
    marked = mark_over_caps(mark_copies(pictures), policy.caps)
    grouped = group_images(marked).persist()
    placed = assign_splits(grouped, policy.ratios, policy.split_policy, recorded)
    left_out = grouped.where("reason IS NOT NULL")
    stays = F.col("split") == F.col("recorded_split")
    images = placed.where("reason IS NULL").select(
        "*",
        F.when(stays, F.col("recorded_since")).otherwise(F.lit(now)).alias("split_since"),
        _index_of_label().alias("label_index"),
        F.lit(preprocessing.fingerprint()).alias("preprocessing"),
        F.lit(preprocessing.size).alias("image_size"),
    )
    return Curated(
        images.select(*_narrow("images"), "recorded_split"),
        _as_rejects(without_label).unionByName(_as_rejects(left_out, F.col("first_copy"))),
    )


def _index_of_label() -> Column:
    pairs = [F.lit(part) for pair in LABEL_INDEX.items() for part in pair]
    return F.create_map(*pairs)[F.col("label")]


def _narrow(table: str) -> list[str]:
    return [name for name in tables.schema(table).names if name not in ("pixels", "run_id")]


def _as_rejects(files: DataFrame, first_copy: Column | None = None) -> DataFrame:
    words = F.create_map(*[F.lit(part) for pair in REASONS.items() for part in pair])
    findings = F.concat(F.lit(": "), F.array_join("raw_labels", ", "))
    in_words = F.concat(words[F.col("reason")], F.coalesce(findings, F.lit("")))
    kept = first_copy if first_copy is not None else F.lit(None)
    is_copy = (F.col("reason") == "duplicate") & (kept != F.col("image_id"))
    return files.select(
        "image_id",
        "source",
        "path",
        "reason",
        F.coalesce("detail", in_words).alias("detail"),
        F.when(is_copy, kept).cast("string").alias("duplicate_of"),
    )
