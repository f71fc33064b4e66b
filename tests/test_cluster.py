"""Curation on a standalone cluster on loopback: workers that have but what is shipped to them."""

import json
import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyspark
import pytest
from pyspark.sql import SparkSession

from cxr_spark.tables import Warehouse
from tests.conftest import REPOSITORY, source_options

SPARK_HOME = Path(pyspark.__file__).parent
# What an executor of curate imports; torch and Spark itself are not among it.
EXECUTOR_NEEDS = (
    "deltalake",
    "kornia-rs",
    "numpy",
    "opencv-python-headless",
    "pandas",
    "pillow",
    "pyarrow",
    "pydicom",
    "python-gdcm",
    "scipy",
    "simplejpeg",
)
# When a run happened is all that two runs may differ in.
OF_THE_RUN = {"run_id", "split_since"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with our wheel and what it imports as requirements.lock has it; no torch."""
    folder = tmp_path_factory.mktemp("environment")
    pins = (REPOSITORY / "requirements.lock").read_text("utf-8").splitlines()
    excluded = ("torch", "nvidia", "triton", "pyspark", "petastorm", "cuda")
    wanted = [pin for pin in pins if pin and not pin.lstrip("#").startswith(excluded)]
    names = {pin: pin.split("==")[0].lower().replace("_", "-") for pin in wanted}
    needed = [pin for pin in wanted if names[pin] in EXECUTOR_NEEDS]
    assert len(needed) == len(EXECUTOR_NEEDS)
    (folder / "pins.txt").write_text("\n".join(wanted))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    target = ["install", "--target", str(folder / "packages")]
    subprocess.run([*pip, *target, *needed, "-c", str(folder / "pins.txt")], check=True)
    built = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(REPOSITORY)]
    subprocess.run([*pip, *built], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, *target, "--no-deps", str(wheel)], check=True)
    archive = folder / "environment.tar"
    with tarfile.open(archive, "w") as file:
        for path in (folder / "packages").iterdir():
            file.add(path, arcname=path.name)
    return archive


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a master with two workers of one core each, on loopback."""
    folder = tmp_path_factory.mktemp("cluster")
    port = _free_port()
    url = f"spark://127.0.0.1:{port}"
    on = ["--host", "127.0.0.1", "--webui-port", "0"]
    commands = [["master.Master", "--port", str(port), *on]]
    commands += [
        ["worker.Worker", "-c", "1", "-m", "2g", "-d", str(folder / str(i)), *on, url]
        for i in range(2)
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYSPARK", "SPARK"))}
    environment |= {"SPARK_HOME": str(SPARK_HOME), "SPARK_LOCAL_IP": "127.0.0.1"}
    log = (folder / "log").open("w")
    processes = []
    try:
        for name, *options in commands:
            command = [SPARK_HOME / "bin" / "spark-class", f"org.apache.spark.deploy.{name}"]
            processes.append(
                subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log)
            )
            time.sleep(3)  # the master must listen before workers call it
        yield url
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait()


@pytest.mark.long
def test_a_cluster_gives_the_same_tables(
    spark: SparkSession,
    sources: Path,
    curated: tuple[Path, dict],
    environment: Path,
    master: str,
    tmp_path: Path,
) -> None:
    python = os.path.realpath(sys.executable)  # the interpreter that .venv is made of: no packages
    submit = [str(SPARK_HOME / "bin" / "spark-submit"), "--master", master]
    submit += ["--properties-file", str(REPOSITORY / "conf" / "spark-defaults.conf")]
    submit += ["--driver-memory", "2g", "--archives", f"{environment}#environment"]
    for setting in (
        "spark.executorEnv.PYTHONPATH=environment",
        "spark.executor.memory=1g",
        "spark.driver.host=127.0.0.1",
        "spark.driver.bindAddress=127.0.0.1",
    ):
        submit += ["--conf", setting]
    options = ["--warehouse", str(tmp_path / "warehouse"), *source_options(sources)]
    ours = {k: v for k, v in os.environ.items() if k != "PYSPARK_SUBMIT_ARGS"}
    done = subprocess.run(
        [*submit, str(REPOSITORY / "jobs" / "curate.py"), *options, "--image-size", "64"],
        env=ours | {"PYSPARK_PYTHON": python, "PYSPARK_DRIVER_PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    on_cluster, local = Warehouse(tmp_path / "warehouse"), Warehouse(curated[0])
    for name in ("images_raw", "near_duplicates", "images", "rejects"):
        theirs, ours_frame = (w.read(spark, name) for w in (on_cluster, local))
        columns = [column for column in ours_frame.columns if column not in OF_THE_RUN]
        theirs, ours_frame = theirs.select(columns), ours_frame.select(columns)
        assert theirs.count() == ours_frame.count() > 0 or name == "near_duplicates"
        assert theirs.exceptAll(ours_frame).isEmpty(), name


LAYER = """
import sys
from pyspark.sql import functions as F
from cxr_spark import commits, delta, staging
from cxr_spark.session import spark_session
from cxr_spark.contracts import Contract

table, master = sys.argv[1:]
with spark_session("layer") as spark:
    assert spark.sparkContext.master == master, spark.sparkContext.master
    rows = spark.range(0, 1000, 1, 8).select(
        F.concat(F.lit("k"), "id").alias("key"),
        F.concat(F.lit("part "), F.col("id") % 3).alias("part"),
        F.encode(F.repeat(F.lit("x"), 1000), "utf-8").alias("blob"),
    )
    contract = Contract(rows.schema, key=("key",), required=("key",), partition_by=("part",))
    commits.commit(staging.stage(rows, table, contract), run_id="r", sequence=0)
    more = rows.withColumn("key", F.concat("key", F.when(F.length("key") < 4, "new")))
    more = more.where("key IS NOT NULL").unionByName(rows.limit(10))
    commits.append_new(spark, more, table, contract, run_id="r")
    staged = staging.stage(rows.where("part = 'part 1'").limit(5), table, contract)
    commits.commit(staged, run_id="r", mode="overwrite", partitions=["part 1"])
    counts = delta.read(spark, table, contract.schema).groupBy("part").count()
    print({row.part: row["count"] for row in counts.collect()})
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["local-cluster[2,1,2048]", "standalone"])
def test_the_table_layer_works_the_same_on_a_cluster(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    master = request.getfixturevalue("master") if kind == "standalone" else kind
    settings = "--conf spark.executor.memory=1g --conf spark.driver.host=127.0.0.1"
    given = f"--master {master} {settings} pyspark-shell"
    done = subprocess.run(
        [sys.executable, "-c", LAYER, str(tmp_path / "table"), master],
        env=os.environ | {"PYSPARK_SUBMIT_ARGS": given, "SPARK_HOME": str(SPARK_HOME)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # 1,000 rows over three parts, 100 of them once more under a new key; part 1 replaced by 5.
    counts = json.loads(done.stdout.replace("'", '"'))
    assert counts == {"part 0": 368, "part 1": 5, "part 2": 366}
