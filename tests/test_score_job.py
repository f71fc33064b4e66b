"""The score job as people and schedulers meet it: its options; killed, stopped, started twice."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from cxr_spark import delta, job
from cxr_spark.drift import DriftOptionError
from cxr_spark.scoring import ScoringError
from cxr_spark.submission import SubmissionError
from cxr_spark.tables import Warehouse
from jobs import score
from tests import artifacts
from tests.conftest import REPOSITORY, finished, run_job
from tests.test_curate import draw
from tests.test_isolation import BREAKS_THE_DECODER
from tests.test_score import aged

IMAGES = 60


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that score 60 images with a commit for each."""
    root = tmp_path_factory.mktemp("score")
    for number in range(IMAGES):
        draw(root / "in" / f"{number:02}.png", number)
    aged(root / "in")
    on = ["--warehouse", str(root / "warehouse"), "--input", str(root / "in")]
    return [*on, "--model", str(artifacts.save(root / "models")), "--commit-every", "1"]


def start(command: list[str]) -> subprocess.Popen[str]:
    job = [sys.executable, str(REPOSITORY / "jobs" / "score.py"), *command]
    pipe = subprocess.PIPE
    return subprocess.Popen(job, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def wait_for_rows(warehouse: Warehouse, least: int, by: subprocess.Popen[str]) -> None:
    """Wait until a job that is running has committed so many rows."""
    until = time.monotonic() + 90
    while time.monotonic() < until:
        assert by.poll() is None, by.communicate()
        files = warehouse.files("predictions") if warehouse.exists("predictions") else []
        if sum(file.num_rows for file in files) >= least:
            return
        time.sleep(0.1)
    raise AssertionError(f"no {least} rows in 90 s")


def test_a_run_is_killed_another_is_stopped_and_the_third_finishes_without_a_row_twice(
    command: list[str],
) -> None:
    warehouse = Warehouse(command[1])
    killed = start(command)
    wait_for_rows(warehouse, 3, killed)
    assert run_job("score", *command).exit_code == 5
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    kept = sum(file.num_rows for file in warehouse.files("predictions"))

    stopped = start(command)
    wait_for_rows(warehouse, kept + 3, stopped)
    stopped.send_signal(signal.SIGTERM)
    stdout, stderr = stopped.communicate(timeout=60)
    summary = json.loads(stdout.splitlines()[-1])
    assert (stopped.returncode, summary["status"]) == (0, "stopped"), stderr[-3000:]
    counts = summary["counts"]
    assert counts["skipped"] >= kept
    accounted = (counts[name] for name in ("skipped", "scored", "unstable", "left"))
    assert sum(accounted) == counts["listed"] == IMAGES and counts["left"] > 0

    rest = finished("score", *command)
    assert 0 < rest["counts"]["scored"] < IMAGES - kept
    rows = delta.read_rows(warehouse.path("predictions"), ["image_id", "error"])
    assert Counter(row["image_id"] for row in rows).most_common(1)[0][1] == 1
    assert len(rows) == IMAGES and all(row["error"] is None for row in rows)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models."""
    folder = tmp_path_factory.mktemp("models")
    return [artifacts.save(folder, seed=seed) for seed in (0, 1)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures and an empty file."""
    for number in range(2):
        draw(tmp_path / "in" / f"{number}.png", number)
    (tmp_path / "in" / "empty.png").write_bytes(b"")
    return aged(tmp_path / "in")


def test_all_options_together_give_rows_a_submission_overlays_and_metrics(
    models: list[Path], folder: Path, tmp_path: Path
) -> None:
    draw(tmp_path / "elsewhere.png", 7)
    aged(tmp_path)
    paths = pa.table({"path": ["elsewhere.png", "in/1.png", "a\0b.png"]})
    pq.write_table(paths, tmp_path / "list.parquet")
    places = {name: tmp_path / name for name in ("warehouse", "out.csv", "score.prom")}
    options = ["--warehouse", places["warehouse"], "--input", folder, "--explain", "0.png"]
    options += ["--model", models[0], "--model", models[1], "--ensemble", "both"]
    options += ["--paths", tmp_path / "list.parquet", "--submission", places["out.csv"]]
    summary = finished("score", *options, "--metrics-file", places["score.prom"])

    counts = summary["counts"]
    wanted = {"listed": 5, "scored": 5, "errors": 2, "inferred": 6, "explained": 2, "left": 0}
    assert {name: counts[name] for name in wanted} == wanted
    for name in ("images_per_second", "write_seconds", "decode_seconds", "model_seconds"):
        assert counts[name] > 0
    warehouse = Warehouse(places["warehouse"])
    versions = [model.name for model in models]
    files = warehouse.files("predictions")
    rows = {file.partition["model_version"]: file.num_rows for file in files}
    assert rows == dict.fromkeys([*versions, "both"], 5)
    errors = warehouse.read_arrow("predictions", ["error"])["error"].unique()
    assert set(errors.to_pylist()) == {None, "empty_file", "unreadable"}
    header, *lines = csv.reader(places["out.csv"].read_text("utf-8").splitlines())
    named = ["0.png", "1.png", "empty.png", "elsewhere.png", "in/1.png", "a\0b.png"]
    assert [line[0] for line in lines] == named and len(header) == 10
    assert lines[1][1:] == lines[4][1:] != lines[0][1:]
    for version in versions:
        assert len(list((warehouse.root / "explanations" / version).glob("*.png"))) == 1
    metrics = places["score.prom"].read_text("utf-8")
    assert re.search(r'cxr_spark_run_count\{.*count="scored"\} 5', metrics)
    (run,) = delta.read_rows(warehouse.path("runs"), ["arguments", "counts"])
    assert run["arguments"]["ensemble_of"] == ",".join(sorted(versions))
    assert run["counts"]["scored"] == 5


@pytest.mark.long
def test_a_run_that_drifts_ends_with_exit_code_4_and_its_rows_there(
    models: list[Path], tmp_path: Path
) -> None:
    warehouse, files = Warehouse(tmp_path / "warehouse"), 100
    yesterday = {"scored_at": datetime.now(UTC) - timedelta(1), "run_id": "before"}
    yesterday |= {"model_version": models[0].name, "content_sha256": "0" * 64}
    yesterday |= {"predicted_label": "Covid", "confidence": 0.5, "entropy": 1.0}
    rows = [yesterday | {"image_id": f"file:/{number}.png"} for number in range(files)]
    warehouse.append_rows("predictions", rows)
    warehouse.append_rows("runs", [{"run_id": "before", "job": "score", "status": "finished"}])
    (tmp_path / "in").mkdir()
    for number in range(files):
        (tmp_path / "in" / f"{number}.png").write_bytes(b"")
    aged(tmp_path / "in")
    on = ("--warehouse", warehouse.root, "--model", models[0])
    done = run_job("score", *on, "--input", tmp_path / "in")
    assert (done.exit_code, done.summary["status"]) == (4, "drift"), done.stderr[-3000:]
    assert "beyond the limits: errors of" in done.summary["error"]
    assert done.summary["counts"]["judged"] == files
    assert sum(file.num_rows for file in warehouse.files("predictions")) == 2 * files


def score_here(*options: object) -> job.Run:
    """Run the job in this process; how it ended is what it raises."""
    run = job.Run("score")
    given = score.parser().parse_args(list(map(str, options)))
    run.max_runtime = given.max_runtime
    score.main(given, run)
    return run


@pytest.mark.long
def test_max_runtime_stops_a_run_that_goes_on_when_it_is_run_again(
    spark: SparkSession, models: list[Path], folder: Path, tmp_path: Path
) -> None:
    options = ("--warehouse", tmp_path / "warehouse", "--model", models[0], "--input", folder)
    with pytest.raises(job.Stopped, match="max-runtime is over"):
        score_here(*options, "--max-runtime", 0.001)
    assert not Warehouse(tmp_path / "warehouse").exists("predictions")
    run = score_here(*options, "--max-runtime", 1000)
    assert (run.counts["scored"], run.counts["left"]) == (3, 0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ([], job.InputError, "give either --split, or"),
        (["--split", "all", "--input", "in"], job.InputError, "give either --split, or"),
        (["--input", "in", "--images-version", "0"], job.InputError, "goes with --split"),
        (["--input", "in", "--submission", "a.csv"], job.InputError, "goes with one --model"),
        (["--input", "in", "--explain", "no.png"], ScoringError, "none of the 3 images"),
        (["--input", "in", "--drift-days", "inf"], DriftOptionError, "more than 0"),
        (["--input", "in", "--ensemble", "a/b"], ScoringError, "letters, digits"),
        (
            ["--input", "in", "again", "--ensemble", "both", "--submission", "a.csv"],
            SubmissionError,
            "the id 0.png would stand for",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_there(
    models: list[Path],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    error: type[ValueError],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "again" / "0.png", 0)
    both = ("--model", models[0], "--model", models[1])
    with pytest.raises(error, match=message):
        score_here("--warehouse", "warehouse", *both, *options)
    assert not (tmp_path / "warehouse").exists()


SHORT_TIMEOUT = """
if "pyspark.daemon" in sys.orig_argv:
    from cxr_spark import isolation
    isolation.decode_files.__kwdefaults__["timeout_s"] = 3.0
    crashes = images.decode
    def breaks_or_hangs(data, *arguments):
        return ctypes.CDLL(None).sleep(1000) if data == b"hangs" else crashes(data, *arguments)
    images.decode = breaks_or_hangs
"""


@pytest.mark.long
def test_what_breaks_the_decoder_costs_one_row_each(
    models: list[Path], folder: Path, tmp_path: Path
) -> None:
    """The decoder is broken from outside, in Spark's Python workers alone."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BREAKS_THE_DECODER + SHORT_TIMEOUT)
    for content in ("crashes", "explodes", "hangs"):
        (folder / f"{content}.png").write_bytes(content.encode())
    aged(folder)
    on = ("--warehouse", tmp_path / "warehouse", "--model", models[0], "--input", folder)
    done = run_job("score", *on, env={"PYTHONPATH": str(tmp_path / "site")})
    assert done.exit_code == 0, done.stderr[-4000:]
    rows = delta.read_rows(Warehouse(tmp_path / "warehouse").path("predictions"), ["path", "error"])
    assert {Path(row["path"]).stem: row["error"] for row in rows} == {
        "0": None,
        "1": None,
        "empty": "empty_file",
        "crashes": "decoder_crashed",
        "explodes": "decoder_memory",
        "hangs": "decoder_timeout",
    }
