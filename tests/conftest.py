"""What all tests share: a Spark session, a tiny sample, a warehouse that every job has run on."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pyspark.sql import SparkSession
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from cxr_spark.session import spark_session
from tests.browser import Browser

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
SOURCES = ("nih", "covid", "pneumonia", "tuberculosis")

# On tables of a few rows Spark spends its time on compiling code; these settings are for that.
SMALL_SPARK = {
    "spark.master": "local[2,4]",
    "spark.driver.memory": "2g",
    "spark.sql.shuffle.partitions": "2",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
}
os.environ["PYSPARK_SUBMIT_ARGS"] = (
    " ".join(f"--conf {name}={value}" for name, value in SMALL_SPARK.items()) + " pyspark-shell"
)


# Modules that share the drawn sources and what jobs made of them, which takes minutes to make.
SHARING = [
    "test_chain",
    "test_curation_report",
    "test_docs_jobs",
    "test_docs_sql",
    "test_forecast",
    "test_inference",
    "test_notebooks",
    "test_other_readers",
    "test_reader",
    "test_report",
    "test_sample",
    "test_score",
    "test_score_inputs",
    "test_train_job",
]


class ByModule(LoadFileScheduling):
    """Of several processes one runs a whole module, and one all those of SHARING."""

    def _split_scope(self, nodeid: str) -> str:
        module = Path(super()._split_scope(nodeid)).stem
        return "sharing" if module in SHARING else module


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByModule:
    """xdist's own groups, by a mark, need a pytest before 9.2."""
    return ByModule(config, log)


class Finished(NamedTuple):
    """A job's process after its end: exit code, summary (last line of stdout), both streams."""

    exit_code: int
    summary: dict[str, Any]
    stdout: str
    stderr: str


def run_job(name: str, *arguments: object, env: dict[str, str] | None = None) -> Finished:
    """Run jobs/<name>.py in a process of its own, as a user does."""
    done = subprocess.run(
        [sys.executable, REPOSITORY / "jobs" / f"{name}.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | (env or {}),
        timeout=600,
    )
    lines = done.stdout.strip().splitlines()
    try:
        summary = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        summary = {}
    return Finished(done.returncode, summary, done.stdout, done.stderr)


def finished(name: str, *arguments: object, said: dict[str, str] | None = None) -> dict[str, Any]:
    """The summary of a job that must succeed; what it said on stderr goes to `said`."""
    done = run_job(name, *arguments)
    assert done.exit_code == 0, f"{name} failed:\n{done.stderr[-4000:]}"
    if said is not None:
        said[name] = done.stderr
    return done.summary


class Chain(NamedTuple):
    """The tiny warehouse after curate, train, score and evaluate, their summaries, and by job what
    they and sample said on stderr."""

    sources: Path
    warehouse: Path
    models: Path
    report: Path
    curate: dict[str, Any]
    train: dict[str, Any]
    score: dict[str, Any]
    evaluate: dict[str, Any]
    said: dict[str, str]


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """The session of all tests."""
    with spark_session("cxr_spark tests") as session:
        yield session


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Opens pages; tests that do are skipped where there is no Chromium."""
    with Browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture(scope="session", name="run_job")
def run_job_fixture() -> Callable[..., Finished]:
    """Runs a job in a process of its own."""
    return run_job


@pytest.fixture(scope="session")
def said() -> dict[str, str]:
    """What the jobs that made `sources`, `curated` and `chain` said on stderr, by job."""
    return {}


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory, said: dict[str, str]) -> Path:
    """The four sources, drawn: eight images a class that curation keeps, and every trap."""
    out = tmp_path_factory.mktemp("sample") / "sources"
    finished("sample", "--out", out, "--images-per-class", 8, said=said)
    return out


def source_options(folder: Path) -> list[str]:
    """The options of curate for the four sources below a folder."""
    return [part for name in SOURCES for part in (f"--{name}", str(folder / name))]


@pytest.fixture(scope="session")
def curated(
    sources: Path, tmp_path_factory: pytest.TempPathFactory, said: dict[str, str]
) -> tuple[Path, dict[str, Any]]:
    """The warehouse of `chain` and the summary of its curate run."""
    warehouse = tmp_path_factory.mktemp("chain") / "warehouse"
    options = ("--warehouse", warehouse, *source_options(sources), "--image-size", 64)
    return warehouse, finished("curate", *options, said=said)


@pytest.fixture(scope="session")
def chain(curated: tuple[Path, dict[str, Any]], sources: Path, said: dict[str, str]) -> Chain:
    """The tiny warehouse that every job has run on once. Tests read it and leave it as it is."""
    warehouse, curate = curated
    models, report = warehouse.parent / "models", warehouse.parent / "report.html"
    on = ("--warehouse", warehouse)
    short = ("--epochs", 1, "--batch-size", 16, "--workers", 2)
    train = finished("train", *on, "--models", models, *short, said=said)
    score = finished("score", *on, "--model", train["model"], "--split", "all", said=said)
    evaluate = finished("evaluate", *on, "--report", report, said=said)
    return Chain(sources, warehouse, models, report, curate, train, score, evaluate, said)


@pytest.fixture(scope="session")
def real_sources() -> Path:
    """Real images in the layouts of the sources; tests that read them are skipped without."""
    if not (SHARED_DATA / "nih").is_dir():
        pytest.skip(f"no real images at {SHARED_DATA}")
    return SHARED_DATA
