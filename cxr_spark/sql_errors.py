"""What Spark raises about a query, as one clear message without the stack trace of the JVM."""

from collections.abc import Iterator
from contextlib import contextmanager

from py4j.java_gateway import JavaObject, is_instance_of
from py4j.protocol import Py4JJavaError
from pyspark import SparkContext
from pyspark.errors.exceptions.captured import CapturedException
from pyspark.logger import PySparkLogger

# Classes of SQLSTATE that are the query's fault: cardinality, data, syntax and names, complexity,
# what Spark lacks.
QUERY_FAULTS = ("21", "22", "42", "54", "0A")


class InvalidQuery(ValueError):
    """A query that Spark can't parse, resolve or compute; the message says where."""


class QueryFailed(RuntimeError):
    """A query that failed for another reason than itself."""


@contextmanager
def told_clearly() -> Iterator[None]:
    """Turn the errors of Spark within a block into InvalidQuery or QueryFailed."""
    # pyspark prints the stack trace of some errors beside raising them.
    PySparkLogger.getLogger("SQLQueryContextLogger").disabled = True
    try:
        yield
    except CapturedException as error:
        raise _told(error._origin) from error
    except Py4JJavaError as error:
        raise _told(error.java_exception) from error


def _told(throwable: JavaObject | None) -> InvalidQuery | QueryFailed:
    """The innermost cause that Spark gave an SQLSTATE, or else the innermost."""
    state, message = "", "Spark gave no reason"
    while throwable is not None:
        kind = throwable.getClass().getName()
        if kind == "java.lang.StackOverflowError":
            return InvalidQuery("the query is nested too deeply")
        own_state = (_is_a(throwable, "SparkThrowable") and throwable.getSqlState()) or ""
        if own_state or not state:
            # The longer message of an analysis error ends in its whole plan.
            in_analysis = _is_a(throwable, "sql.catalyst.ExtendedAnalysisException")
            text = throwable.getSimpleMessage() if in_analysis else throwable.getMessage()
            state, message = own_state, (text or kind).strip()
        throwable = throwable.getCause()
    return (InvalidQuery if state.startswith(QUERY_FAULTS) else QueryFailed)(message)


def _is_a(item: JavaObject, name: str) -> bool:
    return is_instance_of(SparkContext._gateway, item, f"org.apache.spark.{name}")
