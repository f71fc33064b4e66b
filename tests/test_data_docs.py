"""Data Docs: pages that need no network, say whose they are, and replace the old ones whole."""

import re
import shutil
import subprocess
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from great_expectations.core import ExpectationValidationResult
from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
from great_expectations.expectations.metadata_types import FailureSeverity

import cxr_spark
from cxr_spark import data_docs
from cxr_spark.data_docs import Table
from cxr_spark.expectations import Failure

KEY = "nih:<i>7</i>.png"


class Run(NamedTuple):
    run_id: str = "curate-20260102T030405-abc"
    started_at: datetime = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def found(column: str, **result: Any) -> ExpectationValidationResult:
    config = ExpectationConfiguration(
        type="expect_column_values_to_be_in_set",
        kwargs={"column": column, "value_set": ["a", "b"]},
        severity=FailureSeverity.CRITICAL,
    )
    return ExpectationValidationResult(
        success=not result["unexpected_count"], expectation_config=config, result=result
    )


PASSED = found("split", element_count=9, unexpected_count=0, unexpected_percent=0.0)
FAILED = found(
    "label",
    element_count=9,
    unexpected_count=1,
    unexpected_percent=11.1,
    partial_unexpected_list=["<i>Flu</i>"],
    partial_unexpected_counts=[{"value": "<i>Flu</i>", "count": 1}],
    partial_unexpected_index_list=[{"image_id": KEY, "label": "<i>Flu</i>"}],
    unexpected_index_column_names=["image_id"],
)
TABLES = [Table("images", 9, [PASSED, FAILED]), Table("rejects", 1234, [PASSED])]
FAILURES = [Failure("images", "label is one of a, b", "critical", [KEY])]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return data_docs.write(tmp_path / "docs", TABLES, FAILURES, "refused", Run()).parent


class Links(HTMLParser):
    """The tags of a page, and what they point to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.targets: set[str] = set()
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.targets |= {value or "" for name, value in attrs if name in ("src", "href")}


def test_pages_load_nothing_and_link_only_to_each_other(site: Path) -> None:
    for page in site.iterdir():
        links = Links(page)
        assert links.targets == {"index.html", "images.html", "rejects.html"}
        assert all((site / target).is_file() for target in links.targets)
        assert links.tags.isdisjoint({"script", "link", "img", "iframe", "form"})
        assert not re.search(r"url\(|@import|https?://", page.read_text("utf-8"))


def test_every_page_says_which_run_it_is_of(site: Path) -> None:
    for page in site.iterdir():
        text = page.read_text("utf-8")
        assert Run().run_id in text
        assert "2026-01-02 03:04:05 UTC" in text
        assert cxr_spark.__version__ in text


def test_a_table_has_its_expectations_with_what_was_found(site: Path) -> None:
    page = (site / "images.html").read_text("utf-8")
    assert "values must belong to this set" in page
    assert "0% unexpected" in page
    assert "1 unexpected values found" in page
    assert "1 of 2 failed" in page
    assert "1,234" in (site / "rejects.html").read_text("utf-8")


def test_texts_of_the_data_are_no_markup(site: Path) -> None:
    for page in (site / "images.html", site / "index.html"):
        assert "nih:&lt;i&gt;7&lt;/i&gt;.png" in page.read_text("utf-8")
        assert "<i>" not in page.read_text("utf-8")


def test_a_new_site_replaces_the_old_one(site: Path) -> None:
    data_docs.write(site, TABLES[1:], [], "passed", Run("curate-2"))
    assert {page.name for page in site.iterdir()} == {"index.html", "rejects.html"}
    assert "Every expectation is met" in (site / "index.html").read_text("utf-8")
    assert [place.name for place in site.parent.iterdir()] == ["docs"]


def test_a_killed_build_leaves_the_old_site(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {page: page.read_bytes() for page in site.iterdir()}
    real, built = data_docs._document, []

    def document(table: Table, run: Run) -> Any:
        built.append(table)
        if len(built) == 2:
            raise KeyboardInterrupt
        return real(table, run)

    monkeypatch.setattr(data_docs, "_document", document)
    with pytest.raises(KeyboardInterrupt):
        data_docs.write(site, TABLES, FAILURES, "refused", Run("curate-2"))
    assert {page: page.read_bytes() for page in site.iterdir()} == before
    monkeypatch.setattr(data_docs, "_document", real)
    data_docs.write(site, TABLES, FAILURES, "refused", Run("curate-2"))
    assert "curate-2" in (site / "index.html").read_text("utf-8")


def chromium(page: Path, *options: str) -> str:
    """What a browser without a network prints for a page."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium here: the pages are not opened in a browser")
    common = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    offline = ["--proxy-server=127.0.0.1:9", "--disable-background-networking"]
    profile = f"--user-data-dir={page.parent.parent / 'profile'}"
    command = [browser, *common, *offline, profile, "--virtual-time-budget=2000", *options]
    done = subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


@pytest.mark.parametrize("name", ["index", "images"])
def test_a_browser_without_a_network_shows_a_page(site: Path, name: str) -> None:
    picture = site.parent / f"{name}.png"
    options = (f"--screenshot={picture}", "--window-size=1200,900")
    chromium(site / f"{name}.html", *options)
    text = chromium(site / f"{name}.html", "--dump-dom")
    assert "nih:&lt;i&gt;7&lt;/i&gt;.png" in text
    shot = cv2.imread(str(picture), cv2.IMREAD_GRAYSCALE)
    assert shot.shape == (900, 1200)
    # Dark text on light panels, well below the heading too.
    assert np.median(shot) > 230
    assert (shot[200:] < 90).sum() > 500
