"""Writes to a Delta table against Spark's plain Parquet writer, in pairs.

    make bench-delta
    .venv/bin/python -m benchmarks.delta_write --rounds 5

Two frames, held in memory: 2,000 rows of 100 KB, as images are, and 1,000,000 narrow rows, as
predictions are. The plain writer has the same settings and partitions; ours also counts rows,
checks constraints, reads the footers and commits. Above 1: ours is faster.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from cxr_spark import commits, staging
from cxr_spark.contracts import Contract
from cxr_spark.session import spark_session

PARTITIONS = 8


def blobs(spark: SparkSession) -> DataFrame:
    """2,000 rows of 100 KB that don't compress."""
    # 1,563 digests of 64 bytes each.
    digest = "sha2(concat(id, '-', part), 512)"
    bits = F.expr(f"unhex(array_join(transform(sequence(1, 1563), part -> {digest}), ''))")
    rows = spark.range(0, 2_000, 1, PARTITIONS)
    return rows.select(
        F.col("id").cast("string").alias("key"),
        F.lit("train").alias("part"),
        bits.alias("pixels"),
    )


def narrow(spark: SparkSession) -> DataFrame:
    """A million rows like predictions."""
    rows = spark.range(0, 1_000_000, 1, PARTITIONS)
    chances = [F.rand(i).alias(f"p{i}") for i in range(9)]
    return rows.select(
        F.concat(F.lit("nih:"), F.lpad(F.col("id").cast("string"), 12, "0")).alias("key"),
        F.lit("resnet18").alias("part"),
        F.sha2(F.col("id").cast("string"), 256).alias("content_sha256"),
        F.struct(*chances).alias("probabilities"),
        F.timestamp_seconds(1_700_000_000 + F.col("id")).alias("scored_at"),
    )


def ours(frame: DataFrame, folder: Path) -> None:
    """One commit to a table that is there."""
    staged = staging.stage(frame, str(folder), _contract(frame))
    commits.commit(staged, run_id="bench", sequence=0)


def _contract(frame: DataFrame) -> Contract:
    return Contract(frame.schema, key=("key",), required=("key",), partition_by=("part",))


def plain(frame: DataFrame, folder: Path) -> None:
    """Spark's own writer."""
    frame.write.partitionBy("part").parquet(str(folder))


def seconds(write: Callable[[DataFrame, Path], None], frame: DataFrame) -> float:
    """Of one write into a fresh folder."""
    root = Path(tempfile.mkdtemp(prefix="delta-write-"))
    if write is ours:  # a new table's constraints are declared once, by a scan of their columns
        empty = staging.Staged(str(root / "table"), _contract(frame), [])
        commits.commit(empty, run_id="bench")
    began = time.perf_counter()
    write(frame, root / "table")
    taken = time.perf_counter() - began
    shutil.rmtree(root)
    return taken


def main() -> None:
    """Measure and print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with spark_session("bench delta write") as spark:
        for make in (blobs, narrow):
            frame = make(spark).persist()
            rows = frame.count()
            pairs = []
            for number in range(options.rounds + 1):  # the first warms both up
                order = (ours, plain) if number % 2 else (plain, ours)
                taken = {write.__name__: seconds(write, frame) for write in order}
                pairs.append(taken)
                print({name: round(value, 2) for name, value in taken.items()}, flush=True)
            ratios = [round(pair["plain"] / pair["ours"], 3) for pair in pairs[1:]]
            frame.unpersist()
            summary = {
                "benchmark": "delta_write",
                "frame": make.__name__,
                "rows": rows,
                "seconds": round(median(pair["ours"] for pair in pairs[1:]), 2),
                "plain_parquet": round(median(pair["plain"] for pair in pairs[1:]), 2),
                "over_plain_parquet": round(median(ratios), 3),
                "pairs": ratios,
            }
            print(json.dumps(summary))


if __name__ == "__main__":
    main()
