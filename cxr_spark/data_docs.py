"""Data Docs: an audit as great-expectations renders it, in pages that need no network."""

import copy
import html
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cxr_spark
from cxr_spark.run import Run

TEMPLATES = Path(__file__).parent / "templates"


class Failure(Protocol):
    """What the index page says of an expectation that failed."""

    @property
    def table(self) -> str: ...
    @property
    def expectation(self) -> str: ...
    @property
    def severity(self) -> str: ...
    @property
    def keys(self) -> list[str]: ...


class Table(NamedTuple):
    """An audited table: its rows, and what great-expectations found for each expectation."""

    name: str
    rows: int
    results: list[Any]

    def failed(self) -> int:
        """The number of expectations that aren't met."""
        return sum(not result.success for result in self.results)


def write(
    folder: Path, tables: Sequence[Table], failures: Sequence[Failure], verdict: str, run: Run
) -> Path:
    """Build the site beside the folder and put it in its place, so that one is always whole.

    Args:
        folder: of the site; what is there is replaced.
        tables: each gets a page, named like it.
        failures: listed on the index page.
        verdict: `passed` or `refused`.
        run: the run whose audit it is.

    Returns:
        The index page.

    Raises:
        OSError: the folder can't be written.
    """
    from great_expectations.render.view import DefaultJinjaPageView

    view = DefaultJinjaPageView(custom_views_directory=str(TEMPLATES))
    template = view.env.get_template("data_docs.html")
    about = {
        "tables": tables,
        "verdict": verdict,
        "run": run,
        "package_version": cxr_spark.__version__,
    }
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for table in tables:
        page = view.render(_document(table, run), "data_docs.html", table=table, **about)
        (new / f"{table.name}.html").write_text(page, "utf-8")
    index = template.render(table=None, failures=failures, **about)
    (new / "index.html").write_text(index, "utf-8")
    _swap(new, folder)
    return folder / "index.html"


def _document(table: Table, run: Run) -> Any:
    """The page of a table, as great-expectations makes it of a suite's results."""
    import great_expectations as gx
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer

    asked, failed = len(table.results), table.failed()
    statistics = {
        "evaluated_expectations": asked,
        "successful_expectations": asked - failed,
        "unsuccessful_expectations": failed,
        "success_percent": 100 * (asked - failed) / asked,
    }
    meta = {
        "great_expectations_version": gx.__version__,
        "run_id": {"run_name": run.run_id, "run_time": run.started_at.isoformat()},
    }
    result = ExpectationSuiteValidationResult(
        success=not failed,
        results=[_shown(one) for one in table.results],
        suite_name=table.name,
        statistics=statistics,
        meta=meta,
    )
    document = ValidationResultsPageRenderer(run_info_at_end=True).render(result)
    # The template has a heading of its own; this one links to a page that isn't made.
    del document.sections[0].content_blocks[0]
    return document


def _shown(result: Any) -> Any:
    """A result as the page shows it: with its keys, a warning marked, texts of data escaped."""
    shown = copy.deepcopy(result)
    shown.result = _escaped(shown.result)
    if keys := shown.result.get("partial_unexpected_index_list"):
        shown.result["unexpected_index_list"] = keys
    config = shown.expectation_config
    if config.severity.value != "critical":
        config.description = f"{config.description} ({config.severity.value})"
    return shown


def _escaped(value: Any) -> Any:
    # great-expectations puts cells of tables into the page as they are.
    if isinstance(value, dict):
        return {name: _escaped(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_escaped(part) for part in value]
    return html.escape(value) if isinstance(value, str) else value


def _swap(new: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
