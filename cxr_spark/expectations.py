"""great-expectations suites: what staged tables must hold before they are published."""

import json
import os
from collections.abc import Mapping
from importlib import resources
from typing import Any, NamedTuple, Protocol

from pyspark.sql import DataFrame

# Nothing phones home; the library reads this when it is imported.
os.environ["GX_ANALYTICS_ENABLED"] = "false"

KEYS_SHOWN = 5


class Voice(Protocol):
    """The part of a job's run that the audit speaks through."""

    counts: dict[str, int | float]

    def say(self, text: str) -> None: ...


class Failure(NamedTuple):
    """An expectation that a table doesn't meet, and up to five keys of its rows."""

    table: str
    expectation: str
    severity: str
    keys: list[Any]

    def __str__(self) -> str:
        rows = f"; rows such as {self.keys}" if self.keys else ""
        return f"{self.table}: {self.expectation}{rows}"


class AuditRefused(RuntimeError):
    """A hard expectation failed: nothing is published."""

    status = "refused"

    def __init__(self, failures: list[Failure]) -> None:
        super().__init__(f"the audit refused: {'; '.join(str(failure) for failure in failures)}")
        self.failures = failures


def suite(name: str) -> dict[str, Any]:
    """The suite of a table: its `key` column and its expectations, as in schemas/expectations."""
    folder = resources.files("cxr_spark.schemas").joinpath("expectations")
    content: dict[str, Any] = json.loads(folder.joinpath(f"{name}.json").read_text("utf-8"))
    return content


def audit(frames: Mapping[str, DataFrame], voice: Voice) -> None:
    """Check each frame against the suite of its name; say what is only a warning.

    Args:
        frames: by suite name; pixels are never among their columns.

    Raises:
        AuditRefused: an expectation of severity `critical` failed.
    """
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_spark("staged")
    failures: list[Failure] = []
    for name, frame in frames.items():
        asset = source.add_dataframe_asset(name)
        batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
        failures += _failures(name, batch)
    for failure in failures:
        voice.say(f"audit {failure.severity}: {failure}")
    voice.counts["audit_warnings"] = sum(f.severity != "critical" for f in failures)
    refused = [failure for failure in failures if failure.severity == "critical"]
    if refused:
        raise AuditRefused(refused)


def _failures(name: str, batch: Any) -> list[Failure]:
    """First all expectations in few passes; then the keys, for those that failed."""
    content = suite(name)
    verdicts = _validated(batch, name, content["expectations"], {"result_format": "BOOLEAN_ONLY"})
    failed = [_again(verdict) for verdict in verdicts if not verdict.success]
    if not failed:
        return []
    with_keys = {
        "result_format": "COMPLETE",
        "unexpected_index_column_names": [content["key"]],
        "partial_unexpected_count": KEYS_SHOWN,
    }
    results = _validated(batch, name, failed, with_keys)
    return [_failure(name, result, content["key"]) for result in results]


def _again(verdict: Any) -> dict[str, Any]:
    config = verdict.expectation_config
    arguments = {name: value for name, value in config.kwargs.items() if name != "batch_id"}
    return {"type": config.type, "kwargs": arguments, "severity": config.severity}


def _validated(
    batch: Any, name: str, expectations: list[dict[str, Any]], result_format: dict[str, Any]
) -> list[Any]:
    from great_expectations.core.expectation_suite import ExpectationSuite

    suite_of_table = ExpectationSuite(name=name, expectations=expectations)
    result = batch.validate(suite_of_table, result_format=result_format)
    return list(result.results)


def _failure(name: str, result: Any, key: str) -> Failure:
    config = result.expectation_config
    rows = result.result.get("unexpected_index_list") or []
    keys = [row[key] for row in rows[:KEYS_SHOWN]]
    arguments = {k: v for k, v in config.kwargs.items() if k != "batch_id"}
    raised = result.exception_info.get("exception_message") if result.exception_info else None
    words = f"{config.type} {json.dumps(arguments, default=str)}"
    severity = str(getattr(config.severity, "value", config.severity))
    return Failure(name, f"{words} ({raised})" if raised else words, severity, keys)
