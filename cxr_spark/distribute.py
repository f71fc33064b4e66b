"""Ranks by TorchDistributor: started, asked to stop when the driver is, and what they died of."""

import contextlib
import io
import logging
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

import cxr_spark
from cxr_spark.training_run import TrainingRun

LOOK_SECONDS = 0.2
LINES_KEPT = 500
# How torchrun tells of a rank that ended by SIGKILL.
KILLED = re.compile(r"rank\s*: (\d+) \(local_rank: \d+\)\s+exitcode\s*: -9 ")


class _Told(io.StringIO):
    """A stream that passes on what ranks and torchrun print, and keeps the end of it."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__()
        self.stream = stream
        self.last: deque[str] = deque(maxlen=LINES_KEPT)

    def write(self, text: str) -> int:
        self.last.append(text)
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()

    @property
    def end(self) -> str:
        """What was written at last."""
        return "".join(self.last)


class TrainingFailed(RuntimeError):
    """A rank raised or was killed; the message holds its traceback."""


def run_ranks(
    spark: SparkSession,
    run: TrainingRun,
    workers: int,
    deadline: float | None,
    should_stop: Callable[[], bool],
    *,
    quiet: bool = False,
) -> None:
    """Start the ranks of a run and wait until they have finished, or stopped at a checkpoint.

    Args:
        spark: in local mode ranks are processes of this machine, else barrier tasks of executors.
        run: whose folder ranks and driver share.
        workers: how many ranks.
        deadline: see fit.run_rank.
        should_stop: asked a few times a second; then the ranks are asked to stop.
        quiet: the ranks tell no progress.

    Raises:
        TrainingFailed: with the traceback of the rank that failed.
    """
    is_local = re.fullmatch(r"local(\[.*\])?", spark.conf.get("spark.master") or "") is not None
    gpus = int(spark.conf.get("spark.task.resource.gpu.amount", "0") or 0)
    cores = None if is_local else spark.conf.get("spark.executor.cores", None)
    settings = (str(run.folder), deadline, int(cores) if cores else None, quiet)
    distributor = TorchDistributor(workers, is_local, use_gpu=not is_local and gpus > 0)
    distributor.logger.setLevel(logging.WARNING)

    def distribute() -> None:
        # Processes started here inherit that: a SIGTERM to the whole process group then leaves it
        # to the driver to stop the ranks, where torchrun would kill them.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        distributor.run(_rank_function(), *settings)

    run.clear_signs()
    # What ranks print comes through the driver's stdout, which is for results.
    told = _Told(sys.stderr)
    with _environment(_rank_environment(is_local)), contextlib.redirect_stdout(told):
        try:
            _watch(distribute, run, should_stop)
        except (RuntimeError, Py4JError, PySparkException) as error:
            raise TrainingFailed(f"training failed in {_failure(run, told.end)}") from error


def _failure(run: TrainingRun, told: str) -> str:
    """Which rank failed, and why; of one that was killed, its partners can only say that it's gone.

    Args:
        run: in whose folder ranks leave their tracebacks.
        told: what ranks and torchrun printed at last; torchrun's exit code is lost on the way.
    """
    if killed := KILLED.search(told):
        return f"rank-{killed[1]}: the system killed it (SIGKILL), perhaps for want of memory"
    return run.failure or (
        "a rank that left no traceback: it was killed, perhaps for want of memory; what torchrun "
        "said of it is above"
    )


def _watch(
    distribute: Callable[[], None], run: TrainingRun, should_stop: Callable[[], bool]
) -> None:
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="distributor") as thread:
        ended = thread.submit(distribute)
        try:
            while not ended.done():
                wait([ended], timeout=LOOK_SECONDS)
                if should_stop():
                    run.request_stop()
        except BaseException:
            run.request_stop()
            raise
    ended.result()


def _rank_function() -> Callable[[str, float | None, int | None, bool], None]:
    """What a rank runs; defined in a function, it is sent by value and imports our package there.

    So the driver needs no torch, and the package may be a zip that was shipped by --py-files: it
    then lies in the executor's working directory, and torchrun's processes don't look there.
    """

    def run_rank(folder: str, deadline: float | None, cores: int | None, quiet: bool) -> None:
        import sys
        from pathlib import Path

        sys.path += [str(path.absolute()) for path in Path().glob("*.zip")]
        from cxr_spark import fit

        fit.run_rank(folder, deadline, cores=cores, quiet=quiet)

    return run_rank


def _rank_environment(is_local: bool) -> dict[str, str]:
    """What ranks inherit in local mode: our package, lines as they come, the loopback only."""
    package = str(Path(cxr_spark.__file__).parent.parent)
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    return environment | ({"GLOO_SOCKET_IFNAME": "lo"} if is_local else {})


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
