"""conf/scheduling: each file is accepted by its scheduler, and its command by the job."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from jobs import score
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "conf" / "scheduling"
PYTHON = "/opt/cxr_spark/.venv/bin/python"
# `make test-airflow` sets it up: Airflow's dependencies aren't ours.
AIRFLOW = REPOSITORY / ".venv-airflow" / "bin" / "airflow"


def text(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")


def command(name: str) -> str:
    """The command that a file starts, on one line and without what the shell does with it."""
    found = re.search(r"(\S+/python \S+/score\.py .*?)(?: >>|\n#|\nstatus)", joined(name), re.S)
    assert found
    return found[1]


def joined(name: str) -> str:
    return re.sub(r"\\+\n\s*", "", text(name))


@pytest.mark.parametrize("name", ["crontab", "cxr-score.service", "cxr_score_dag.py"])
def test_the_job_takes_the_options_that_a_scheduler_gives_it(name: str) -> None:
    _, job, *arguments = shlex.split(command(name))
    assert job.endswith("/jobs/score.py")
    options = score.parser().parse_args(arguments)
    assert options.input
    assert options.max_runtime == 18000


def test_cron_takes_the_crontab() -> None:
    if shutil.which("crontab") is None:
        pytest.skip("no cron here")
    done = subprocess.run(["crontab", "-n", FOLDER / "crontab"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_crontab_has_one_line_that_runs_every_night() -> None:
    lines = [line for line in text("crontab").splitlines() if re.match(r"[\d*]", line)]
    assert [line.split()[:5] for line in lines] == [["0", "1", "*", "*", "*"]]
    assert "%" not in lines[0]  # to cron the end of the command


def test_cron_mails_the_end_of_the_log_unless_another_run_is_at_work(tmp_path: Path) -> None:
    (line,) = [line for line in text("crontab").splitlines() if line.startswith("0 1 ")]
    shell = line.split(maxsplit=5)[5].replace("/var/log/cxr", str(tmp_path))
    for code, mailed in ((0, ""), (4, "words\n"), (1, "words\n"), (5, "")):
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\necho '{{}}'\necho words >&2\nexit {code}\n")
        python.chmod(0o755)
        (tmp_path / "score.log").unlink(missing_ok=True)
        given = ["/bin/sh", "-c", shell.replace(PYTHON, str(python))]
        assert subprocess.run(given, capture_output=True, text=True).stdout == mailed
    assert (tmp_path / "score.jsonl").read_text() == "{}\n" * 4


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd here")
    for path in [*FOLDER.glob("*.service"), *FOLDER.glob("*.timer")]:
        there = path.read_text("utf-8").replace(PYTHON, "/bin/true")
        (tmp_path / path.name).write_text(there)
    units = [tmp_path / n for n in ("cxr-score.service", "cxr-score.timer", "cxr-alert@x.service")]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_tries_again_only_what_may_help() -> None:
    unit = text("cxr-score.service")
    assert re.findall(r"^RestartPreventExitStatus=(.*)$", unit, re.M) == ["2 3 4"]
    assert re.findall(r"^SuccessExitStatus=(.*)$", unit, re.M) == ["5"]
    assert "KillMode=mixed" in unit


def states(tmp_path: Path, exit_code: int, status: str) -> tuple[dict[str, str], str]:
    """How the DAG's tasks end, and Airflow's log, where the job ends like this."""
    home = tmp_path / "airflow"
    (home / "dags").mkdir(parents=True)
    dag = text("cxr_score_dag.py").replace("retries=3", "retries=0")  # no ten minutes' wait
    (home / "dags" / "cxr_score_dag.py").write_text(dag)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    summary = {"status": status, "exit_code": exit_code, "error": "the words"}
    python.write_text(
        f"#!/bin/sh\necho words >&2\necho '{json.dumps(summary)}'\nexit {exit_code}\n"
    )
    python.chmod(0o755)
    env = os.environ | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "CXR_HOME": str(tmp_path),
    }

    def airflow(*arguments: str) -> subprocess.CompletedProcess[str]:
        given = [AIRFLOW, *arguments]
        return subprocess.run(given, env=env, capture_output=True, text=True, timeout=300)

    airflow("db", "migrate")
    tested = airflow("dags", "test", "cxr_score")
    listed = airflow("dags", "list-runs", "cxr_score", "--output", "json").stdout
    (run,) = json.loads(listed[listed.index("[{") :])
    told = airflow("tasks", "states-for-dag-run", "cxr_score", run["run_id"], "--output", "json")
    tasks = json.loads(told.stdout[told.stdout.index("[{") :])
    return {task["task_id"]: task["state"] for task in tasks}, tested.stdout + tested.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("exit_code", "status", "score_ends", "judge_ends"),
    [
        (0, "finished", "success", "success"),
        (1, "failed", "failed", "upstream_failed"),
        (2, "invalid", "success", "failed"),
        (4, "drift", "success", "failed"),
        (5, "busy", "skipped", "skipped"),
    ],
)
def test_airflow_alerts_and_skips_by_the_exit_code(
    tmp_path: Path, exit_code: int, status: str, score_ends: str, judge_ends: str
) -> None:
    if not AIRFLOW.exists():
        pytest.skip("no Airflow here: `make test-airflow` installs it in .venv-airflow")
    ends, log = states(tmp_path, exit_code, status)
    assert ends == {"score": score_ends, "judge": judge_ends}, log[-3000:]
    assert (f"{status}: the words" in log) == (judge_ends == "failed")
