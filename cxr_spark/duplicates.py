"""Copies across sources: which one is kept, and which disagree about the label."""

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from cxr_spark.labels import SOURCES


def mark_copies(images: DataFrame) -> DataFrame:
    """Mark images of which another shows the same picture.

    Exact copies have the same hash of their decoded pixels, be it the same file or the same
    picture re-wrapped (another container, RGB in place of grey). Of exact copies one is kept: the
    first by source (nih, pneumonia, tuberculosis, covid, others by name: those with patients and
    official lists come first), then by the shorter path, then by image_id. Near-duplicates are
    all kept. Copies with different labels, exact or near, are all refused, as nobody can say
    which label is right.

    Args:
        images: has image_id, source, path, label, pixel_sha256, and picture of `mark_pictures`.

    Returns:
        The images with columns `first_copy` (image_id of the exact copy that is kept) and `reason`
        (`duplicate`, `label_conflict` or null).
    """
    copies = Window.partitionBy("pixel_sha256")
    preference = copies.orderBy(_source_rank(), "source", F.length("path"), "image_id")
    labels = F.size(F.collect_set("label").over(Window.partitionBy("picture")))
    marked = images.withColumn("first_copy", F.first("image_id").over(preference))
    is_copy = F.col("first_copy") != F.col("image_id")
    reason = F.when(labels > 1, "label_conflict").when(is_copy, "duplicate")
    return marked.withColumn("reason", reason)


def _source_rank() -> F.Column:
    rank = F.lit(len(SOURCES))
    for place, source in enumerate(SOURCES):
        rank = F.when(F.col("source") == source, place).otherwise(rank)
    return rank
