"""Ranks agree, end with their parent, and know a request to stop from another's failure."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cxr_spark.ranks import Place, StopSign, _threads, agree, idle_gpus
from tests.conftest import REPOSITORY
from tests.toys import launch


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def test_a_file_asks_to_stop(tmp_path: Path) -> None:
    sign = StopSign(tmp_path / "stop", tmp_path)
    assert not sign.look()
    (tmp_path / "stop").touch()
    wait_until(sign.look, 5)


def told(program: str, folder: Path) -> tuple[int, str]:
    """Exit code and stdout of a program with a StopSign named sign."""
    lines = f"""
import os, signal, sys
from pathlib import Path
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})
from cxr_spark.ranks import StopSign
folder = Path(sys.argv[1])
{program}
"""
    ended = subprocess.run(
        [sys.executable, "-c", lines, folder], cwd=REPOSITORY, capture_output=True, text=True
    )
    return ended.returncode, ended.stdout


def test_sigterm_asks_to_stop_also_one_that_came_while_it_was_blocked(tmp_path: Path) -> None:
    program = """
os.kill(os.getpid(), signal.SIGTERM)
print(StopSign(folder / "stop", folder).look())
"""
    assert told(program, tmp_path) == (0, "True\n")


def test_sigterm_after_another_ranks_failure_ends_at_once(tmp_path: Path) -> None:
    program = """
StopSign(folder / "stop", folder)
os.kill(os.getpid(), signal.SIGTERM)
print("lives", flush=True)
(folder / "rank-1.txt").touch()
os.kill(os.getpid(), signal.SIGTERM)
print("lives on")
"""
    assert told(program, tmp_path) == (128 + signal.SIGTERM, "lives\n")


def test_a_rank_alone_agrees_with_itself() -> None:
    assert agree(True, 0.25, Place()) == (True, 0.25)


def test_ranks_take_any_ones_wish_to_stop_and_the_clock_of_rank_0(tmp_path: Path) -> None:
    program = """
import os, sys, torch
from cxr_spark import ranks
os.environ["LOCAL_WORLD_SIZE"] = "1"  # as on a cluster, where each rank has a torchrun of its own
with ranks.joined(sys.argv[1]) as place:
    assert torch.get_num_threads() == max(1, len(os.sched_getaffinity(0)) // 2)
    agreed = [ranks.agree(place.rank == 1, 0.5 + place.rank, place),
              ranks.agree(False, 0.75 + place.rank, place)]
    assert agreed == [(True, 0.5), (False, 0.75)], agreed
"""
    ranks = launch(program, tmp_path)
    assert ranks.wait(timeout=120) == 0, ranks.communicate()[1]


def test_a_rank_takes_no_more_cores_than_it_may() -> None:
    cores = len(os.sched_getaffinity(0))
    assert _threads(Place(), None) == _threads(Place(), 1000) == cores
    assert _threads(Place(), 1) == 1


def test_gpus_that_are_too_few_for_the_workers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for gpus in (0, 1, 2, 4):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        found[gpus] = idle_gpus(4)
    assert found[0] is None and found[4] is None
    assert found[1] is not None and "--workers 1 trains on it" in found[1]
    assert found[2] is not None and "--workers 2 trains on them" in found[2]


def test_ranks_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    program = """
import os, pathlib, sys, time
from cxr_spark import ranks
with ranks.joined(sys.argv[1]) as place:
    pathlib.Path(sys.argv[1], f"pid-{place.rank}").write_text(str(os.getpid()))
    time.sleep(300)
"""
    parent = launch(program, tmp_path)
    pids = [tmp_path / f"pid-{rank}" for rank in range(2)]
    wait_until(lambda: all(path.exists() and path.read_text() for path in pids), 60)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not any(is_alive(int(path.read_text())) for path in pids), 10)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
