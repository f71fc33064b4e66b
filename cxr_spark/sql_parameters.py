"""Values for the `:name`s of a query: bound as literals of a parsed statement, never spliced."""

import re
from collections.abc import Collection, Mapping
from datetime import date
from typing import Any

from py4j.java_gateway import JavaObject
from pyspark.sql import SparkSession

from cxr_spark.sql_errors import InvalidQuery

Value = str | int | float | bool | date

NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
INTEGER = re.compile(r"0|-?[1-9]\d{0,17}", re.ASCII)
DOUBLE = re.compile(r"-?(0|[1-9]\d*)(\.\d+([eE][+-]?\d+)?|[eE][+-]?\d+)", re.ASCII)
DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


def value_of(text: str) -> Value:
    """The value that a text means, by its form alone.

    `true` and `false` are booleans; whole numbers of up to 18 digits are integers; numbers with a
    point or an exponent are doubles; `2026-01-31` is a date. All else is a string: `007` too, as
    an identifier would lose its zeros, and what stands in single quotes, without them.

    Raises:
        InvalidQuery: a date that no calendar has.
    """
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1]
    if text in ("true", "false"):
        return text == "true"
    if INTEGER.fullmatch(text):
        return int(text)
    if DOUBLE.fullmatch(text):
        return float(text)
    if DATE.fullmatch(text):
        try:
            return date.fromisoformat(text)
        except ValueError as error:
            raise InvalidQuery(f"{text} is no date; as a string it is '{text}'") from error
    return text


def require_all(named: Collection[str], given: Collection[str]) -> None:
    """Refuse a query whose parameters aren't just those that have values.

    Raises:
        InvalidQuery: naming those without a value, or else the values without a parameter.
    """
    lacking = sorted(set(named) - set(given))
    if lacking:
        raise InvalidQuery(
            f"no value for {_listed(lacking)}: give it by --param {lacking[0]}=VALUE"
        )
    unused = sorted(set(given) - set(named))
    if unused:
        raise InvalidQuery(f"the query has no {_listed(unused)} that a value was given for")


def bind(session: SparkSession, plan: JavaObject, values: Mapping[str, Value]) -> JavaObject:
    """The plan with each `:name` taken as a literal of this value."""
    if not values:
        return plan
    jvm: Any = session._jvm
    catalyst = jvm.org.apache.spark.sql.catalyst
    dates = jvm.java.time.LocalDate
    plain = [
        dates.of(value.year, value.month, value.day) if isinstance(value, date) else value
        for value in values.values()
    ]
    literal = getattr(getattr(catalyst.expressions, "Literal$"), "MODULE$")
    literals = [literal.apply(value) for value in plain]
    names, literals = jvm.PythonUtils.toSeq(list(values)), jvm.PythonUtils.toSeq(literals)
    return catalyst.analysis.NameParameterizedQuery(plan, names, literals)


def _listed(names: Collection[str]) -> str:
    return ", ".join(f":{name}" for name in names)
