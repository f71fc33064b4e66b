"""great-expectations suites: what staged tables must hold before they are published."""

import json
import os
from collections.abc import Mapping
from importlib import import_module, resources
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

from pyspark.sql import DataFrame

from cxr_spark import data_docs
from cxr_spark.data_docs import Table
from cxr_spark.run import Run

# Nothing phones home; the library reads this when it is imported.
os.environ["GX_ANALYTICS_ENABLED"] = "false"

HARD = "critical"
KEYS_SHOWN = 5
# These ask every row, and where they pass no row is unexpected. The others have a value to show.
OF_ROWS = ("expect_column_values_", "expect_column_pair_values_")


class Failure(NamedTuple):
    """An expectation that a table doesn't meet, and up to five keys of its rows."""

    table: str
    expectation: str
    severity: str
    keys: list[str]

    def __str__(self) -> str:
        rows = f"; rows such as {self.keys}" if self.keys else ""
        return f"{self.table}: {self.expectation}{rows}"


class AuditRefused(RuntimeError):
    """An expectation failed that must hold: nothing is published."""

    status = "refused"

    def __init__(self, failures: list[Failure]) -> None:
        super().__init__(f"the audit refused: {'; '.join(str(failure) for failure in failures)}")
        self.failures = failures


class WarningsStand(RuntimeError):
    """Nothing has changed, and what is published was audited with warnings."""

    status = "refused"


def suite(name: str) -> dict[str, Any]:
    """The suite of a table, as in schemas/expectations.

    Returns:
        `key` names the columns that tell rows apart, `laws` the columns that `laws` adds, and
        `expectations` is what great-expectations is asked.
    """
    folder = resources.files("cxr_spark.schemas").joinpath("expectations")
    content: dict[str, Any] = json.loads(folder.joinpath(f"{name}.json").read_text("utf-8"))
    return content


def laws(name: str, frame: DataFrame) -> DataFrame:
    """The frame with a column for each law of its suite, on columns or rows together.

    They are columns as great-expectations asks of one column at a time; its own uniqueness puts
    a window function into a filter, which Spark refuses to run.
    """
    columns = [f"{law} AS {column}" for column, law in suite(name)["laws"].items()]
    return frame.selectExpr("*", *columns)


def load_ahead() -> None:
    """Import great-expectations, which takes seconds, in a thread beside what Spark does."""
    Thread(target=import_module, args=("great_expectations",)).start()


def audit(frames: Mapping[str, DataFrame], voice: Run, docs: Path, *, strict: bool = False) -> None:
    """Check each frame against the suite of its name, say what fails, and write the Data Docs.

    Args:
        frames: by suite name; only the columns that a suite names are read.
        voice: takes the number of warnings, and the index page of the Data Docs.
        docs: folder of the Data Docs; replaced, whether the audit passes or refuses.
        strict: refuse for a warning too.

    Raises:
        AuditRefused: an expectation of severity `critical` failed; if strict, any.
    """
    conclude(validate(frames), voice, docs, strict=strict)


def validate(frames: Mapping[str, DataFrame]) -> list[Table]:
    """Ask of each frame what the suite of its name expects."""
    source = _spark_source()
    return [_validate(source, name, frame) for name, frame in frames.items()]


def conclude(tables: list[Table], voice: Run, docs: Path, *, strict: bool = False) -> None:
    """Say what failed, write the Data Docs and refuse if need be; arguments as of `audit`."""
    failures = [failure for table in tables for failure in _failures(table)]
    for failure in failures:
        voice.say(f"audit {failure.severity}: {failure}")
    voice.counts["audit_warnings"] = sum(failure.severity != HARD for failure in failures)
    refused = [failure for failure in failures if strict or failure.severity == HARD]
    verdict = "refused" if refused else "passed"
    try:
        index = data_docs.write(docs, tables, failures, verdict, voice)
        voice.outputs["data_docs"] = str(index)
    except Exception as error:  # whatever a renderer raises: pages are no reason to lose a verdict
        voice.say(f"the Data Docs can't be written to {docs}: {error}; the audit {verdict}")
    if refused:
        raise AuditRefused(refused)


def stand_by(warnings: int, voice: Run, docs: Path, *, strict: bool = False) -> None:
    """Tell once more what the last audit found, where nothing has changed since.

    Args:
        warnings: of the audit of what is published.
        voice: takes their number, and the index page of the Data Docs.
        docs: folder of the Data Docs.
        strict: refuse for a warning.

    Raises:
        WarningsStand: if strict, there were warnings.
    """
    voice.counts["audit_warnings"] = warnings
    index = docs / "index.html"
    if index.is_file():
        voice.outputs["data_docs"] = str(index)
    if warnings and strict:
        raise WarningsStand(
            f"nothing has changed, and what is published was audited with {warnings} warnings: "
            f"{index} tells of them"
        )


def _spark_source() -> Any:
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return context.data_sources.add_spark("staged")


def _validate(source: Any, name: str, frame: DataFrame) -> Table:
    content = suite(name)
    columns = {expectation["kwargs"]["column"] for expectation in content["expectations"]}
    # Not persisted: filling the cache takes longer than the second, narrower pass saves.
    asked = laws(name, frame).select(*sorted(columns.union(content["key"])))
    asset = source.add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": asked})
    rows = frame.count()
    return Table(name, rows, _results(batch, content, rows))


def _results(batch: Any, content: dict[str, Any], rows: int) -> list[Any]:
    """All rows are asked in one pass; values and keys are fetched just where there are any."""
    of_rows = [e for e in content["expectations"] if e["type"].startswith(OF_ROWS)]
    of_table = [e for e in content["expectations"] if not e["type"].startswith(OF_ROWS)]
    verdicts = _asked(batch, of_rows, {"result_format": "BOOLEAN_ONLY"})
    passed = [verdict for verdict in verdicts if verdict.success]
    for verdict in passed:
        verdict.result = {"element_count": rows, "unexpected_count": 0, "unexpected_percent": 0.0}
    again = [_expectation(verdict) for verdict in verdicts if not verdict.success] + of_table
    if not again:
        return passed
    with_values = {
        # COMPLETE would bring the key of every failing row to the driver.
        "result_format": "SUMMARY",
        "partial_unexpected_count": KEYS_SHOWN,
        "unexpected_index_column_names": content["key"],
    }
    return passed + _asked(batch, again, with_values)


def _asked(
    batch: Any, expectations: list[dict[str, Any]], result_format: dict[str, Any]
) -> list[Any]:
    from great_expectations.core.expectation_suite import ExpectationSuite

    asked = ExpectationSuite(name="asked", expectations=expectations)
    return list(batch.validate(asked, result_format=result_format).results)


def _expectation(verdict: Any) -> dict[str, Any]:
    config = verdict.expectation_config
    return {
        "type": config.type,
        "kwargs": _arguments(config),
        "severity": config.severity,
        "description": config.description,
    }


def _arguments(config: Any) -> dict[str, Any]:
    return {name: value for name, value in config.kwargs.items() if name != "batch_id"}


def _failures(table: Table) -> list[Failure]:
    failed = [result for result in table.results if not result.success]
    return [_failure(table.name, result) for result in failed]


def _failure(name: str, result: Any) -> Failure:
    config = result.expectation_config
    words = f"{config.type} {json.dumps(_arguments(config), default=str)}"
    if config.description:
        words = f"{config.description} ({config.type} of {config.kwargs['column']})"
    raised = _raised(result.exception_info or {})
    rows = result.result.get("partial_unexpected_index_list") or []
    keys = [" ".join(str(row[column]) for column in suite(name)["key"]) for row in rows]
    return Failure(name, f"{words}{raised}", str(config.severity.value), keys)


def _raised(info: Mapping[str, Any]) -> str:
    """What kept an expectation from being asked: one exception, or one for each metric."""
    causes = [info] if "raised_exception" in info else info.values()
    messages = [cause["exception_message"] for cause in causes if cause["raised_exception"]]
    return f" ({'; '.join(messages)})" if messages else ""
