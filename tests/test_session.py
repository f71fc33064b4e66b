"""The Spark session: how far Spark is, in words; and that its JVM says nothing of itself."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from py4j.protocol import Py4JNetworkError
from pyspark.sql import SparkSession

from cxr_spark import session

SCRIPT = """
import sys
from pathlib import Path
from cxr_spark import session

session.LOG_SETTINGS, session.CLASS_ARCHIVE = map(Path, sys.argv[1:])
with session.spark_session("silent") as spark:
    print(spark.range(3).count())
"""


class Watched:
    """A session with one stage, and the seconds that pass between two looks at it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tasks_by_second: list[int]) -> None:
        self.second, self.tasks = -1, tasks_by_second
        self.sparkContext = SimpleNamespace(statusTracker=lambda: self)
        monkeypatch.setattr(time, "monotonic", lambda: 100.0 + self.second)

    def wait(self, seconds: float) -> bool:
        """In place of the event that ends the watch."""
        self.second += 1
        return self.second == len(self.tasks)

    def getActiveStageIds(self) -> list[int]:
        return [7]

    def getStageInfo(self, stage: int) -> Any:
        if self.tasks[self.second] < 0:
            raise Py4JNetworkError("the JVM has ended")
        return SimpleNamespace(numTasks=40, numCompletedTasks=self.tasks[self.second])


def words_of(watched: Watched) -> list[str]:
    said: list[str] = []
    session._watch(watched, said.append, watched)  # type: ignore[arg-type]
    return said


def test_a_long_stage_tells_rate_and_time_left_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = [*range(10, 32), *[31] * 20]
    assert words_of(Watched(monkeypatch, done)) == [
        "Spark: 20 of 40 tasks, 1.0 tasks/s, 20 s left",
        "Spark: 30 of 40 tasks, 1.0 tasks/s, 10 s left",
        "Spark: 31 of 40 tasks, 0.7 tasks/s, 13 s left",
    ]


def test_the_watch_ends_in_silence_with_the_jvm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert words_of(Watched(monkeypatch, [1, 2, -1, 3])) == []


def test_all_that_the_jvm_says_comes_through_but_for_one_warning(
    capfd: pytest.CaptureFixture[str],
) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"one\nWARNING: Using incubator modules: jdk.incubator.vector\ntwo\nthr")
    os.write(write_end, b"ee, unfinished")
    os.close(write_end)
    session._pass_on(read_end)
    assert capfd.readouterr().err == "one\ntwo\nthree, unfinished"


def test_a_session_starts_in_silence_from_a_folder_with_a_space_in_its_name_and_with_a_bad_archive(
    tmp_path: Path,
) -> None:
    settings = tmp_path / "a folder" / session.LOG_SETTINGS.name
    settings.parent.mkdir()
    shutil.copy(session.LOG_SETTINGS, settings)
    archive = tmp_path / "another.jsa"
    archive.write_bytes(b"of another JVM")
    command = [sys.executable, "-c", SCRIPT, str(settings), str(archive)]
    environment = {k: v for k, v in os.environ.items() if k != "SPARK_SUBMIT_OPTS"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, check=True
    )
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_the_jvm_takes_its_classes_from_the_archive(spark: SparkSession) -> None:
    if not session.CLASS_ARCHIVE.is_file():
        pytest.skip(f"{session.CLASS_ARCHIVE} is not there: make install writes it")
    process = spark._jvm.java.lang.ProcessHandle.current().pid()  # type: ignore[union-attr]
    assert str(session.CLASS_ARCHIVE) in Path(f"/proc/{process}/maps").read_text()


def test_no_archive_is_named_that_is_missing_or_that_a_space_would_cut_in_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, named in (("spark.jsa", True), ("my spark.jsa", False)):
        archive = tmp_path / name
        monkeypatch.setattr(session, "CLASS_ARCHIVE", archive)
        assert not any(str(archive) in option for option in session.java_options())
        archive.touch()
        assert any(str(archive) in option for option in session.java_options()) == named
