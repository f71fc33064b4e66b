"""Ingest of images against a bare loop, Daft and Ray Data: ratios of images a second, in pairs.

    make bench-ingest
    .venv/bin/python -m benchmarks.ingest --kind jpeg --files 2000 --from ../shared/data/pneumonia

Above 1: ingest is faster. Ingest does more than Daft and Ray: three hashes, facts, reasons, a
narrow table. All are warmed up before they are timed, on the same files and the same two cores, in
turn.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from pyspark.sql import SparkSession

from benchmarks import corpus
from cxr_spark import curate, delta, ingest, job
from cxr_spark.images import Preprocessing
from cxr_spark.selection import Policy
from cxr_spark.session import spark_session
from cxr_spark.tables import Warehouse

CHECKOUT = Path(__file__).resolve().parent.parent
SOURCES = {"png": "tuberculosis", "jpeg": "pneumonia"}
RIVALS = ("bare", "daft", "ray")
CORES = 2


def ours(spark: SparkSession, kind: str, folder: Path) -> dict[str, float]:
    """Seconds of ingest into a fresh warehouse, and of the whole of curate."""
    root = Path(tempfile.mkdtemp(prefix="ingest-"))
    run, warehouse, preprocessing = job.Run("curate"), Warehouse(root), Preprocessing()
    began = time.perf_counter()
    listed = ingest.list_sources({SOURCES[kind]: folder}, {}, b"")
    files = ingest.ingest(spark, warehouse, listed, ingest.Reading(preprocessing), run)
    assert files.staged is not None
    ingested = time.perf_counter() - began
    curate.curate(spark, warehouse, curate.Change(*files), preprocessing, Policy(), run)
    job.record(run, argparse.Namespace(warehouse=root), "", datetime.now(UTC))
    whole = time.perf_counter() - began
    assert run.counts["images"] + run.counts["rejects"] == len(listed)
    assert run.versions_written["images"] == delta.version(warehouse.path("images"))
    shutil.rmtree(root)
    return {"ingest": ingested, "curate": whole}


def rival(name: str, python: str, folder: Path) -> float:
    """Seconds of a rival in its own process and environment."""
    done = subprocess.run(
        [python, "-m", "benchmarks.rivals", name, str(folder)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"])


def hold_cores() -> None:
    """Keep this process, and all that it starts, to two cores, and Spark to two tasks at once."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    os.environ["PYSPARK_SUBMIT_ARGS"] = f"--conf spark.master=local[{CORES},4] pyspark-shell"


def main() -> None:
    """Measure and print the ratios."""
    hold_cores()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=SOURCES, default="png")
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rivals", default=",".join(RIVALS))
    parser.add_argument("--python", default=".venv-bench/bin/python", help="of the rivals")
    parser.add_argument("--from", dest="folder", help="folder of pictures to vary (else drawn)")
    options = parser.parse_args()
    files = corpus.make(options.kind, options.files, Path("benchmarks/.corpus"), options.folder)
    warm = corpus.make(options.kind, 64, Path("benchmarks/.corpus"), options.folder)
    names = options.rivals.split(",")
    seconds: dict[str, list[float]] = {}
    with spark_session("bench ingest") as spark:
        for folder in (warm, files):  # the JVM compiles what it has run often
            ours(spark, options.kind, folder)
        for _ in range(options.rounds):
            ours(spark, options.kind, warm)  # workers that idled for a minute have ended
            found = ours(spark, options.kind, files)
            found |= {name: rival(name, options.python, files) for name in names}
            for name, value in found.items():
                seconds.setdefault(name, []).append(value)
            print({name: round(options.files / value, 1) for name, value in found.items()})
    ratios = {
        name: [round(a / b, 3) for a, b in zip(seconds[name], seconds["ingest"], strict=True)]
        for name in (*names, "curate")
    }
    summary = {
        "benchmark": "ingest",
        "kind": options.kind,
        "files": options.files,
        "images_per_second": {n: round(options.files / median(s), 1) for n, s in seconds.items()},
        "ingest_over": {name: round(median(values), 3) for name, values in ratios.items()},
        "pairs": ratios,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
