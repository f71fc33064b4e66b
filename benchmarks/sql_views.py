"""Our views against Spark on the same files as plain Parquet, bytes read, and a thousand commits.

    make bench-sql
    .venv/bin/python -m benchmarks.sql_views --rows 5000000 --commits 1000

Above 1 in `views_over_plain`: our views are faster. A query is timed whole on both sides, from its
text to its last row; ours is parsed, checked, and the versions are looked up. `opening` is a fresh
`Views` of all tables with so many commits, over one whose tables have ten.
"""

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from cxr_spark import job, tables
from cxr_spark.labels import CLASS_COLUMNS, CLASSES
from cxr_spark.session import spark_session
from cxr_spark.sql import Views
from cxr_spark.tables import PUBLISHED, TABLES, Warehouse

MODELS = 5
DAYS = 20
FIRST_DAY = datetime(2026, 1, 5, tzinfo=UTC)
WANTED_DAY = "scored_at >= TIMESTAMP '2026-01-10' AND scored_at < TIMESTAMP '2026-01-11'"
# A day's row groups can only be told from others' where a file has several.
ROW_GROUP_BYTES = 2 << 20
QUERIES = {
    "by_class": "SELECT predicted_label, count(*), avg(confidence) FROM predictions GROUP BY ALL",
    "by_week": "SELECT date_trunc('week', scored_at), avg(probabilities.covid), "
    "avg(probabilities.no_finding) FROM predictions GROUP BY ALL",
    "low_confidence": "SELECT image_id, confidence FROM predictions WHERE confidence < 0.3 "
    "ORDER BY confidence, image_id LIMIT 50",
    "errors": "SELECT model_version, count(error) FROM predictions GROUP BY ALL",
    "one_model": "SELECT predicted_label, count(*) FROM predictions WHERE model_version = 'm3' "
    "GROUP BY ALL",
    "one_day": f"SELECT predicted_label, count(*) FROM predictions WHERE {WANTED_DAY} GROUP BY ALL",
}


def predictions(spark: SparkSession, rows: int) -> DataFrame:
    """Predictions of as many images by each model, a day's together, as nightly scoring leaves."""
    per_model = rows // MODELS
    number, model = F.col("id") % per_model, F.floor(F.col("id") / per_model)
    probabilities = [F.rand(seed).alias(name) for seed, name in enumerate(CLASS_COLUMNS)]
    day = F.floor(number * DAYS / per_model)
    names = F.array(*[F.lit(label) for label in CLASSES])
    fails = F.col("id") % 1000 == 0
    columns = {
        "image_id": F.concat(F.lit("nih:"), F.sha1(number.cast("string"))),
        "path": F.concat(F.lit("/data/nih/"), number.cast("string")),
        "content_sha256": F.sha2(number.cast("string"), 256),
        "model_version": F.concat(F.lit("m"), model.cast("string")),
        "probabilities": F.when(~fails, F.struct(*probabilities)),
        "predicted_label": F.when(~fails, F.get(names, F.col("id") % len(CLASSES))),
        "confidence": F.when(~fails, F.rand(99)),
        "error": F.when(fails, "truncated"),
        "scored_at": F.timestamp_seconds(F.lit(FIRST_DAY.timestamp()) + day * 86400),
        "run_id": F.lit("score"),
    }
    frame = spark.range(rows).withColumns(columns).drop("id")
    lacking = [f for f in tables.schema("predictions") if f.name not in columns]
    frame = frame.withColumns({f.name: F.lit(None).cast(f.dataType) for f in lacking})
    return frame.repartition(MODELS, "model_version").sortWithinPartitions(
        "model_version", "scored_at"
    )


def seconds(work: Callable[[], object]) -> float:
    """Seconds that work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def timed_queries(spark: SparkSession, warehouse: Warehouse, rounds: int) -> dict[str, Any]:
    """Ratios by query, in pairs: plain Parquet's seconds over ours, each side first by turns."""
    (folder,) = Path(warehouse.path("predictions")).glob("j-*")
    plain = spark.newSession()
    plain.read.parquet(str(folder)).createOrReplaceTempView("predictions")
    views = Views(spark, warehouse, {}, job.Run("bench"))
    sides = {"plain": plain.sql, "views": views.query}
    ratios: dict[str, list[float]] = {name: [] for name in QUERIES}
    for number in range(-1, rounds):  # the first is to warm up
        order = list(sides) if number % 2 else list(reversed(sides))
        for name, text in QUERIES.items():
            taken = {
                side: seconds(lambda ask=sides[side], text=text: ask(text).collect())
                for side in order
            }
            if number >= 0:
                ratios[name].append(round(taken["plain"] / taken["views"], 3))
    return ratios


def input_bytes(spark: SparkSession, work: Callable[[], object]) -> int:
    """Bytes that Spark reads from files for work, footers among them; in local mode."""
    file_system = spark.sparkContext._jvm.org.apache.hadoop.fs.FileSystem

    def total() -> int:
        return sum(each.getBytesRead() for each in file_system.getAllStatistics())

    before = total()
    work()
    return total() - before


def bytes_read(spark: SparkSession, warehouse: Warehouse) -> dict[str, int]:
    """Bytes read for all predictions, for a model version of five, for a day of twenty."""
    views = Views(spark, warehouse, {}, job.Run("bench"))
    select = "SELECT count(image_id), count(predicted_label) FROM predictions"
    conditions = {"all": "true", "one_model": "model_version = 'm3'", "one_day": WANTED_DAY}
    return {
        name: input_bytes(spark, lambda text=f"{select} WHERE {where}": views.query(text).collect())
        for name, where in conditions.items()
    }


def needed_bytes(warehouse: Warehouse) -> int:
    """Bytes of the footers and of what the query reads in the row groups of that day."""
    day = [datetime.fromisoformat(text) for text in re.findall(r"\d{4}-\d\d-\d\d", WANTED_DAY)]
    read, needed = {"image_id", "predicted_label", "scored_at"}, 0
    for file in warehouse.files("predictions"):
        footer = pq.read_metadata(file.path)
        needed += footer.serialized_size
        for place in range(footer.num_row_groups):
            group = footer.row_group(place)
            chunks = {c.path_in_schema: c for c in map(group.column, range(group.num_columns))}
            times = chunks["scored_at"].statistics
            if times.min.replace(tzinfo=None) < day[1] and times.max.replace(tzinfo=None) >= day[0]:
                needed += sum(chunks[name].total_compressed_size for name in read)
    return needed


def with_commits(root: Path, commits: int) -> Warehouse:
    """A warehouse whose every table has so many commits of a row each."""
    warehouse = Warehouse(root)
    for number in range(commits):
        at, run_id = FIRST_DAY + timedelta(hours=number), f"run-{number}"
        row = {name: f"{number:064x}" for name in ("image_id", "content_sha256", "other_sha256")}
        row |= {"run_id": run_id, "preprocessing": "p", "reason": "truncated", "split": "train"}
        row |= {"model_version": f"m{number % MODELS}", "error": "truncated", "created_at": at}
        row |= {"slice": "all", "class": "all", "metric": "cce", "images_version": number}
        row |= {"predictions_version": number}
        rows = {
            name: {column: value for column, value in row.items() if column in _columns(name)}
            for name in TABLES
            if name != "runs"
        }
        published = {name: warehouse.append_rows(name, [row]) for name, row in rows.items()}
        run = {"run_id": run_id, "job": "score" if number % 4 else "curate", "status": "finished"}
        versions = {name: published[name] for name in PUBLISHED}
        warehouse.append_rows("runs", [run | {"finished_at": at, "versions_written": versions}])
    return warehouse


def _columns(name: str) -> set[str]:
    return {"run_id", *tables.schema(name).names}


def timed_openings(spark: SparkSession, commits: int, root: Path, rounds: int) -> dict[str, Any]:
    """Seconds to open all views afresh, and in pairs their ratio to a warehouse of ten commits."""
    few, many = (with_commits(root / str(count), count) for count in (10, commits))

    def open_all(warehouse: Warehouse) -> None:
        views = Views(spark, warehouse, {}, job.Run("bench"))
        names = ", ".join(f"(SELECT count(*) FROM {name})" for name in views.names())
        views.query(f"SELECT {names}")  # has its plan over all views, but isn't computed

    for warehouse in (few, many):
        open_all(warehouse)
    taken = [
        (seconds(lambda: open_all(many)), seconds(lambda: open_all(few))) for _ in range(rounds)
    ]
    return {
        "seconds": {
            "10": round(median(b for _, b in taken), 2),
            str(commits): round(median(a for a, _ in taken), 2),
        },
        "ratios": [round(a / b, 2) for a, b in taken],
    }


def main() -> None:
    """Measure and print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--commits", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, spark_session("bench sql views") as spark:
        configuration = spark.sparkContext._jsc.hadoopConfiguration()
        configuration.setInt("parquet.block.size", ROW_GROUP_BYTES)
        warehouse = Warehouse(Path(scratch) / "predictions")
        warehouse.append("predictions", predictions(spark, options.rows), "score")
        ratios = timed_queries(spark, warehouse, options.rounds)
        print(ratios, flush=True)
        read, needed = bytes_read(spark, warehouse), needed_bytes(warehouse)
        print(read, flush=True)
        opening = timed_openings(spark, options.commits, Path(scratch), options.rounds)
    summary = {
        "benchmark": "sql_views",
        "rows": options.rows,
        "views_over_plain": {name: median(values) for name, values in ratios.items()},
        "pairs": ratios,
        "bytes_read": read,
        "bytes_in_row_groups_of_the_day": needed,
        "bytes_share": {name: round(read[name] / read["all"], 3) for name in read},
        "commits": options.commits,
        "opening": {"ratio": median(opening["ratios"])} | opening,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
