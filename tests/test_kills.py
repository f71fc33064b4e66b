"""SIGKILL at every point of a curate run: what is published is the old or the new, never a mix."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from cxr_spark.tables import Warehouse
from tests.conftest import REPOSITORY, finished, source_options

# Runs a job whose process group dies at its nth step of writing: before it, after it or, where
# Spark writes, in the midst of it. With a number that is never reached, it prints the steps.
DYING = """
import functools, glob, os, runpy, signal, sys, threading, time
from cxr_spark import commits, staging
from cxr_spark.jobs import curate as job_module

last, steps = int(sys.argv.pop(1)), []

def die():
    os.killpg(0, signal.SIGKILL)

def step(name):
    steps.append(name)
    if len(steps) == last:
        die()

def die_once_files_are_begun(table):
    while not glob.glob(glob.escape(table) + "/j-*/_temporary/**/*.parquet", recursive=True):
        time.sleep(0.001)
    die()

def watched(module, name):
    real = getattr(module, name)
    @functools.wraps(real)
    def call(*arguments, **options):
        step("before " + name)
        if len(steps) + 1 == last and name == "stage":
            table = arguments[1]
            threading.Thread(target=die_once_files_are_begun, args=(table,), daemon=True).start()
        result = real(*arguments, **options)
        step("after " + name)
        return result
    setattr(module, name, call)

for name in ("stage", "stage_arrow", "stage_parts"):
    watched(staging, name)
for name in ("commit", "_write", "_declare"):
    watched(commits, name)
try:
    runpy.run_path(job_module.__file__, run_name="__main__")
finally:
    print("steps:", *steps, sep="\\n", file=sys.stderr)
"""
# Points that are tried, spread over all of a run; `make test-kills` tries each.
AT_MOST = int(os.environ.get("CXR_SPARK_KILL_POINTS", "11"))


def dying(step: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DYING, str(step), *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=300,
    )


def state(spark: SparkSession, warehouse: Warehouse) -> dict[str, Any]:
    """What a reader sees: the image size and ids of images, the reasons of rejects, the counts."""
    images = warehouse.read(spark, "images").select("image_id", "image_size", "split").collect()
    rejects = warehouse.read(spark, "rejects").select("image_id", "reason").collect()
    listed = warehouse.read(spark, "images_raw").count()
    assert listed == len(images) + len(rejects)
    return {"images": sorted(map(tuple, images)), "rejects": sorted(map(tuple, rejects))}


@pytest.mark.long
def test_a_run_that_is_killed_anywhere_leaves_the_old_or_the_new_and_its_rerun_ends_it(
    spark: SparkSession, curated: tuple[Path, Any], sources: Path, tmp_path: Path
) -> None:
    def arguments(root: Path) -> list[object]:
        # Another size changes every row of images, and another class the files that are kept.
        change = ["--image-size", 32, "--select", "tuberculosis=Tuberculosis,No Finding"]
        return ["--warehouse", root, *source_options(sources), *change]

    old = state(spark, Warehouse(curated[0]))
    root = Path(shutil.copytree(curated[0], tmp_path / "whole"))
    whole = dying(10**6, *arguments(root))
    assert json.loads(whole.stdout.strip().splitlines()[-1])["status"] == "finished", whole.stderr
    steps = [line for line in whole.stderr.splitlines() if line.startswith(("before ", "after "))]
    new = state(spark, Warehouse(root))
    assert new["images"] != old["images"] and new["rejects"] != old["rejects"]
    assert len(steps) >= 20
    chosen = {round(point) for point in np.linspace(1, len(steps), min(AT_MOST, len(steps)))}
    seen, in_the_midst = set(), 0
    for point in sorted(chosen | {1 + steps.index("after stage")}):
        root = Path(shutil.copytree(curated[0], tmp_path / str(point)))
        done = dying(point, *arguments(root))
        assert done.returncode == -9, (point, done.stderr[-2000:])
        in_the_midst += any(root.rglob("_temporary"))  # Spark's own folder while it writes
        left = state(spark, Warehouse(root))
        assert left in (old, new), (point, steps[point - 1])
        seen.add("old" if left == old else "new")
        finished("curate", *arguments(root))
        assert state(spark, Warehouse(root)) == new, (point, steps[point - 1])
        shutil.rmtree(root)
    assert seen == {"old", "new"} and in_the_midst
    assert os.listdir(tmp_path) == ["whole"]
