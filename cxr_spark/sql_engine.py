"""The Spark process behind the SQL server: statements within limits, and its end if one won't end.

Spark can only ask a task to stop. One that is deep in a join or an expression never looks, and
holds its core; so can the planning of a query. A watchdog therefore ends the whole JVM when a
statement outlives its cancelling, and starts another: the cores are free, and clients stay
connected to this process.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from itertools import chain, islice
from typing import Any, NamedTuple

from py4j.protocol import Py4JError
from pyspark import SparkContext
from pyspark.sql import types as T

from cxr_spark import sql, sql_rows
from cxr_spark.sql_errors import QueryFailed
from cxr_spark.sql_rows import Row

WATCH_SECONDS = 0.25
SETTLED_SECONDS = 1.0  # the JVM tells of its tasks a little late
STATEMENTS = 256  # that may be open, each with a thread
# More than this in one answer, and a client may refuse it.
ANSWER_BYTES = 8 << 20
TIME_LIMIT = "the query ran longer than its limit of {:g} s"
ROW_LIMIT = "the result has more rows than the limit of {:,}: aggregate, or add a LIMIT"
ENDED = "Spark had to be ended while the query ran; run it again"


class TooMuch(ValueError):
    """A query that asks for more time or rows than the server gives."""


class Limits(NamedTuple):
    """What one query may take; how long it may go on after being cancelled."""

    seconds: float
    rows: int
    grace_seconds: float = 5.0


class Statement:
    """One query, in a thread of its own so that whoever waits for it can stop waiting.

    Spark works for it only while somebody waits for its first or its next rows, and that time
    counts against its limit.
    """

    def __init__(self, views: sql.Views, text: str, limits: Limits) -> None:
        """Starts at once; `opened` is done when the first row is there."""
        self.group = f"statement-{uuid.uuid4().hex}"
        self.limits = limits
        self.views = views
        self.columns = T.StructType()
        self.cancelled_at: float | None = None
        self.error: ValueError | RuntimeError | None = None  # why it was cancelled
        self._cancelling = threading.Lock()
        self._text = text
        self._rows: Iterator[Row] = iter(())
        self._given = 0
        self._seconds = 0.0
        self._busy_since: float | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=self.group)
        self.opened = self._submit(self._open)

    def fetch(self, count: int) -> "Future[list[Row]]":
        """The next rows, at most so many; none at the end."""
        return self._submit(lambda: self._take(count))

    def cancel(self, error: ValueError | RuntimeError) -> None:
        """Ask Spark to stop; what waits for it gets the error."""
        with self._cancelling:
            if self.cancelled_at is None:
                self.error = error
                self.cancelled_at = time.monotonic()
                # There, as dropping rows half read takes the time of reading the others.
                self._thread.submit(self._drop)
                self._thread.shutdown(wait=False)

    @property
    def busy(self) -> bool:
        """Whether Spark is at work for it, as far as this process can see."""
        return self._busy_since is not None

    def seconds(self) -> float:
        """For how long Spark has been at work for it."""
        since = self._busy_since
        return self._seconds + (time.monotonic() - since if since is not None else 0.0)

    def _submit(self, work: Callable[[], Any]) -> "Future[Any]":
        try:
            return self._thread.submit(self._timed, work)
        except RuntimeError as closed:
            raise (self.error or closed) from closed

    def _timed(self, work: Callable[[], Any]) -> Any:
        if self.error is not None:
            raise self.error
        self._busy_since = time.monotonic()
        try:
            return work()
        except Exception as raised:
            # A cancelled query fails in many ways, all for the same reason.
            is_lost = isinstance(raised, Py4JError | ConnectionError | EOFError)
            raise (self.error or (QueryFailed(ENDED) if is_lost else raised)) from raised
        finally:
            self._seconds, self._busy_since = self.seconds(), None

    def _open(self) -> None:
        """Plan it and compute the first row, so that most of the work is done before fetching."""
        context = self.views.session.sparkContext
        context.setJobGroup(self.group, self.group, interruptOnCancel=True)
        result = self.views.query(self._text)
        self.columns = result.schema
        rows = sql_rows.stream(result)
        self._rows = chain(list(islice(rows, 1)), rows)

    def _drop(self) -> None:
        self._rows = iter(())

    def _take(self, count: int) -> list[Row]:
        taken: list[Row] = []
        size = 0
        while len(taken) < count and size < ANSWER_BYTES:
            row = next(self._rows, None)
            if row is None:
                break
            if self._given == self.limits.rows:
                raise TooMuch(ROW_LIMIT.format(self.limits.rows))
            self._given += 1
            taken.append(row)
            size += sql_rows.size(row)
        return taken


class Engine:
    """Spark for the statements of all clients, started again when it had to be ended."""

    def __init__(
        self,
        open_views: Callable[[], AbstractContextManager[sql.Views]],
        limits: Limits,
        say: Callable[[str], None],
    ) -> None:
        """
        Args:
            open_views: starts Spark where there is none, and stops it at the end.
            limits: of each query.
            say: takes a line when Spark is started again.
        """
        self.limits = limits
        self._open_views = open_views
        self._say = say
        self._lock = threading.RLock()
        self._views: sql.Views | None = None
        self._open = ExitStack()
        self._statements: set[Statement] = set()
        self._stopped = threading.Event()
        self._asking = ThreadPoolExecutor(1, thread_name_prefix="watchdog")

    def __enter__(self) -> "Engine":
        self.views()
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        with self._lock:
            if self._views is not None:
                self._end()

    def views(self) -> sql.Views:
        """The views; Spark is started if it isn't there, or if its process has died."""
        with self._lock:
            if self._stopped.is_set():
                raise QueryFailed("the server is stopping")
            if self._views is not None and sql.jvm_process().poll() is not None:
                self._say("Spark has died: it is started again")
                self._end()
            if self._views is None:
                self._views = self._open.enter_context(self._open_views())
            return self._views

    def start(self, text: str, seconds: float | None = None) -> Statement:
        """Run a query; the caller cancels it when nothing more is wanted of it.

        Args:
            text: one statement.
            seconds: less time than the server's own limit, if the client wants it so.
        """
        if len(self._statements) >= STATEMENTS:
            raise TooMuch(f"the server has {STATEMENTS} open queries already; try again later")
        limits = self.limits
        if seconds:
            limits = limits._replace(seconds=min(seconds, limits.seconds))
        statement = Statement(self.views(), text, limits)
        self._statements.add(statement)
        return statement

    def _watch(self) -> None:
        while not self._stopped.wait(WATCH_SECONDS):
            try:
                self.views()
                for statement in list(self._statements):
                    self._hold_to_its_limits(statement)
            except Exception as error:  # the next turn tries again
                self._say(f"the watchdog: {error}")

    def _hold_to_its_limits(self, statement: Statement) -> None:
        limit = statement.limits.seconds
        if statement.seconds() > limit:
            statement.cancel(TooMuch(TIME_LIMIT.format(limit)))
        if statement.cancelled_at is not None:
            self._see_to_its_end(statement, statement.cancelled_at)

    def _see_to_its_end(self, statement: Statement, cancelled_at: float) -> None:
        """Forget a cancelled statement once nothing runs for it; end Spark if that takes long."""
        grace = statement.limits.grace_seconds
        try:
            works = self._asking.submit(_stop_jobs, statement).result(timeout=grace)
        except Exception:  # a JVM that doesn't answer, for whatever reason, is not at its end
            works = True
        age = time.monotonic() - cancelled_at
        if statement.views is not self._views or (age > SETTLED_SECONDS and not works):
            self._statements.discard(statement)
        elif age > grace:
            self._say("a query went on after it was cancelled: Spark is started again")
            with self._lock:
                self._end()
                self.views()

    def _end(self) -> None:
        """End the JVM, by force if it must be, and forget all that was in it."""
        sql.end_jvm()
        for statement in self._statements:
            statement.cancel(QueryFailed(ENDED))
        self._statements.clear()
        self._open.close()
        # pyspark keeps these for the life of this process.
        SparkContext._gateway = SparkContext._jvm = SparkContext._active_spark_context = None
        self._views = None


def _stop_jobs(statement: Statement) -> bool:
    """Cancel what runs for a statement, again as it may have been between two jobs; does it run?"""
    context = statement.views.session.sparkContext
    context.cancelJobGroup(statement.group)
    tracker = context.statusTracker()
    for job in tracker.getJobIdsForGroup(statement.group):
        info = tracker.getJobInfo(job)
        for stage in info.stageIds if info is not None else ():
            tasks = tracker.getStageInfo(stage)
            if tasks is not None and tasks.numActiveTasks:
                return True
    return statement.busy
