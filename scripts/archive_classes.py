"""Keep the classes that a job's JVM loads, as it has them in memory: jobs then start sooner.

    .venv/bin/python -m scripts.archive_classes

The JVM calls that class data sharing. It takes the archive only as long as it is the same JVM and
the same Spark; otherwise it starts as it would without. Made anew by `make install`.
"""

import os
import sys
import tempfile
from pathlib import Path

from pyspark import SparkContext

from cxr_spark.session import CLASS_ARCHIVE, java_options, spark_session

# What jobs ask of Spark: joins of both kinds, windows, arrays, structs, hashes, sorting.
QUERY = """
    WITH images AS (
        SELECT id AS image_id, cast(id % 9 AS string) AS label, array(id, id + 1) AS boxes,
            sha2(cast(id AS string), 256) AS content_sha256, xxhash64(id) AS bucket
        FROM written
    ), first AS (
        SELECT *, row_number() OVER (PARTITION BY label ORDER BY content_sha256) AS place
        FROM images
    )
    SELECT /*+ BROADCAST(second) */ first.label, count(DISTINCT first.bucket) AS images,
        max(struct(first.image_id, first.place)) AS last, collect_set(size(first.boxes)) AS sizes
    FROM first JOIN images AS second USING (image_id)
        LEFT JOIN (SELECT /*+ MERGE(third) */ bucket FROM images AS third) USING (bucket)
    WHERE first.image_id NOT IN (SELECT bucket FROM images) OR first.label IS NOT NULL
    GROUP BY first.label ORDER BY images DESC, first.label
"""


def work(folder: Path) -> None:
    """What most jobs do with Spark, on a few rows."""
    with spark_session("class archive") as spark:
        spark.range(100).write.parquet(str(folder / "written"))
        spark.read.parquet(str(folder / "written")).createOrReplaceTempView("written")
        answer = spark.sql(QUERY).persist()
        answer.mapInArrow(lambda batches: batches, answer.schema).toArrow()
        answer.unionByName(answer).collect()


def main() -> None:
    """Make the archive; without one jobs run all the same, so no failure ends an installation."""
    unfinished = CLASS_ARCHIVE.with_suffix(f".{os.getpid()}")
    try:
        CLASS_ARCHIVE.parent.mkdir(parents=True, exist_ok=True)
        CLASS_ARCHIVE.unlink(missing_ok=True)  # nothing is archived on top of an archive
        _make(unfinished)
    except Exception as error:
        unfinished.unlink(missing_ok=True)
        print(f"jobs will start without a class archive: {error}", file=sys.stderr)


def _make(unfinished: Path) -> None:
    options = [*java_options(), f"-XX:ArchiveClassesAtExit={unfinished}", "-Xlog:cds*=off"]
    os.environ["SPARK_SUBMIT_OPTS"] = " ".join(options)
    with tempfile.TemporaryDirectory() as folder:
        work(Path(folder))
    jvm = SparkContext._gateway.proc  # type: ignore[union-attr]
    jvm.stdin.close()  # it ends, and writes the archive
    jvm.wait()
    unfinished.replace(CLASS_ARCHIVE)


if __name__ == "__main__":
    main()
