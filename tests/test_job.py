"""The contract of all jobs: one summary line, one exit code, one runs row, one lock."""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cxr_spark import delta, job
from cxr_spark.tables import Warehouse

SCRIPT = """
import sys, time
from cxr_spark import job
from cxr_spark.expectations import AuditRefused, Failure

def main(options, run):
    print("noise on stdout")
    if options.lock:
        run.lock(options.warehouse, "toy")
    run.counts["things"] = 3
    run.versions_written["images"] = 7
    exec(options.do)

options = job.parser("toy", "A toy.")
options.add_argument("--warehouse", required=True)
options.add_argument("--do", default="pass")
options.add_argument("--lock", action="store_true")
options.add_argument("--resume", action="store_true")
options.add_argument("--while-parsing", type=exec)
job.add_metrics_file(options)
job.start("toy", options, main, **{arguments})
"""


def start(tmp_path: Path, *options: str, arguments: str = "{}") -> subprocess.Popen[str]:
    script = tmp_path / "toy.py"
    script.write_text(SCRIPT.replace("{arguments}", arguments))
    command = [sys.executable, str(script), *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=tmp_path)


def ended(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str, str]:
    stdout, stderr = process.communicate(timeout=60)
    lines = stdout.splitlines()
    return process.returncode, json.loads(lines[-1]) if lines else {}, stdout, stderr


def runs(warehouse: Path) -> list[dict[str, Any]]:
    table = Warehouse(warehouse).path("runs")
    columns = ["job", "status", "exit_code", "counts", "versions_written", "error", "arguments"]
    return delta.read_rows(table, columns) if delta.version(table) is not None else []


@pytest.mark.parametrize(
    ("do", "exit_code", "status", "words"),
    [
        ("pass", 0, "finished", ""),
        ("raise job.Stopped('stopped by SIGTERM')", 0, "stopped", "SIGTERM"),
        ("raise KeyError('a bug')", 1, "failed", "KeyError"),
        ("raise ValueError('from a library')", 1, "failed", "from a library"),
        ("raise job.InputError('no such thing')", 2, "invalid", "no such thing"),
        ("raise AuditRefused([Failure('t', 'e', 'critical', [])])", 3, "refused", "audit refused"),
        ("raise job.Busy('taken')", 5, "busy", "taken"),
    ],
)
def test_every_end_has_its_exit_code_its_summary_and_its_row(
    tmp_path: Path, do: str, exit_code: int, status: str, words: str
) -> None:
    warehouse = tmp_path / "w"
    code, summary, stdout, stderr = ended(
        start(tmp_path, "--warehouse", str(warehouse), "--do", do)
    )
    assert code == summary["exit_code"] == exit_code
    assert summary["status"] == status
    assert summary["job"] == "toy"
    assert summary["counts"] == {"things": 3}
    assert {"run_id", "seconds", "versions", "outputs"} <= summary.keys()
    assert len(stdout.splitlines()) == 1
    assert "noise on stdout" in stderr
    assert words in stderr
    if status in ("invalid", "busy"):
        assert not warehouse.exists()
        return
    (row,) = runs(warehouse)
    assert (row["status"], row["exit_code"]) == (status, exit_code)
    # Only what finished is published.
    assert row["versions_written"] == ({"images": 7} if status == "finished" else {})
    assert row["arguments"]["do"] == do


def test_bad_arguments_end_with_one_line_and_the_summary(tmp_path: Path) -> None:
    code, summary, _, stderr = ended(start(tmp_path, "--wrong"))
    assert (code, summary["status"]) == (2, "invalid")
    assert "required: --warehouse" in summary["error"]
    assert len(stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "toy.py"]


def test_a_job_that_prints_its_result_adds_a_summary_only_when_it_fails(tmp_path: Path) -> None:
    arguments = '{"records": False, "prints_result": True}'
    options = ["--warehouse", str(tmp_path / "w"), "--do"]
    code, _, stdout, _ = ended_raw(start(tmp_path, *options, "print('42')", arguments=arguments))
    assert (code, stdout) == (0, "noise on stdout\n42\n")
    failing = start(tmp_path, *options, "raise job.InputError('no')", arguments=arguments)
    code, summary, _, _ = ended(failing)
    assert (code, summary["exit_code"]) == (2, 2)


def ended_raw(process: subprocess.Popen[str]) -> tuple[int, None, str, str]:
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, None, stdout, stderr


def _wait_for(path: Path) -> None:
    until = time.monotonic() + 30
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert path.exists()


def test_a_metrics_file_tells_of_runs_that_fail_too(tmp_path: Path) -> None:
    gauges = tmp_path / "toy.prom"
    common = ("--warehouse", str(tmp_path / "w"), "--metrics-file", str(gauges))
    assert ended(start(tmp_path, *common))[0] == 0
    assert 'cxr_spark_run_exit_code{command="toy",file="toy"} 0' in gauges.read_text()
    assert ended(start(tmp_path, *common, "--do", "raise OSError('disk')"))[0] == 1
    assert 'cxr_spark_run_exit_code{command="toy",file="toy"} 1' in gauges.read_text()
    code, summary, _, _ = ended(start(tmp_path, *common[:3], str(tmp_path / "toy.txt")))
    assert (code, summary["status"]) == (2, "invalid")


def test_a_quiet_run_says_nothing_but_what_went_wrong(tmp_path: Path) -> None:
    common = ("--warehouse", str(tmp_path / "w"), "--quiet", "--do")
    _, _, _, stderr = ended(start(tmp_path, *common, "run.say('words'); run.progress(1, 1, 'x')"))
    assert "words" not in stderr and "1 of 1" not in stderr
    _, _, _, stderr = ended(start(tmp_path, *common, "raise job.InputError('wrong')"))
    assert "invalid: wrong" in stderr


def test_the_end_says_where_things_are_and_what_to_run_next(tmp_path: Path) -> None:
    body = "run.outputs['report'] = '/r.html'; run.next_steps.append('jobs/query.py')"
    _, _, _, stderr = ended(start(tmp_path, "--warehouse", str(tmp_path / "w"), "--do", body))
    assert stderr.splitlines()[-2:] == ["[toy]   report  /r.html", "[toy]   next    jobs/query.py"]


def test_sigterm_stops_cleanly_with_exit_0(tmp_path: Path) -> None:
    wait = f"open({str(tmp_path / 'ready')!r}, 'w').close(); time.sleep(60)"
    process = start(tmp_path, "--warehouse", str(tmp_path / "w"), "--do", wait)
    _wait_for(tmp_path / "ready")
    process.send_signal(signal.SIGTERM)
    code, summary, _, stderr = ended(process)
    assert (code, summary["status"]) == (0, "stopped")
    assert [row["status"] for row in runs(tmp_path / "w")] == ["stopped"]
    again = shlex.join([str(tmp_path / "toy.py"), *process.args[2:], "--resume"])
    assert stderr.splitlines()[-1] == f"[toy]   next  {again}"


SIGTERM = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
AFTER_SIGTERM = f"""
with run.safe_points():
    {SIGTERM}
    %s
"""


@pytest.mark.parametrize(
    ("what", "code", "status"),
    [
        ("raise ConnectionRefusedError('the JVM is gone')", 0, "stopped"),
        ("from py4j.protocol import Py4JError; raise RuntimeError from Py4JError()", 0, "stopped"),
        ("raise OSError(28, 'no space left')", 1, "failed"),
    ],
)
def test_what_sigterm_to_the_whole_group_breaks_is_no_failure_and_all_else_is(
    tmp_path: Path, what: str, code: int, status: str
) -> None:
    options = ("--warehouse", str(tmp_path / "w"), "--do", AFTER_SIGTERM % what)
    found, summary, _, _ = ended(start(tmp_path, *options))
    assert (found, summary["status"]) == (code, status)


@pytest.mark.parametrize(
    ("options", "status"),
    [
        # The locks are freed after main, when the end is told.
        (["--do", f"run.release = lambda: exec({SIGTERM!r})"], "finished"),
        (["--while-parsing", SIGTERM], "stopped"),
    ],
)
def test_sigterm_before_and_after_the_job_itself_ends_with_the_summary(
    tmp_path: Path, options: list[str], status: str
) -> None:
    code, summary, _, stderr = ended(start(tmp_path, "--warehouse", str(tmp_path / "w"), *options))
    assert (code, summary["status"]) == (0, status)
    assert "Traceback" not in stderr


def test_sigterm_between_safe_points_waits_for_the_next(tmp_path: Path) -> None:
    ready, done = tmp_path / "ready", tmp_path / "done"
    body = f"""
with run.safe_points():
    run.end_if_stopped()
    open({str(ready)!r}, 'w').close()
    time.sleep(2)
    open({str(done)!r}, 'w').close()
    run.end_if_stopped()
    raise AssertionError('went on')
"""
    process = start(tmp_path, "--warehouse", str(tmp_path / "w"), "--do", body)
    _wait_for(ready)
    process.send_signal(signal.SIGTERM)
    code, summary, _, _ = ended(process)
    assert (code, summary["status"], done.exists()) == (0, "stopped", True)


def test_the_runtime_counts_from_the_start_and_ends_at_a_safe_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    run = job.Run("toy")
    run.end_if_stopped()  # without a limit there is none
    run.max_runtime = 60
    now[0] = 159
    run.end_if_stopped()
    assert run.seconds_left == 1
    now[0] = 160
    with pytest.raises(job.Stopped, match="--max-runtime"):
        run.end_if_stopped()


@pytest.mark.parametrize("given", ["0", "-1", "soon", "nan", "inf"])
def test_a_runtime_is_a_number_of_seconds(given: str) -> None:
    options = job.parser("toy", "")
    job.add_max_runtime(options, "stop then")
    with pytest.raises(job.InputError, match="seconds"):
        options.parse_args(["--max-runtime", given])
    assert options.parse_args(["--max-runtime", "90"]).max_runtime == 90


def test_a_lock_is_exclusive_and_dies_with_its_holder(tmp_path: Path) -> None:
    warehouse = str(tmp_path / "w")
    wait = f"open({str(tmp_path / 'ready')!r}, 'w').close(); time.sleep(60)"
    holder = start(tmp_path, "--warehouse", warehouse, "--lock", "--do", wait)
    _wait_for(tmp_path / "ready")
    code, summary, _, stderr = ended(start(tmp_path, "--warehouse", warehouse, "--lock"))
    assert (code, summary["status"]) == (5, "busy")
    assert "toy-" in stderr  # who holds it
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert ended(start(tmp_path, "--warehouse", warehouse, "--lock"))[0] == 0


def test_a_warehouse_that_cannot_be_written_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    options = ["--warehouse", str(tmp_path / "file"), "--lock"]
    code, summary, _, _ = ended(start(tmp_path, *options))
    assert (code, summary["status"]) == (2, "invalid")
    assert "not a folder to write to" in summary["error"]


def test_progress_tells_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    run = job.Run("toy")
    run.progress(0, 100, "files")
    for second in (1.0, 2.5, 3.0, 10.0):
        now[0] = second
        run.progress(int(second * 10), 100, "files")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "[toy] 25 of 100 files, 10.0 files/s, 8 s left",
        "[toy] 100 of 100 files, 10.0 files/s",
    ]


def test_on_a_terminal_progress_renews_its_line_and_other_words_take_its_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run = job.Run("toy")
    run.say("words")
    for second in range(2):
        now[0] += second
        run.progress(25 * second, 100, "files")
    run.say("more words")
    run.progress(26, 100, "files")  # too soon after the last one
    assert capsys.readouterr().err == (
        "[toy] words\n"
        "\r\x1b[K[toy] 0 of 100 files"
        "\r\x1b[K[toy] 25 of 100 files, 25.0 files/s, 3 s left"
        "\r\x1b[K[toy] more words\n"
    )
    now[0] += 3
    run.progress(100, 100, "files")
    run.say("the end")
    assert capsys.readouterr().err == (
        "\r\x1b[K[toy] 100 of 100 files, 25.0 files/s\n[toy] the end\n"
    )


def test_a_failure_takes_the_place_of_the_progress_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(options: argparse.Namespace, run: job.Run) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        run.progress(25, 100, "files")
        raise job.InputError("no such file")

    monkeypatch.setattr(sys, "argv", ["toy.py"])
    kept = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        job.start("toy", job.parser("toy", ""), main, records=False, prints_result=True)
    signal.signal(signal.SIGTERM, kept)
    assert capsys.readouterr().err == (
        "\r\x1b[K[toy] 25 of 100 files\r\x1b[Kinvalid: no such file\n"
    )
