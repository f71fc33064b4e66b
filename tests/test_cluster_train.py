"""Two ranks on a standalone cluster on loopback, whose workers have our libraries but not us."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from cxr_spark.artifact import load_card
from cxr_spark.tables import Warehouse
from tests.conftest import REPOSITORY
from tests.test_cluster import SPARK_HOME, master  # noqa: F401
from tests.test_train import publish


def shipped(folder: Path) -> Path:
    """Our wheel under a name that --py-files takes."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel"]
    built = ["--no-deps", "--no-build-isolation", "-w", str(folder), str(REPOSITORY)]
    subprocess.run([*pip, *built], check=True)
    (wheel,) = folder.glob("*.whl")
    return Path(shutil.copy(wheel, folder / "cxr_spark.zip"))


def submission(url: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """spark-submit with our package shipped, and its environment, for a cluster that lacks us."""
    # The plain interpreter with .venv's folder has the libraries, and not our editable install.
    python, libraries = os.path.realpath(sys.executable), sysconfig.get_path("purelib")
    submit = [str(SPARK_HOME / "bin" / "spark-submit"), "--master", url]
    submit += ["--driver-memory", "1g", "--py-files", str(shipped(folder))]
    for setting in (
        f"spark.executorEnv.PYTHONPATH={libraries}",
        "spark.executor.memory=512m",
        "spark.driver.host=127.0.0.1",
        "spark.driver.bindAddress=127.0.0.1",
    ):
        submit += ["--conf", setting]
    ours = {k: v for k, v in os.environ.items() if k != "PYSPARK_SUBMIT_ARGS"}
    return submit, ours | {"PYSPARK_PYTHON": python, "PYSPARK_DRIVER_PYTHON": sys.executable}


@pytest.mark.long
def test_two_ranks_train_on_two_workers_with_the_package_that_is_shipped(
    spark: SparkSession,
    master: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    publish(spark, Warehouse(tmp_path / "warehouse"), {"train": 90, "val": 18})
    submit, environment = submission(master, tmp_path)
    options = ["--warehouse", str(tmp_path / "warehouse"), "--models", str(tmp_path / "models")]
    done = subprocess.run(
        [*submit, str(REPOSITORY / "jobs" / "train.py"), *options, "--epochs", "2"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    card = load_card(summary["model"])
    assert card.val_rows == 18 and len(card.metrics) == 2
    assert summary["counts"] == {"train": 90, "val": 18, "epochs": 2, "steps": 6}
