"""jobs/query.py as a process: its streams, exit codes and prompt, and that it leaves no trace."""

import json
import os
import pty
import select
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cxr_spark import delta
from cxr_spark.tables import Warehouse
from tests.test_serve_sql import ENDLESS, children

QUERY = Path(__file__).resolve().parent.parent / "jobs" / "query.py"


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models in one version each."""
    folder = tmp_path_factory.mktemp("query") / "warehouse"
    for version in ("m0", "m1"):
        row = {"run_id": version, "model_version": version, "train_priors": [0.5, float("nan")]}
        Warehouse(folder).append_rows("models", [row])
    return folder


def files_below(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*")}


def start(warehouse: Path, folder: Path, *arguments: str) -> subprocess.Popen:
    """The job in a folder of its own, its three streams in our hands."""
    pipe = subprocess.PIPE
    command = [sys.executable, str(QUERY), "--warehouse", str(warehouse), *arguments]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=folder)


def test_the_result_is_alone_on_stdout_and_no_file_is_left_behind(
    warehouse: Path, tmp_path: Path
) -> None:
    before = files_below(warehouse, tmp_path)
    query = "SELECT model_version, train_priors FROM models"
    second, first = delta.history(Warehouse(warehouse).path("models"))[:2]
    moment = datetime.fromtimestamp(first["timestamp"] / 1000, UTC)
    assert first["timestamp"] < second["timestamp"]
    at = f"models={moment.isoformat()}"
    job = start(warehouse, tmp_path, "--format", "json", "--at", at, query)
    stdout, stderr = job.communicate(timeout=300)
    assert job.returncode == 0, stderr
    assert json.loads(stdout) == [{"model_version": "m0", "train_priors": [0.5, None]}]
    assert files_below(warehouse, tmp_path) == before


def test_a_query_from_a_file_with_parameters_goes_to_a_file(
    warehouse: Path, tmp_path: Path
) -> None:
    query, out = tmp_path / "question.sql", tmp_path / "answer.parquet"
    query.write_text(
        "-- one model\nSELECT :text AS text, :number AS number, :day AS day, model_version\n"
        "FROM models WHERE model_version = :version;\n"
    )
    values = ["text=it's; --", "number=7", "day=2026-01-31", "version='m1'"]
    parameters = [part for value in values for part in ("--param", value)]
    options = ("--file", str(query), "--format", "parquet", "--out", str(out))
    job = start(warehouse, tmp_path, *options, *parameters)
    stdout, stderr = job.communicate(timeout=300)
    assert (job.returncode, stdout) == (0, ""), stderr
    row = {"text": "it's; --", "number": 7, "day": date(2026, 1, 31), "model_version": "m1"}
    assert pq.read_table(out).to_pylist() == [row]
    assert files_below(tmp_path) == {query, out}


def test_a_query_from_stdin_whose_reader_stops_early_ends_quietly(
    warehouse: Path, tmp_path: Path
) -> None:
    job = start(warehouse, tmp_path, "--format", "csv")
    job.stdin.write("SELECT id FROM range(200000) ORDER BY id;\n")
    job.stdin.close()
    assert [job.stdout.readline() for _ in range(2)] == ["id\n", "0\n"]
    job.stdout.close()
    stderr = job.stderr.read()
    assert job.wait(timeout=300) == 0, stderr
    assert "Traceback" not in stderr and "BrokenPipe" not in stderr


@pytest.mark.long
def test_a_query_that_spark_is_planning_ends_by_sigterm(warehouse: Path, tmp_path: Path) -> None:
    """What is computed of one row while planning can't be cancelled."""
    endless = ENDLESS.replace("range(2)", "VALUES (1L) AS t(id)")
    job = start(warehouse, tmp_path, f"{endless} UNION ALL SELECT count(*) FROM rejects")
    while "rejects: nothing there yet" not in job.stderr.readline():  # said as planning begins
        assert job.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        job.wait(2)
    job.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        job.wait(2)
    stdout, stderr = job.communicate(timeout=60)
    assert (job.returncode, json.loads(stdout)["status"]) == (0, "stopped"), stderr
    assert not children(job.pid)


def test_a_refusal_is_exit_2_with_the_reason_on_stderr_and_the_summary_on_stdout(
    warehouse: Path, tmp_path: Path
) -> None:
    job = start(warehouse, tmp_path, "SELECT * FROM csv.`/etc/passwd`")
    stdout, stderr = job.communicate(timeout=300)
    assert job.returncode == 2
    summary = json.loads(stdout)
    assert (summary["job"], summary["status"], summary["exit_code"]) == ("query", "invalid", 2)
    assert "csv./etc/passwd is none of the views" in summary["error"]
    assert stderr.rstrip().endswith(summary["error"])
    assert "Traceback" not in stderr and "\tat " not in stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--at", "models"], "expected TABLE=VERSION"),
        (["--at", "models=x"], "expected TABLE=VERSION"),
        (["--at", "models=99"], "no version 99"),
        (["--at", f"models={10**20}"], f"no version {10**20}"),
        (["--at", "models=2020-01-31"], "has no version of 2020-01-31"),
        (["--at", "images=2020-01-31"], "no curate run had finished by 2020-01-31"),
        (["--at", "model=0"], "no table is named model"),
        (["--at", "predictions=0"], "predictions"),
        (["--at", "latest_metrics=0"], "no table is named latest_metrics"),
        (["--param", "label", "SELECT :label"], "expected NAME=VALUE"),
        (["--param", "a b=1", "SELECT 1"], "expected NAME=VALUE"),
        (["--param", "day=2026-02-30", "SELECT :day"], "2026-02-30 is no date"),
        (["--format", "parquet", "SELECT 1"], "--format parquet needs --out"),
        (["--out", "nowhere/x.csv", "SELECT 1"], "no file in a folder that exists"),
        (["--out", ".", "SELECT 1"], "no file in a folder that exists"),
        (["--file", "nowhere.sql"], "can't be read"),
        (["--file", "nowhere.sql", "SELECT 1"], "give one of them"),
        ([" "], "the query is empty"),
        ([], "the query is empty"),
        (["--warehouse", "nowhere", "SELECT 1"], "no tables there"),
    ],
)
def test_bad_arguments_are_exit_2_before_spark_is_started(
    warehouse: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    stdout, stderr = start(warehouse, tmp_path, *arguments).communicate(timeout=100)
    summary = json.loads(stdout)
    assert summary["exit_code"] == 2
    assert message in summary["error"]
    assert "Spark" not in stderr
    assert files_below(tmp_path) == set()


def test_a_terminal_gets_a_prompt_that_survives_errors_completes_and_remembers(
    warehouse: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    state = tmp_path_factory.mktemp("state")
    ours, theirs = pty.openpty()
    command = [sys.executable, str(QUERY), "--warehouse", str(warehouse)]
    env = os.environ | {"XDG_STATE_HOME": str(state), "TERM": "dumb"}
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    job = subprocess.Popen(command, **streams, cwd=tmp_path, env=env)
    os.close(theirs)

    def read_until(mark: str) -> str:
        text = ""
        while mark not in text:
            assert select.select([ours], [], [], 300)[0], f"no {mark!r} in {text!r}"
            text += os.read(ours, 4096).decode()
        return text

    def type_line(line: str, mark: str = "sql> ") -> str:
        os.write(ours, f"{line}\n".encode())
        return read_until(mark)

    read_until("sql> ")
    assert "predictions" in type_line(r"\d")
    assert "model_version" in type_line(r"\d models")
    assert "DropView is not allowed" in type_line("DROP VIEW models;")
    type_line("SELECT count(*) + 40 AS n", mark="...> ")
    assert "42" in type_line("FROM models;")
    os.write(ours, b"SELECT count(*) + 70 FROM newest_m\t")
    read_until("newest_model_predictions")
    assert "70" in type_line(";")
    os.write(ours, b"\\q\n")
    assert job.wait(timeout=100) == 0
    assert files_below(tmp_path) == set()
    history = state / "cxr_spark" / "query_history"
    assert history.stat().st_mode & 0o777 == 0o600
    assert "SELECT count(*) + 40 AS n\nFROM models;" in history.read_text()
