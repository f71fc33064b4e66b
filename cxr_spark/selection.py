"""Which listed files are images of the data set, by labels, copies and groups, and which not."""

from collections.abc import Mapping
from typing import NamedTuple

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from cxr_spark import tables
from cxr_spark.duplicates import mark_copies
from cxr_spark.images import Preprocessing
from cxr_spark.labels import CLASSES, FINDINGS, LABEL_INDEX, SELECTED
from cxr_spark.splits import Ratios, assign_splits, join_groups

# Why a readable file is no image of the data set, in the order in which it is asked.
DETAILS = {
    "unknown_label": "the finding is none that cxr_spark knows",
    "no_target_label": "none of the findings is one of the nine classes",
    "class_not_selected": "the class is not taken from this source",
    "multi_label": "more than one finding; the label policy is sole",
    "label_conflict": "the same picture is labelled differently elsewhere",
    "duplicate": "the same picture is there already",
}


class Curated(NamedTuple):
    """Narrow frames: images without their pixels, and rejects."""

    images: DataFrame
    rejects: DataFrame


def select_labels(files: DataFrame, selected: Mapping[str, tuple[str, ...]]) -> DataFrame:
    """Give each file its label, or the reason why it has none, by the policy `sole`.

    Args:
        files: has source, raw_labels and reason (null: readable).
        selected: the classes taken from each source; all nine from a source not named.

    Returns:
        The files with `label` (null unless selected) and `reason` filled in.
    """
    findings = F.coalesce("raw_labels", F.array().cast("array<string>"))
    targets = F.array_intersect(findings, _words(CLASSES))
    wanted = F.array_intersect(targets, _selected_of_source(selected))
    is_unknown = (F.size(findings) == 0) | (F.size(F.array_except(findings, _words(FINDINGS))) > 0)
    reason = (
        F.when(F.col("reason").isNotNull(), F.col("reason"))
        .when(is_unknown, "unknown_label")
        .when(F.size(targets) == 0, "no_target_label")
        .when(F.size(wanted) == 0, "class_not_selected")
        .when(F.size(findings) > 1, "multi_label")
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


def group_images(copies: DataFrame) -> DataFrame:
    """Give each image its group: its patient, joined with the patients of exact copies.

    An image without a known patient is a patient of its own. Only pairs that join different
    patients come to the driver.

    Args:
        copies: has image_id, source, patient_id, first_copy; copies not kept are there too.

    Returns:
        The rows with `group_id`.
    """
    patient = F.concat("source", F.lit(":"), "patient_id")
    own = F.coalesce(patient, "image_id")
    keyed = copies.withColumn("own_group", own)
    firsts = keyed.where("image_id = first_copy").select(
        "first_copy", F.col("own_group").alias("first_group")
    )
    pairs = (
        keyed.join(firsts, on="first_copy", how="inner")
        .where("own_group <> first_group")
        .select("own_group", "first_group")
        .distinct()
    )
    joined = join_groups((row.own_group, row.first_group) for row in pairs.toLocalIterator())
    if not joined:
        return keyed.withColumnRenamed("own_group", "group_id")
    mapping = copies.sparkSession.createDataFrame(
        list(joined.items()), "own_group string, joined string"
    )
    grouped = keyed.join(F.broadcast(mapping), on="own_group", how="left")
    return grouped.withColumn("group_id", F.coalesce("joined", "own_group"))


def curate_files(images_raw: DataFrame, preprocessing: Preprocessing) -> Curated:
    """Divide the files into images of the data set and rejects; every file is in one of them."""
    labelled = select_labels(images_raw, SELECTED).persist()
    without_label = labelled.where("reason IS NOT NULL")
    marked = mark_copies(labelled.where("reason IS NULL"))
    grouped = group_images(marked).persist()
    kept = assign_splits(grouped.where("reason IS NULL"), Ratios())
    copies = grouped.where("reason IS NOT NULL")
    return Curated(
        kept.select(
            "*",
            _index_of_label().alias("label_index"),
            F.lit(preprocessing.fingerprint()).alias("preprocessing"),
            F.lit(preprocessing.size).alias("image_size"),
        ).select(*_narrow("images")),
        _as_rejects(without_label).unionByName(_as_rejects(copies, F.col("first_copy"))),
    )


def _index_of_label() -> Column:
    pairs = [F.lit(part) for pair in LABEL_INDEX.items() for part in pair]
    return F.create_map(*pairs)[F.col("label")]


def _narrow(table: str) -> list[str]:
    return [name for name in tables.schema(table).names if name not in ("pixels", "run_id")]


def _as_rejects(files: DataFrame, first_copy: Column | None = None) -> DataFrame:
    words = F.create_map(*[F.lit(part) for pair in DETAILS.items() for part in pair])
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
