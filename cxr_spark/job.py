"""What all jobs share: options, run record, summary line, exit code, signals, lock.

A job prints words and progress to stderr and one JSON object as the last line of stdout, on
failure too. Its exit code says how it ended: see `EXIT_CODES`.
"""

import argparse
import contextlib
import fcntl
import json
import math
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn

import cxr_spark
from cxr_spark import storage
from cxr_spark.tables import Warehouse

EXIT_CODES = {
    "finished": 0,
    "stopped": 0,  # by SIGTERM or --max-runtime, at a safe point
    "failed": 1,
    "invalid": 2,  # bad arguments or input; nothing changed
    "refused": 3,  # by the audit; nothing published
    "drift": 4,  # everything committed
    "busy": 5,  # another run holds the lock
}
UNRECORDED = {"invalid", "busy"}
PROGRESS_SECONDS = 2.0
EPILOG = """Exit codes: 0 finished, or stopped by SIGTERM or --max-runtime, 1 failed, 2 bad input,
3 the audit refused, 4 drift, 5 busy. The last line of stdout is the summary as one JSON
object."""


class InputError(ValueError):
    """An argument that can't be used; nothing has been changed."""


class Busy(RuntimeError):
    """Another run holds the lock."""


class Stopped(BaseException):
    """SIGTERM came, or the time is up; not an Exception, so that no handler swallows it."""


class Run:
    """One run of a job: what it is, what it counted, which versions it read and wrote."""

    def __init__(self, job: str) -> None:
        self.job = job
        self.started_at = datetime.now(UTC)
        self.run_id = f"{job}-{self.started_at:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
        self.counts: dict[str, int | float] = {}
        self.versions_read: dict[str, int] = {}
        self.versions_written: dict[str, int] = {}
        self.outputs: dict[str, Any] = {}
        # Options as they were understood, recorded with the arguments.
        self.resolved: dict[str, str] = {}
        self.extra: dict[str, Any] = {}
        self.status = "finished"
        self.max_runtime: float | None = None
        self._began = time.monotonic()
        self._waits_for_safe_point = False
        self._sigterm_came = False
        self._locks = contextlib.ExitStack()
        self._progress_at = 0.0
        self._progress_from: tuple[float, int] | None = None

    def say(self, text: str) -> None:
        """A line of words on stderr."""
        print(f"[{self.job}] {text}", file=sys.stderr, flush=True)

    @property
    def seconds_left(self) -> float:
        """Until `--max-runtime` is over, counted from the run's start; infinite without one."""
        if self.max_runtime is None:
            return math.inf
        return self.max_runtime - (time.monotonic() - self._began)

    @property
    def stop_reason(self) -> str | None:
        """Why the run should end at its next safe point; None: it should go on."""
        if self._sigterm_came:
            return "stopped by SIGTERM"
        return "stopped, as --max-runtime is over" if self.seconds_left <= 0 else None

    @contextlib.contextmanager
    def safe_points(self) -> Iterator[None]:
        """Within it SIGTERM interrupts nothing: `end_if_stopped` is called where it may end."""
        self._waits_for_safe_point = True
        try:
            yield
        finally:
            self._waits_for_safe_point = False

    def end_if_stopped(self) -> None:
        """A safe point: nothing is half done here.

        Raises:
            Stopped: SIGTERM has come, or `--max-runtime` is over.
        """
        if self.stop_reason is not None:
            raise Stopped(self.stop_reason)

    def sigterm(self) -> None:
        """SIGTERM has come: end at once, or at the next safe point.

        Raises:
            Stopped: outside of `safe_points`.
        """
        self._sigterm_came = True
        if not self._waits_for_safe_point:
            raise Stopped("stopped by SIGTERM")

    def progress(self, done: int, total: int, unit: str) -> None:
        """A line with rate and time left on stderr, at most one in two seconds."""
        now = time.monotonic()
        if self._progress_from is None or done < self._progress_from[1]:
            self._progress_from = (now, done)
        if done < total and now - self._progress_at < PROGRESS_SECONDS:
            return
        self._progress_at = now
        began, first = self._progress_from
        rate = (done - first) / (now - began) if now > began else 0.0
        left = f", {(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
        pace = f", {rate:.1f} {unit}/s" if rate > 0 else ""
        self.say(f"{done:,} of {total:,} {unit}{pace}{left}")
        if done >= total:
            self._progress_from = None

    def lock(self, folder: str | Path, name: str) -> None:
        """Hold `<folder>/.locks/<name>` until the run is recorded; the system frees a dead one's.

        Raises:
            Busy: another run holds it.
            InputError: the folder can't be made or written to.
        """
        place = Path(folder) / ".locks"
        try:
            place.mkdir(parents=True, exist_ok=True)
            file = self._locks.enter_context((place / name).open("a+"))
        except OSError as error:
            raise InputError(f"{folder}: not a folder to write to: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another run"
            raise Busy(f"{holder} is at work on {folder} ({name}); try again later") from None
        file.truncate(0)
        file.write(self.run_id)
        file.flush()

    def release(self) -> None:
        """Free the locks."""
        self._locks.close()


def parser(job: str, description: str, examples: str = "") -> argparse.ArgumentParser:
    """A parser whose errors end like every other failure: one clear line, the summary, exit 2."""
    return _Parser(
        prog=f"{job}.py",
        description=description,
        epilog=f"{examples}\n\n{EPILOG}".strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_max_runtime(options: argparse.ArgumentParser, words: str) -> None:
    """Add `--max-runtime` to a job that has safe points, or that fits itself into the time."""
    options.add_argument("--max-runtime", type=_seconds, metavar="SECONDS", help=words)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def start(
    job: str,
    options_parser: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace, Run], None],
    *,
    records: bool = True,
    prints_result: bool = False,
) -> NoReturn:
    """Run a job to its end and leave the process with its exit code.

    Args:
        job: its name, as in the summary and in runs.
        options_parser: made by `parser`.
        main: the job itself; what it raises decides the status.
        records: leave a row in the runs table of `--warehouse`.
        prints_result: main writes its result to stdout, and success adds no summary to it.
    """
    run = Run(job)
    signal.signal(signal.SIGTERM, partial(_stop, run))
    options, error = argparse.Namespace(), ""
    try:
        options = options_parser.parse_args()
        run.max_runtime = getattr(options, "max_runtime", None)
    except InputError as raised:
        run.status, error = _outcome(raised)
    with _summary_stream(prints_result) as summary_stream:
        try:
            if run.status == "finished":
                if records and storage.is_remote(str(options.warehouse)):
                    raise InputError(
                        f"{options.warehouse}: jobs that write need a folder, as an object store "
                        "has no locks; mount the store, or give a folder and copy it there"
                    )
                main(options, run)
        except (Exception, Stopped, KeyboardInterrupt) as raised:
            run.status, error = _outcome(raised)
        finished_at = datetime.now(UTC)
        if records and run.status not in UNRECORDED:
            run.status, error = record(run, options, error, finished_at)
        run.release()
        if not (prints_result and run.status == "finished"):
            summary = _summary(run, error, finished_at)
            print(json.dumps(summary, default=str), file=summary_stream, flush=True)
    sys.exit(EXIT_CODES[run.status])


def _stop(run: Run, signum: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    run.sigterm()


@contextlib.contextmanager
def _summary_stream(prints_result: bool) -> Iterator[IO[str]]:
    """The real stdout; what libraries and the JVM print there meanwhile goes to stderr."""
    if prints_result:
        yield sys.stdout
        return
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as real:
        os.dup2(2, 1)
        yield real


def _outcome(raised: BaseException) -> tuple[str, str]:
    """Status and message of what main raised; a bug's traceback goes to stderr."""
    ours = type(raised).__module__.split(".")[0] in ("cxr_spark", "__main__")
    if isinstance(raised, Stopped):
        status = "stopped"
    elif isinstance(raised, Busy):
        status = "busy"
    elif ours and hasattr(raised, "status"):
        status = raised.status
    elif ours and isinstance(raised, ValueError):
        status = "invalid"
    else:
        status = "failed"
    message = str(raised) or type(raised).__name__
    if not ours and not isinstance(raised, KeyboardInterrupt):
        traceback.print_exception(raised, file=sys.stderr)
        message = f"{type(raised).__name__}: {message}"
    print(f"{status}: {message}", file=sys.stderr, flush=True)
    return status, message


def record(
    run: Run, options: argparse.Namespace, error: str, finished_at: datetime
) -> tuple[str, str]:
    """Commit the runs row, the last commit of a run; status and message afterwards."""
    row = {
        "run_id": run.run_id,
        "job": run.job,
        "arguments": {k: str(v) for k, v in vars(options).items() if v is not None} | run.resolved,
        "status": run.status,
        "exit_code": EXIT_CODES[run.status],
        "started_at": run.started_at,
        "finished_at": finished_at,
        "counts": {name: float(value) for name, value in run.counts.items()},
        "versions_read": run.versions_read,
        "versions_written": run.versions_written if run.status in ("finished", "drift") else {},
        "error": error or None,
        "package_version": cxr_spark.__version__,
    }
    try:
        Warehouse(options.warehouse).append_rows("runs", [row], sequence=0)
    except (Exception, Stopped) as raised:
        return _outcome(raised) if run.status == "finished" else (run.status, error)
    return run.status, error


def _summary(run: Run, error: str, finished_at: datetime) -> dict[str, Any]:
    summary = {
        "job": run.job,
        "run_id": run.run_id,
        "status": run.status,
        "exit_code": EXIT_CODES[run.status],
        "seconds": round((finished_at - run.started_at).total_seconds(), 3),
        "counts": run.counts,
        "versions": run.versions_read | run.versions_written,
        "outputs": run.outputs,
        **run.extra,
    }
    return summary | {"error": error} if error else summary
