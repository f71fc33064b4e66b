"""What crashes, hangs or exhausts a decoder becomes a row; all other files come through."""

import ctypes
import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from PIL import Image
from pyspark import TaskContext

from cxr_spark.images import Facts
from cxr_spark.isolation import decode_files


def decode(path: str) -> Facts:
    """Does what a file's name says, and takes its place as if its content were decoded."""
    name = os.path.basename(path)
    if name == "crashes":
        ctypes.string_at(0)
    elif name == "hangs":
        ctypes.CDLL(None).sleep(1000)
    elif name == "aborts":
        os.abort()
    elif name == "explodes":
        return Facts(detail=str(len([np.empty(2**25) for _ in range(2**20)])))
    elif name == "raises":
        raise ZeroDivisionError("a patient's name")
    elif name == "limits":
        return Facts(detail=" ".join(str(resource.getrlimit(kind)[0]) for kind in KINDS))
    elif name == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return Facts(format="PNG", pixels=name.encode() * 100_000)


def decoded(paths, *, isolated=True, timeout_s=10.0, memory_bytes=2**30) -> list[Facts]:
    return list(
        decode_files(
            paths, decode, isolated=isolated, timeout_s=timeout_s, memory_bytes=memory_bytes
        )
    )


KINDS = (resource.RLIMIT_AS, resource.RLIMIT_CORE)


def state() -> tuple:
    alarm = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    return alarm, [resource.getrlimit(kind) for kind in KINDS]


def mapped_bytes() -> int:
    """What this process has mapped, touched or not, as its limit of address space counts it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("VmSize:")[1].split()[0])


@pytest.fixture(autouse=True)
def somebodys_handler_and_core_dumps() -> Iterator[None]:
    """What a process may have set up before: a handler of the alarm, and core dumps allowed."""
    handler = signal.signal(signal.SIGALRM, lambda number, frame: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    before = state()
    yield
    assert state() == before
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    signal.signal(signal.SIGALRM, handler)


@pytest.mark.parametrize("isolated", [True, False])
def test_between_files_neither_alarm_nor_limits_are_left(isolated):
    before = state()
    files = decode_files(["a.png", "b.png"], decode, isolated=isolated, timeout_s=0.2)
    for _ in files:
        time.sleep(0.3)  # longer than the alarm: whoever takes the facts may take their time
        assert state() == before


@pytest.mark.parametrize("isolated", [True, False])
def test_the_memory_limit_counts_from_what_is_mapped_and_no_core_is_dumped(isolated):
    mapped = np.empty(2**28)  # 2 GiB, none of it touched
    before = mapped_bytes()
    facts = decoded(["limits"], isolated=isolated, memory_bytes=2**30)[0]
    allowed, core = map(int, (facts.detail or "").split())
    assert before > mapped.nbytes
    assert abs(allowed - before - 2**30) < 2**28  # other threads map and unmap meanwhile
    assert core == 0


@pytest.mark.parametrize(
    ("name", "reason", "detail"),
    [
        ("crashes", "decoder_crashed", "SIGSEGV"),
        ("aborts", "decoder_crashed", "SIGABRT"),
        ("raises", "decoder_crashed", "code 1"),
        ("hangs", "decoder_timeout", "in time"),
        ("explodes", "decoder_memory", "not enough memory"),
        ("is killed", "decoder_memory", "killed"),
    ],
)
def test_in_children_the_culprit_is_named_with_its_content_and_its_neighbours_are_kept(
    tmp_path, name, reason, detail, capfd
):
    (tmp_path / name).write_bytes(b"the bytes")
    timeout_s = 1.0 if name == "hangs" else 10.0
    facts = decoded(["a.png", str(tmp_path / name), "b.png"], timeout_s=timeout_s)
    assert [one.reason for one in facts] == [None, reason, None]
    assert [one.pixels for one in facts] == [b"a.png" * 100_000, None, b"b.png" * 100_000]
    assert facts[1].content_sha256 == hashlib.sha256(b"the bytes").hexdigest()
    assert detail in (facts[1].detail or "")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_ends_a_child_at_once_whatever_handler_a_library_has_set(number):
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    before = libc.signal(number, ctypes.cast(libc.pause, ctypes.c_void_p))
    try:
        facts = decoded(["crashes" if number == signal.SIGSEGV else "aborts"], timeout_s=10.0)
    finally:
        libc.signal(number, before)
    assert facts[0].reason == "decoder_crashed"


def test_a_culprit_that_cannot_be_read_has_no_content():
    assert decoded(["/nowhere/crashes"])[0].content_sha256 is None


def test_in_the_process_itself_too_much_memory_is_a_reason(tmp_path):
    facts = decoded(["a.png", "explodes", "b.png"], isolated=False)
    assert [one.reason for one in facts] == [None, "decoder_memory", None]


@pytest.mark.parametrize(
    ("name", "killed_by"), [("hangs", signal.SIGALRM), ("crashes", signal.SIGSEGV)]
)
def test_in_the_process_itself_a_hang_or_crash_ends_the_process(name, killed_by):
    code = (
        "import sys; from tests.test_isolation import decoded\n"
        "decoded(['a.png', sys.argv[1]], isolated=False, timeout_s=1.0)"
    )
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, timeout=60)
    assert done.returncode == -killed_by


def test_children_leave_no_zombies_and_no_open_pipes():
    opened, dead = len(os.listdir("/proc/self/fd")), zombies()
    decoded(["a.png", "crashes", "b.png"] * 5)
    assert len(os.listdir("/proc/self/fd")) == opened
    assert zombies() <= dead  # other tests may have left some


def zombies() -> set[str]:
    """Process ids of our children that have ended and that nobody has waited for."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            pid, _, rest = status.read_text().partition(" (")
            state, parent = rest.rpartition(") ")[2].split()[:2]
            if state == "Z" and int(parent) == os.getpid():
                found.add(pid)
    return found


def in_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    context = TaskContext.get()
    again = context is not None and context.attemptNumber() > 0
    for batch in batches:
        paths = batch.column("path").to_pylist()
        reasons = [facts.reason for facts in decoded(paths, isolated=again, timeout_s=1.5)]
        yield pa.RecordBatch.from_pydict({"path": paths, "reason": pa.array(reasons, pa.string())})


def test_on_spark_a_crash_and_a_hang_among_200_files_are_two_rows(spark):
    names = [f"{number}.png" for number in range(200)]
    names[33], names[150] = "crashes", "hangs"
    paths = spark.createDataFrame([(f"/nowhere/{name}",) for name in names], "path string")
    rows = paths.repartition(4).mapInArrow(in_batches, "path string, reason string")
    reasons = {os.path.basename(row.path): row.reason for row in rows.collect()}
    assert reasons.keys() == set(names)
    assert {name: reason for name, reason in reasons.items() if reason} == {
        "crashes": "decoder_crashed",
        "hangs": "decoder_timeout",
    }


BREAKS_THE_DECODER = """
import ctypes, sys
if "pyspark.daemon" in sys.orig_argv:
    from cxr_spark import images
    decode = images.decode
    def breaks(data, *arguments):
        if data == b"explodes":
            return bytearray(2**40)
        return ctypes.string_at(0) if data == b"crashes" else decode(data, *arguments)
    images.decode = breaks
"""


@pytest.mark.long
def test_curation_names_what_crashes_its_decoder_and_keeps_the_rest(tmp_path, run_job):
    """The decoder is broken from outside, in Spark's Python workers alone."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BREAKS_THE_DECODER)
    chest = tmp_path / "pneumonia" / "chest_xray" / "train" / "PNEUMONIA"
    chest.mkdir(parents=True)
    for number in range(12):
        noise = np.random.default_rng(number).integers(0, 256, (64, 64), np.uint8)
        Image.fromarray(noise).save(chest / f"person{number}_virus_{number}.jpeg", "PNG")
    (chest / "person90_virus_90.jpeg").write_bytes(b"crashes")
    (chest / "person91_virus_91.jpeg").write_bytes(b"explodes")
    warehouse, options = (
        tmp_path / "warehouse",
        ("--pneumonia", chest.parents[2], "--image-size", 32),
    )
    environment = {"PYTHONPATH": str(tmp_path / "site")}
    done = run_job("curate", "--warehouse", warehouse, *options, env=environment)
    assert done.exit_code == 0, done.stderr[-4000:]
    rejects = pq.read_table(DeltaTable(warehouse / "rejects").file_uris()).to_pylist()
    found = {os.path.basename(row["path"]): row["reason"] for row in rejects}
    assert found == {
        "person90_virus_90.jpeg": "decoder_crashed",
        "person91_virus_91.jpeg": "decoder_memory",
    }
    assert done.summary["counts"]["images"] == 12
