"""Decoding under an alarm and a memory limit: one image that breaks its decoder costs one row.

The first attempt of a task decodes in the worker itself, as that's fastest. What hangs or crashes
there kills the worker, and Spark tries the task again where its retries aren't off (`local[N]` has
none, `local[N,4]` three). That attempt decodes each image in a child process, so that only the
culprit is lost, and becomes a row.
"""

import gc
import os
import pickle
import resource
import signal
import threading
import zipimport
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from typing import NoReturn

from cxr_spark.images import Facts, read_file

TIMEOUT_S = 60.0
"""A second is long for an image; storage that takes its time is the slow part."""
MEMORY_BYTES = 4 << 30
"""What decoding may add to the address space of a worker. That has some GB mapped already, most of
it never touched, so the limit counts from there. The largest images allowed take 2 GiB."""

_ENDS: dict[int, tuple[str, str]] = {
    signal.SIGALRM: ("decoder_timeout", "the decoder didn't come to an end in time"),
    # By nobody but the kernel, when the machine has no memory left.
    signal.SIGKILL: ("decoder_memory", "killed while decoding, as for want of memory"),
}
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT)


@cache
def settle_worker() -> None:
    """Spares a Spark worker what it would do for each of its tasks: 0.14 s on Python 3.11.

    When a task starts, workers forget Python's import caches, and up to Python 3.12 every importer
    of an archive then reads the archive's directory at once: sixteen times that of pyspark.zip.
    When a task ends, they collect garbage among all that was ever imported. Neither archives nor
    modules of a running worker change.
    """
    zipimport.zipimporter.invalidate_caches = lambda self: None  # type: ignore
    gc.freeze()


def decode_files(
    paths: Iterable[str],
    decode: Callable[[str], Facts],
    *,
    isolated: bool,
    timeout_s: float = TIMEOUT_S,
    memory_bytes: int = MEMORY_BYTES,
) -> Iterator[Facts]:
    """Decodes files one by one, none for longer or with more memory than allowed.

    Must run in the main thread, as the alarm is a signal's.

    Args:
        paths: of the files.
        decode: reads and decodes one file.
        isolated: decode each file in a child process. Without it, an image that crashes or hangs
            the decoder kills this process.
        timeout_s: seconds for one file.
        memory_bytes: what decoding may add to what is mapped at the start.

    Yields:
        The facts of each file, in order. Of what broke the decoder: `decoder_crashed`,
        `decoder_timeout` or `decoder_memory`, with the hash of the content if it can be read.
    """
    assert threading.current_thread() is threading.main_thread()
    for path in paths:
        if isolated:
            yield _in_child(path, decode, timeout_s, memory_bytes)
        else:
            with _limits(timeout_s, memory_bytes):
                facts = _or_memory(path, decode)
            yield facts


@contextmanager
def _limits(timeout_s: float, memory_bytes: int) -> Iterator[None]:
    """Sets alarm and memory limit, and puts back what was, as Spark uses its workers again.

    The alarm's action is the system's own, which ends the process: a handler in Python would wait
    for the decoder's C code to return.
    """
    handler = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    limits = {kind: resource.getrlimit(kind) for kind in (resource.RLIMIT_AS, resource.RLIMIT_CORE)}
    _lower(resource.RLIMIT_AS, _mapped_bytes() + memory_bytes)
    _lower(resource.RLIMIT_CORE, 0)  # a core dump would hold patients' images
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for kind, limit in limits.items():
            resource.setrlimit(kind, limit)
        signal.signal(signal.SIGALRM, handler)


def _lower(kind: int, value: int) -> None:
    soft, hard = resource.getrlimit(kind)
    allowed = [limit for limit in (soft, hard, value) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(kind, (min(allowed), hard))


def _mapped_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _or_memory(path: str, decode: Callable[[str], Facts]) -> Facts:
    try:
        return decode(path)
    except MemoryError:
        return _lost(path, "decoder_memory", "not enough memory to decode the image")


def _in_child(
    path: str, decode: Callable[[str], Facts], timeout_s: float, memory_bytes: int
) -> Facts:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(writing, path, decode, timeout_s, memory_bytes)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        return pickle.loads(answer)
    end = f"the decoder ended with {signal.Signals(-code).name if code < 0 else f'code {code}'}"
    return _lost(path, *_ENDS.get(-code, ("decoder_crashed", end)))


def _answer(
    writing: int, path: str, decode: Callable[[str], Facts], timeout_s: float, memory_bytes: int
) -> NoReturn:
    """Decodes in the child, and leaves it without any of what a Python process does at its end."""
    for number in _CRASHES:  # a library's handler may wait for a thread that isn't in the child
        signal.signal(number, signal.SIG_DFL)
    code = 1
    try:
        with _limits(timeout_s, memory_bytes), open(writing, "wb") as pipe:
            pickle.dump(_or_memory(path, decode), pipe)
        code = 0
    finally:
        os._exit(code)


def _lost(path: str, reason: str, detail: str) -> Facts:
    data, _, _ = read_file(path)
    return Facts(sha256(data).hexdigest() if data else None, reason=reason, detail=detail)
