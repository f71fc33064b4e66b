"""SQL over the tables of a warehouse: each is a view of its name, and nothing else is there."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

from py4j.java_gateway import JavaObject
from py4j.protocol import Py4JError
from pyspark.sql import DataFrame, SparkSession

from cxr_spark import sql_gate, tables
from cxr_spark.sql_errors import InvalidQuery, told_clearly
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
}


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
    """
    with ThreadPoolExecutor(1) as worker:
        done = worker.submit(work)
        try:
            done.result()
        except BaseException:
            while not done.done():  # once is not enough: it may be between two jobs
                with suppress(Py4JError):  # the JVM may be gone, which ends the work as well
                    spark.sparkContext.cancelAllJobs()
                wait([done], timeout=0.2)
            raise


class Views:
    """The tables of a warehouse for queries, in a Spark session of their own.

    images_raw, images and rejects are read as last published, the others at their newest version,
    both looked up anew for each query; a table that doesn't exist yet is an empty view.
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

    def query(self, text: str) -> DataFrame:
        """The result of one statement that passes the gate, not computed yet.

        Raises:
            NotAllowed: it does something else than read the views.
            InvalidQuery: it can't be parsed or resolved.
        """
        with told_clearly():
            plan = self._parse(text)
            if sql_gate.shows_tables(plan):
                return self._tables()
            self._open(sql_gate.check(plan, TABLES))
            # The plan that was checked, not the text once more.
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
        return self.session.createDataFrame(rows, "name string, version long, a_row_is string")

    def _open(self, names: frozenset[str]) -> None:
        """Make the views that a query reads; opening one costs the reading of its Delta log."""
        for name, version in self._versions(names).items():
            if version is None:
                self.run.say(f"{name}: nothing there yet, the view is empty")
                rows = self.session.createDataFrame([], tables.schema(name))
            else:
                self.run.versions_read[name] = version
                rows = self.warehouse.read(self.session, name, version)
            rows.createOrReplaceTempView(name)

    def _versions(self, names: frozenset[str]) -> dict[str, int | None]:
        """The version of each table to read, all published ones by one and the same run."""
        published = self.warehouse.published() if names & set(PUBLISHED) else {}
        current = {
            name: published.get(name) if name in PUBLISHED else self.warehouse.version(name)
            for name in sorted(names - set(self.at))
        }
        return current | {name: version for name, version in self.at.items() if name in names}
