"""SQL over the tables of a warehouse and the views derived from them; nothing else is there."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cached_property
from subprocess import TimeoutExpired
from threading import Lock
from typing import Any

from py4j.java_gateway import JavaObject
from py4j.protocol import Py4JError
from pyspark import SparkContext
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from cxr_spark import sql_gate, sql_views, tables
from cxr_spark.file_scan import scan
from cxr_spark.sql_errors import InvalidQuery, told_clearly
from cxr_spark.sql_parameters import Value, bind, require_all
from cxr_spark.sql_views import VIEWS
from cxr_spark.tables import PUBLISHED, TABLES, Warehouse

# Of a session of its own. What the parser would do by itself is turned off (${env:HOME} in a
# text, VALUES computed while parsing), and names mean what the gate takes them for.
SETTINGS = {
    "spark.sql.variable.substitute": "false",
    "spark.sql.parser.eagerEvalOfUnresolvedInlineTable": "false",
    "spark.sql.parser.quotedRegexColumnNames": "false",
    "spark.sql.scripting.enabled": "false",
    "spark.sql.runSQLOnFiles": "false",
    "spark.sql.caseSensitive": "false",
    "spark.sql.legacy.ctePrecedencePolicy": "CORRECTED",
    # So many files are looked at sooner than a Spark job for it starts.
    "spark.sql.sources.parallelPartitionDiscovery.threshold": "2000",
}


GRACE_SECONDS = 5.0  # for what was cancelled to end
END_SECONDS = 5.0  # for the JVM to end by itself


class SparkEnded(RuntimeError):
    """Spark's process had to be ended, and with it whatever ran in it."""


class NoWarehouse(ValueError):
    """The folder holds none of our tables."""


def require_readable(warehouse: Warehouse, at: Mapping[str, int]) -> None:
    """Refuse a folder without tables and versions that don't exist, before Spark is started.

    Raises:
        NoWarehouse, InvalidQuery, NoSuchTable, NoSuchVersion.
    """
    if not any(warehouse.exists(name) for name in TABLES):
        raise NoWarehouse(f"{warehouse.root}: no tables there; run jobs/curate.py first")
    for name, version in at.items():
        if name not in TABLES:
            raise InvalidQuery(f"no table is named {name}; there are {', '.join(TABLES)}")
        warehouse.files(name, version)


def interruptible(spark: SparkSession, work: Callable[[], None]) -> None:
    """Do work that waits for Spark so that Ctrl-C and SIGTERM end it at once.

    It is done in a thread of its own: this one's connection to the JVM stays free to cancel it.
    Only jobs can be cancelled. Where the work goes on, as the planning of a query does, the JVM is
    ended, unless it is spark-submit's, which gets the signals itself.

    Raises:
        SparkEnded: by Ctrl-C, after which nothing more can be asked of Spark.
    """
    with ThreadPoolExecutor(1) as worker:
        done = worker.submit(work)
        try:
            done.result()
        except BaseException as interrupt:
            if _end(spark, done) and isinstance(interrupt, KeyboardInterrupt):
                raise SparkEnded("Spark had to be ended, as the query went on") from interrupt
            raise


def _end(spark: SparkSession, done: "Future[None]") -> bool:
    """Cancel Spark's jobs until the work has ended; whether the JVM had to be ended for it."""
    until, is_jvm_ended = time.monotonic() + GRACE_SECONDS, False
    while not done.done():  # once is not enough: it may be between two jobs
        with suppress(Py4JError, OSError):  # the JVM may be gone, which ends the work as well
            spark.sparkContext.cancelAllJobs()
        wait([done], timeout=0.2)
        is_over = time.monotonic() > until and not done.done()
        if is_over and not is_jvm_ended and jvm_process() is not None:
            end_jvm()
            is_jvm_ended = True
    return is_jvm_ended


def jvm_process() -> Any:
    """The process of the JVM that Python has started; None under spark-submit."""
    return getattr(SparkContext._gateway, "proc", None)


def end_jvm() -> None:
    """End the JVM's process, by force if it must be; all that waits for it gets an error."""
    process = jvm_process()
    process.terminate()  # its shutdown hooks delete its temporary files
    try:
        process.wait(END_SECONDS)
    except TimeoutExpired:
        process.kill()
        process.wait()


class Views:
    """The tables of a warehouse and the views derived from them, in a Spark session of their own.

    The published tables are read as last published, the others at their newest version, looked up
    anew for each query and the same for all that it reads; a table that doesn't exist yet is an
    empty view. Several threads may ask at once.
    """

    def __init__(
        self, spark: SparkSession, warehouse: Warehouse, at: Mapping[str, int], run: Any
    ) -> None:
        """A session beside the given one, whose settings and views stay as they are.

        Args:
            spark: any session.
            warehouse: one that holds tables.
            at: versions of tables to read instead of the current ones.
            run: gets versions_read, and notes by say.
        """
        self.warehouse = warehouse
        self.at = dict(at)
        self.run = run
        self.session = spark.newSession()
        for setting, value in SETTINGS.items():
            self.session.conf.set(setting, value)
        self._lock = Lock()  # from the lookup of versions until the query has its plan over them
        # The versions of tables that each view of the session was made over.
        self._made_over: dict[str, dict[str, int | None]] = {}

    def names(self) -> tuple[str, ...]:
        """All views: the tables, then those derived from them."""
        return (*TABLES, *VIEWS)

    def describe(self, name: str) -> tuple[T.StructType, str]:
        """The columns of a view and what a row of it is, without reading anything."""
        if name in TABLES:
            return tables.schema(name), tables.contract(name).description
        return self._derived_schemas[name], VIEWS[name].description

    def query(self, text: str, parameters: Mapping[str, Value] | None = None) -> DataFrame:
        """The result of one statement that passes the gate, not computed yet.

        Args:
            text: the statement.
            parameters: a value for each `:name` in it.

        Raises:
            NotAllowed: it does something else than read the views.
            InvalidQuery: it can't be parsed or resolved, or lacks a parameter or a value.
        """
        values = parameters or {}
        with told_clearly():
            plan = self._parse(text)
            if sql_gate.shows_tables(plan):
                require_all((), values)
                return self._tables()
            names = sql_gate.check(plan, self.names(), values)
            with self._lock:
                self._open(names)
                # The plan that was checked, not the text once more.
                return self._resolved(bind(self.session, plan, values))

    def _resolved(self, plan: JavaObject) -> DataFrame:
        datasets = self.session._jvm.org.apache.spark.sql.classic.Dataset  # type: ignore[union-attr]
        return DataFrame(datasets.ofRows(self.session._jsparkSession, plan), self.session)

    def _parse(self, text: str) -> JavaObject:
        # The parser takes its settings from the thread's active session, not from its own.
        sessions = self.session._jvm.org.apache.spark.sql.classic.SparkSession  # type: ignore[union-attr]
        before = sessions.getActiveSession()
        sessions.setActiveSession(self.session._jsparkSession)
        try:
            return self.session._jsparkSession.sessionState().sqlParser().parsePlan(text)
        finally:
            if before.isDefined():
                sessions.setActiveSession(before.get())
            else:
                sessions.clearActiveSession()

    def _tables(self) -> DataFrame:
        """The answer to SHOW TABLES; Spark's own would make a spark-warehouse folder here."""
        versions = self._versions(frozenset(TABLES))
        rows = [(name, versions[name], tables.contract(name).description) for name in TABLES]
        rows += [(name, None, view.description) for name, view in VIEWS.items()]
        return self.session.createDataFrame(rows, "name string, version long, a_row_is string")

    def _open(self, names: frozenset[str]) -> None:
        """Make the views that a query reads, if they don't stand at the right versions yet."""
        read = names | sql_views.behind(names)
        versions = self._versions(read & set(TABLES))
        for name, version in versions.items():
            if version is None:
                self.run.say(f"{name}: nothing there yet, the view is empty")
            else:
                self.run.versions_read[name] = version
        for name in self.names():
            if name in read:
                tables_of = ({name} | sql_views.behind({name})) & set(TABLES)
                over = {table: versions[table] for table in tables_of}
                if self._made_over.get(name) != over:
                    self._make(name, over)
                    self._made_over[name] = over

    def _make(self, name: str, over: Mapping[str, int | None]) -> None:
        """Make one view; a table costs the reading of its Delta log and a look at its files."""
        if name in VIEWS:
            rows = self.session.sql(VIEWS[name].text)
        else:
            at = over[name]
            files = [] if at is None else self.warehouse.files(name, at)
            rows = scan(self.session, files, tables.schema(name))
        rows.createOrReplaceTempView(name)

    @cached_property
    def _derived_schemas(self) -> dict[str, T.StructType]:
        """Columns of the derived views, as Spark resolves them over tables without rows."""
        empty = self.session.newSession()
        for name in TABLES:
            empty.createDataFrame([], tables.schema(name)).createOrReplaceTempView(name)
        schemas = {}
        for name, view in VIEWS.items():
            rows = empty.sql(view.text)
            rows.createOrReplaceTempView(name)
            schemas[name] = rows.schema
        return schemas

    def _versions(self, names: frozenset[str]) -> dict[str, int | None]:
        """The version of each table to read, all published ones by one and the same run."""
        published = self.warehouse.published() if names & set(PUBLISHED) else {}
        current = {
            name: published.get(name) if name in PUBLISHED else self.warehouse.version(name)
            for name in sorted(names - set(self.at))
        }
        return current | {name: version for name, version in self.at.items() if name in names}
