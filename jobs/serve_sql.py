"""Answer SQL queries over a warehouse for JDBC, ODBC and Python clients, as a HiveServer2 does."""

import argparse
import getpass
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cxr_spark import job, sql, sql_server, sql_users
from cxr_spark.session import spark_session
from cxr_spark.sql_engine import Engine, Limits
from cxr_spark.tables import Warehouse

EXAMPLES = """examples:
  serve_sql.py --warehouse warehouse                          for this machine alone
  serve_sql.py --users users --add-user ann                   asks for ann's password
  serve_sql.py --warehouse warehouse --host 0.0.0.0 --users users
  beeline -u jdbc:hive2://127.0.0.1:10000/default -n ann -p ...
The same views and the same gate as query.py; docs/serve_sql.md tells more."""


def parser() -> argparse.ArgumentParser:
    """The options of the job."""
    options = job.parser("serve_sql", __doc__, EXAMPLES)
    options.add_argument("--warehouse", help="folder of the Delta tables")
    options.add_argument("--host", default="127.0.0.1", help="address to listen on")
    options.add_argument("--port", type=int, default=10000)
    options.add_argument("--users", metavar="FILE", type=Path, help="who may connect")
    options.add_argument("--add-user", metavar="NAME", help="add to --users FILE, and end")
    options.add_argument(
        "--max-seconds", type=_positive, default=300, help="of Spark's work for a query"
    )
    options.add_argument(
        "--max-rows", type=_positive, default=1_000_000, help="more are an error, not cut off"
    )
    return options


def main(options: argparse.Namespace, run: job.Run) -> None:
    """Run the job."""
    if options.add_user is not None:
        if options.users is None:
            raise job.InputError("--add-user needs --users FILE")
        sql_users.add(options.users, options.add_user, _password(options.add_user))
        return
    if options.warehouse is None:
        raise job.InputError("--warehouse is needed")
    if "PYSPARK_GATEWAY_PORT" in os.environ:
        raise job.InputError("start it with python, not spark-submit: it must own its JVM")
    warehouse = Warehouse(options.warehouse)
    sql.require_readable(warehouse, {})

    @contextmanager
    def views() -> Iterator[sql.Views]:
        with spark_session("cxr_spark serve_sql", log_level="off") as spark:
            opened = sql.Views(spark, warehouse, {}, run)
            opened.query("SELECT 1").collect()  # the first takes a second more than all others
            yield opened

    # The watchdog must know which tasks run now; Spark would tell it up to ten seconds late.
    given = os.environ.get("PYSPARK_SUBMIT_ARGS", "pyspark-shell")
    os.environ["PYSPARK_SUBMIT_ARGS"] = f"--conf spark.ui.liveUpdate.period=0 {given}"
    limits = Limits(options.max_seconds, options.max_rows)
    with (
        sql_server.Server(options.host, options.port, options.users, run.say) as server,
        Engine(views, limits, run.say) as server.engine,
    ):
        run.say(f"ready: jdbc:hive2://{options.host}:{server.server_address[1]}/default")
        server.serve_forever()


def _password(name: str) -> str:
    if sys.stdin.isatty():
        return getpass.getpass(f"Password of {name}: ")
    return sys.stdin.readline().rstrip("\n")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return int(text)


if __name__ == "__main__":
    job.start("serve_sql", parser(), main, records=False)
