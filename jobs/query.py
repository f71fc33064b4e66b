"""Answer an SQL query over the tables of a warehouse, or open a prompt for queries."""

import argparse
import os
import sys

from cxr_spark import job, sql, sql_output, sql_prompt
from cxr_spark.session import spark_session
from cxr_spark.tables import Warehouse

EXAMPLES = r"""examples:
  query.py --warehouse warehouse "SELECT label, count(*) FROM images GROUP BY label"
  query.py --warehouse warehouse --at images=3 --format csv "SELECT image_id, split FROM images"
  query.py --warehouse warehouse                        a prompt; \d lists the views
  query.py --warehouse warehouse < question.sql
Each table is a view of its name; only queries over these views run. On success stdout has the
result alone."""


def parser() -> argparse.ArgumentParser:
    """The options of the job."""
    options = job.parser("query", __doc__, EXAMPLES)
    options.add_argument("--warehouse", required=True, help="folder of the Delta tables")
    options.add_argument("--format", choices=sql_output.FORMATS, default="table")
    options.add_argument(
        "--at",
        metavar="TABLE=VERSION",
        action="append",
        type=_pin,
        default=[],
        help="read this version of a table; may be given for several tables",
    )
    options.add_argument("query", nargs="?", metavar="SELECT ...", help="one statement")
    return options


def main(options: argparse.Namespace, run: job.Run) -> None:
    """Run the job."""
    warehouse, at = Warehouse(options.warehouse), dict(options.at)
    sql.require_readable(warehouse, at)
    text = options.query
    if text is None and not sys.stdin.isatty():
        text = sys.stdin.read()
    if text is not None and not text.strip():
        raise job.InputError("the query is empty")
    with spark_session("cxr_spark query", run.say) as spark:
        spark.sparkContext.setLogLevel("OFF")  # an error comes as one message, not as Java's trace
        views = sql.Views(spark, warehouse, at, run)

        def answer(text: str) -> None:
            write = sql_output.FORMATS[options.format]
            sql.interruptible(spark, lambda: write(views.query(text), sys.stdout, run.say))
            sys.stdout.flush()

        try:
            sql_prompt.converse(answer, run.say) if text is None else answer(text)
        except BrokenPipeError:  # the reader, head for one, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _pin(text: str) -> tuple[str, int]:
    table, _, version = text.partition("=")
    if not version.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected TABLE=VERSION, as images=3")
    return table, int(version)


if __name__ == "__main__":
    job.start("query", parser(), main, records=False, prints_result=True)
