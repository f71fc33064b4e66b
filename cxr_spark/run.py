"""One run of a job, as its stage sees it: counts, versions, words, locks, when to stop."""

import contextlib
import fcntl
import math
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

# The environment variable that says how much of its own log Spark shows on stderr.
LOG_LEVEL = "CXR_SPARK_LOG_LEVEL"
# For an instant `maintain` holds each lock, to see whether somebody else does.
LOOK_SECONDS = 0.1
PROGRESS_SECONDS = 2.0  # between two lines
PROGRESS_SECONDS_ON_A_TERMINAL = 0.2  # where a line takes the place of the one before
CLEAR_LINE = "\r\x1b[K"


class InputError(ValueError):
    """An argument that can't be used; nothing has been changed."""


class Busy(RuntimeError):
    """Another run holds the lock."""


class Stopped(BaseException):
    """SIGTERM came, or the time is up; not an Exception, so that no handler swallows it."""


class Pace:
    """How fast something gets done, counted from when it was first looked at."""

    def __init__(self, done: int) -> None:
        self._began, self.first = time.monotonic(), done

    def words(self, done: int, total: int, unit: str) -> str:
        """As `25 of 100 files, 10.0 files/s, 8 s left`; without a rate until one is known."""
        seconds = time.monotonic() - self._began
        rate = (done - self.first) / seconds if seconds > 0 else 0.0
        words = f"{done:,} of {total:,} {unit}"
        if rate > 0:
            words += f", {rate:.1f} {unit}/s" if rate >= 1 else f", {rate:.2g} {unit}/s"
        if rate > 0 and done < total:
            words += f", {(total - done) / rate:.0f} s left"
        return words


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
        # Commands that a person may want to run now.
        self.next_steps: list[str] = []
        # Options as they were understood, recorded with the arguments.
        self.resolved: dict[str, str] = {}
        self.extra: dict[str, Any] = {}
        self.status = "finished"
        self.quiet = False
        self.max_runtime: float | None = None
        self._began = time.monotonic()
        self._waits_for_safe_point = False
        self._sigterm_came = False
        self._locks = contextlib.ExitStack()
        self._progress_at = 0.0
        self._pace: Pace | None = None

    def say(self, text: str) -> None:
        """A line of words on stderr; none from a quiet run."""
        if not self.quiet:
            self.clear_line()
            print(f"[{self.job}] {text}", file=sys.stderr, flush=True)

    def clear_line(self) -> None:
        """On a terminal: what comes next takes the place of a line of progress."""
        if self._pace and sys.stderr.isatty():
            print(CLEAR_LINE, end="", file=sys.stderr, flush=True)

    @property
    def seconds_left(self) -> float:
        """Until `--max-runtime` is over, counted from the run's start; infinite without one."""
        if self.max_runtime is None:
            return math.inf
        return self.max_runtime - (time.monotonic() - self._began)

    @property
    def has_sigterm(self) -> bool:
        """Whether SIGTERM has come."""
        return self._sigterm_came

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
        """How far a step is, with rate and time left: a line that renews itself on a terminal,
        elsewhere a new one every two seconds at the most."""
        now = time.monotonic()
        if self._pace is None or done < self._pace.first:
            self._pace = Pace(done)
        on_terminal = sys.stderr.isatty()
        pause = PROGRESS_SECONDS_ON_A_TERMINAL if on_terminal else PROGRESS_SECONDS
        if done < total and now - self._progress_at < pause:
            return
        self._progress_at = now
        line = self._pace.words(done, total, unit)
        if done < total and on_terminal and not self.quiet:
            print(f"{CLEAR_LINE}[{self.job}] {line}", end="", file=sys.stderr, flush=True)
        else:
            self.say(line)
        if done >= total:
            self._pace = None

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
        is_ours = _take(file)
        if not is_ours:
            time.sleep(LOOK_SECONDS)
            is_ours = _take(file)
        if not is_ours:
            file.seek(0)
            holder = file.read().strip() or "another run"
            raise Busy(f"{holder} is at work on {folder} ({name}); try again later")
        file.truncate(0)
        file.write(self.run_id)
        file.flush()

    def release(self) -> None:
        """Free the locks."""
        self._locks.close()


def _take(file: IO[str]) -> bool:
    """Whether the lock was free, and is ours now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
