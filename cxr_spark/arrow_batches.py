"""How many rows Spark hands to Python at once: by their bytes, as Spark 4.0 only counts rows."""

from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

SETTING = "spark.sql.execution.arrow.maxRecordsPerBatch"
BATCH_BYTES = 64 << 20
LARGEST_IMAGE_BYTES = 4096 * 4096


@contextmanager
def bounded(spark: SparkSession, row_bytes: int) -> Iterator[None]:
    """A block in which what Spark starts to compute hands over 64 MB at once at the most.

    Args:
        spark: the session of what is computed.
        row_bytes: of the largest row.
    """
    before = spark.conf.get(SETTING)
    rows = max(1, BATCH_BYTES // max(1, row_bytes))
    most = int(before or 0)  # 0 is no bound
    spark.conf.set(SETTING, str(min(rows, most) if most > 0 else rows))
    try:
        yield
    finally:
        spark.conf.set(SETTING, str(before))


def pixels_bytes(images: DataFrame) -> int:
    """Of the largest row's pixels, by image_size; 0 where there is no row."""
    largest = images.agg(F.max("image_size")).first()
    return int(largest[0] or 0) ** 2 if largest else 0
