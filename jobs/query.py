"""Answer an SQL query over the tables of a warehouse, or open a prompt for queries."""

import argparse
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from cxr_spark import job, sql, sql_errors, sql_output, sql_parameters, sql_prompt
from cxr_spark.session import spark_session
from cxr_spark.tables import TABLES, Warehouse

EXAMPLES = r"""examples:
  query.py --warehouse warehouse "SELECT label, count(*) FROM images GROUP BY label"
  query.py --warehouse warehouse --at images=3 --format csv "SELECT image_id, split FROM images"
  query.py --warehouse warehouse --param label=Covid "SELECT * FROM images WHERE label = :label"
  query.py --warehouse warehouse --file question.sql --format parquet --out answer.parquet
  query.py --warehouse warehouse                        a prompt; \d lists the views
  query.py --warehouse warehouse < question.sql
Each table is a view of its name, and some are derived from them; only queries over these views run.
docs/sql.md has twenty to start from. On success stdout has the result alone.
A --param's value is true, false, a whole number, a number with a point or an exponent, a date as
2026-01-31, or else a string; in single quotes it is a string whatever it looks like."""


def parser() -> argparse.ArgumentParser:
    """The options of the job."""
    options = job.parser("query", __doc__, EXAMPLES)
    options.add_argument("--warehouse", required=True, help="folder of the Delta tables")
    options.add_argument("--format", choices=sql_output.FILE_FORMATS, default="table")
    options.add_argument("--out", type=Path, metavar="FILE", help="write there; parquet needs it")
    options.add_argument(
        "--at",
        metavar="TABLE=VERSION|TIME",
        action="append",
        type=_pin,
        default=[],
        help="read this version of a table, or that of a time (ISO 8601, UTC unless it says "
        "otherwise); may be given for several tables",
    )
    options.add_argument(
        "--param",
        metavar="NAME=VALUE",
        action="append",
        type=_parameter,
        default=[],
        help="a value for :NAME in the query; may be given for several",
    )
    options.add_argument("--file", type=Path, help="read the statement from this file")
    options.add_argument("query", nargs="?", metavar="SELECT ...", help="one statement")
    return options


def main(options: argparse.Namespace, run: job.Run) -> None:
    """Run the job."""
    warehouse, parameters = Warehouse(options.warehouse), dict(options.param)
    sql.require_readable(warehouse, {name: 0 for name, _ in options.at if name not in TABLES})
    at = {
        name: pin if isinstance(pin, int) else warehouse.version_at(name, pin)
        for name, pin in options.at
    }
    sql.require_readable(warehouse, at)
    text = _statement(options)
    _require_place(options, is_prompt=text is None)
    # No log: an error is one message, not Java's trace.
    with spark_session("cxr_spark query", run.say, log_level="off") as spark:
        views = sql.Views(spark, warehouse, at, run)

        def write(text: str) -> None:
            result = views.query(text, parameters)
            if options.out:
                sql_output.write_file(result, options.format, options.out, run.say)
            else:
                sql_output.FORMATS[options.format](result, sys.stdout, run.say)

        def answer(text: str) -> None:
            sql.interruptible(spark, lambda: write(text))
            sys.stdout.flush()

        try:
            sql_prompt.converse(answer, views, run.say) if text is None else answer(text)
        except BrokenPipeError:  # the reader, head for one, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _statement(options: argparse.Namespace) -> str | None:
    """The statement from wherever it comes; None where a prompt is asked for."""
    if options.query is not None and options.file:
        raise job.InputError("a query and --file: give one of them")
    text = options.query
    if options.file:
        try:
            text = options.file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise job.InputError(f"{options.file}: can't be read: {error}") from error
    elif text is None and not sys.stdin.isatty():
        text = sys.stdin.read()
    if text is not None and not text.strip():
        raise job.InputError("the query is empty")
    return text


def _require_place(options: argparse.Namespace, *, is_prompt: bool) -> None:
    out = options.out
    if options.format == "parquet" and out is None:
        raise job.InputError("--format parquet needs --out FILE")
    if is_prompt and (out or options.param):
        raise job.InputError("--out and --param need a query; a prompt has neither")
    if out and (out.is_dir() or not out.parent.is_dir()):
        raise job.InputError(f"--out {out}: no file in a folder that exists")


def _pin(text: str) -> tuple[str, int | datetime]:
    table, _, pin = text.partition("=")
    if pin.isdecimal():
        return table, int(pin)
    try:
        moment = datetime.fromisoformat(pin)
    except ValueError:
        message = (
            f"{text!r}: expected TABLE=VERSION or TABLE=TIME, as images=3 or images=2026-01-31"
        )
        raise argparse.ArgumentTypeError(message) from None
    return table, moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _parameter(text: str) -> tuple[str, sql_parameters.Value]:
    name, equals, value = text.partition("=")
    if not equals or not sql_parameters.NAME.fullmatch(name):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE, as label=Covid")
    try:
        return name, sql_parameters.value_of(value)
    except sql_errors.InvalidQuery as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    job.start("query", parser(), main, records=False, prints_result=True)
