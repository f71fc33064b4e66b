"""What a run is said to have failed of is what its ranks left, or what the system did to them."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from cxr_spark.distribute import _failure
from cxr_spark.training_run import TrainingRun, begin
from tests.toys import launch, toy_plan

KILLS_ITSELF = """
import os, signal, time
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(300)
"""


@pytest.fixture
def run(tmp_path: Path) -> TrainingRun:
    return begin(tmp_path, replace(toy_plan(tmp_path), run_id="train-1"))


def test_a_rank_that_is_killed_is_named_and_not_its_partner(run: TrainingRun) -> None:
    began = time.monotonic()
    ranks = launch(KILLS_ITSELF)
    told = ranks.communicate(timeout=100)[1]
    assert time.monotonic() - began < 60
    (run.folder / "rank-0.txt").write_text("Connection closed by peer")
    assert _failure(run, told).startswith("rank-1: the system killed it (SIGKILL)")


def test_a_rank_that_raised_tells_its_traceback(run: TrainingRun) -> None:
    assert "left no traceback" in _failure(run, "exitcode  : 1 (pid: 9)")
    (run.folder / "rank-0.txt").write_text("the cause")
    assert _failure(run, "exitcode  : 1 (pid: 9)") == "rank-0:\nthe cause"
