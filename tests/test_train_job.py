"""The train job as a user runs it: stopped, killed, refused, gone on with, told again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from cxr_spark.tables import Warehouse
from tests.conftest import REPOSITORY, Finished, run_job
from tests.test_ranks import wait_until
from tests.test_train import publish


@pytest.fixture(scope="module")
def warehouse(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 images to train on; two epochs of them are six steps."""
    folder = tmp_path_factory.mktemp("job") / "warehouse"
    publish(spark, Warehouse(folder), {"train": 90, "val": 18, "test": 9})
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


class Started:
    """A train job that runs, in a process group of its own."""

    def __init__(self, warehouse: Path, models: Path, *words: str) -> None:
        given = ["--warehouse", str(warehouse), "--models", str(models), "--checkpoint-every", "1"]
        self.process = subprocess.Popen(
            [sys.executable, REPOSITORY / "jobs" / "train.py", *given, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.models = models

    def until_a_checkpoint(self) -> "Started":
        """Wait until the ranks train, from a checkpoint on."""
        wait_until(lambda: bool(ranks_of(self.models)), 200)
        wait_until(lambda: any(self.models.glob(".runs/train-*/checkpoint.json")), 200)
        return self

    def ended(self) -> Finished:
        """Wait for its end."""
        stdout, stderr = self.process.communicate(timeout=200)
        lines = stdout.strip().splitlines()
        summary = json.loads(lines[-1]) if lines else {}
        return Finished(self.process.returncode, summary, stdout, stderr)


def long_run(warehouse: Path, models: Path, *words: str) -> Started:
    """A run that ends only when it is made to."""
    return Started(warehouse, models, "--epochs", "1000", *words)


def ranks_of(models: Path) -> list[int]:
    """Processes that train into the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            opened = [os.readlink(file) for file in (process / "fd").iterdir()]
        except OSError:
            continue
        if any(re.search("checkpoints.lock", path) and str(models) in path for path in opened):
            found.append(int(process.name))
    return found


@pytest.fixture(autouse=True)
def no_rank_left(models: Path) -> Iterator[None]:
    """After each test nothing trains any more."""
    yield
    wait_until(lambda: ranks_of(models) == [], 10)


def test_models_that_is_no_folder_is_refused_before_spark_starts(
    curated: tuple[Path, object], models: Path
) -> None:
    models.touch()
    done = run_job("train", "--warehouse", curated[0], "--models", models)
    assert (done.exit_code, done.summary["status"]) == (2, "invalid")
    assert f"{models} is no folder" in done.summary["error"]


@pytest.mark.long
def test_sigterm_stops_at_a_checkpoint_and_resume_goes_on(warehouse: Path, models: Path) -> None:
    running = long_run(warehouse, models).until_a_checkpoint()
    on = ("--warehouse", warehouse, "--models", models, "--checkpoint-every", 1)
    same = run_job("train", *on, "--epochs", 1000, "--resume")
    assert (same.exit_code, same.summary["status"]) == (5, "busy")
    running.process.terminate()
    stopped = running.ended()
    assert (stopped.exit_code, stopped.summary["status"]) == (0, "stopped")
    assert "model" not in stopped.summary and list(models.glob("[!.]*")) == []
    other = run_job("train", *on, "--epochs", 1000, "--seed", 1, "--resume")
    assert other.exit_code == 2 and "seed was 0 and is now 1" in other.summary["error"]
    first = json.loads(next(models.glob(".runs/train-*/checkpoint.json")).read_text())
    again = long_run(warehouse, models, "--resume").until_a_checkpoint()
    step = first["standing"]["step"]
    file = next(models.glob(".runs/train-*/checkpoint.json"))
    wait_until(lambda: json.loads(file.read_text())["standing"]["step"] > step, 100)
    again.process.terminate()
    assert again.ended().summary["status"] == "stopped"
    assert len(list(models.glob(".runs/train-*"))) == 1


@pytest.mark.long
def test_time_that_is_given_ends_a_run_finished_and_resume_tells_it_again(
    warehouse: Path, models: Path
) -> None:
    finished = Started(warehouse, models, "--max-runtime", "60").ended()
    assert finished.summary["status"] == "finished", finished.stderr[-3000:]
    assert finished.summary["seconds"] < 60
    assert Path(finished.summary["model"]).is_dir()
    version = Warehouse(warehouse).version("models")
    again = Started(warehouse, models, "--max-runtime", "60", "--resume").ended()
    for key in ("status", "model", "model_version", "outputs", "versions", "counts"):
        assert again.summary[key] == finished.summary[key]
    assert Warehouse(warehouse).version("models") == version


@pytest.mark.long
def test_a_kill_of_the_process_group_leaves_no_rank_and_resume_completes(
    warehouse: Path, models: Path
) -> None:
    running = long_run(warehouse, models).until_a_checkpoint()
    assert ranks_of(models)
    os.killpg(running.process.pid, signal.SIGKILL)
    running.process.wait()
    wait_until(lambda: ranks_of(models) == [], 5)
    again = long_run(warehouse, models, "--resume").until_a_checkpoint()
    # A SIGTERM to all of them, as a service manager sends it, stops them no less cleanly.
    os.killpg(again.process.pid, signal.SIGTERM)
    stopped = again.ended()
    assert (stopped.exit_code, stopped.summary["status"]) == (0, "stopped"), stopped.stderr[-3000:]
    assert "stopped at a checkpoint" in stopped.stderr


@pytest.mark.long
def test_a_rank_that_is_killed_ends_the_run_in_seconds(warehouse: Path, models: Path) -> None:
    running = long_run(warehouse, models).until_a_checkpoint()
    began = time.monotonic()
    os.kill(ranks_of(models)[0], signal.SIGKILL)
    failed = running.ended()
    assert time.monotonic() - began < 30
    assert (failed.exit_code, failed.summary["status"]) == (1, "failed")
    assert "training failed in rank-0: the system killed it" in failed.summary["error"]
