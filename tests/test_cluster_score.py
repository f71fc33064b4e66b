"""Scoring on a standalone cluster on loopback, an executor of which is killed in the middle."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cxr_spark import delta
from cxr_spark.labels import CLASS_COLUMNS
from cxr_spark.tables import Warehouse
from tests import artifacts
from tests.conftest import REPOSITORY, finished
from tests.test_cluster import master  # noqa: F401
from tests.test_cluster_train import submission
from tests.test_curate import draw
from tests.test_score import aged
from tests.test_score_job import wait_for_rows

IMAGES = 40


def executors() -> set[int]:
    """Process ids of the executors of this process' cluster."""
    workers = children({os.getpid()}, "deploy.worker.Worker")
    return children(workers, "CoarseGrainedExecutorBackend")


def children(parents: set[int], command: str) -> set[int]:
    of = ",".join(map(str, parents))
    found = subprocess.run(["pgrep", "-P", of, "-f", command], capture_output=True, text=True)
    return {int(pid) for pid in found.stdout.split()}


def wait_for_another(before: set[int]) -> None:
    until = time.monotonic() + 60
    while not executors() - before:
        assert time.monotonic() < until, "the executor wasn't replaced"
        time.sleep(0.1)


def probabilities(warehouse: Path) -> dict[str, list[float]]:
    rows = delta.read_rows(Warehouse(warehouse).path("predictions"), ["image_id", "probabilities"])
    assert len({row["image_id"] for row in rows}) == len(rows)
    return {row["image_id"]: [row["probabilities"][n] for n in CLASS_COLUMNS] for row in rows}


@pytest.mark.long
def test_a_cluster_that_loses_an_executor_gives_the_same_predictions(
    master: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    for number in range(IMAGES):
        draw(tmp_path / "in" / f"{number:02}.png", number)
    aged(tmp_path / "in")
    options = ["--model", str(artifacts.save(tmp_path / "models")), "--commit-every", "2"]
    options += ["--input", str(tmp_path / "in"), "--warehouse"]
    submit, environment = submission(master, tmp_path)
    job = subprocess.Popen(
        [*submit, str(REPOSITORY / "jobs" / "score.py"), *options, str(tmp_path / "on cluster")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for_rows(Warehouse(tmp_path / "on cluster"), 4, job)
    before = executors()
    assert len(before) == 2
    os.kill(min(before), signal.SIGKILL)
    wait_for_another(before)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output[-6000:]
    assert json.loads(output.strip().splitlines()[-1])["counts"]["scored"] == IMAGES
    finished("score", *options, str(tmp_path / "local"))
    on_cluster, local = (probabilities(tmp_path / name) for name in ("on cluster", "local"))
    assert on_cluster.keys() == local.keys()
    for image, values in local.items():
        assert on_cluster[image] == pytest.approx(values, abs=1e-6)
