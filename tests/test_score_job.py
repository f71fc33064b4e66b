"""The score job as a scheduler meets it: killed, stopped, started twice, and none the worse."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from cxr_spark import delta
from cxr_spark.tables import Warehouse
from tests import artifacts
from tests.conftest import REPOSITORY, finished, run_job
from tests.test_curate import draw
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


def wait_for_rows(warehouse: Warehouse, least: int) -> None:
    until = time.monotonic() + 90
    while time.monotonic() < until:
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
    wait_for_rows(warehouse, 3)
    assert run_job("score", *command).exit_code == 5
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    kept = sum(file.num_rows for file in warehouse.files("predictions"))

    stopped = start(command)
    wait_for_rows(warehouse, kept + 3)
    stopped.send_signal(signal.SIGTERM)
    stdout, stderr = stopped.communicate(timeout=60)
    summary = json.loads(stdout.splitlines()[-1])
    assert (stopped.returncode, summary["status"]) == (0, "stopped"), stderr[-3000:]
    assert summary["counts"]["skipped"] >= kept

    rest = finished("score", *command)
    assert 0 < rest["counts"]["scored"] < IMAGES - kept
    rows = delta.read_rows(warehouse.path("predictions"), ["image_id", "error"])
    assert Counter(row["image_id"] for row in rows).most_common(1)[0][1] == 1
    assert len(rows) == IMAGES and all(row["error"] is None for row in rows)
