"""The curation report: what it tells is in the tables, what comes from data is shown, not run."""

import html
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pyspark.sql import SparkSession

from cxr_spark import curation_facts, curation_report
from cxr_spark.curation_facts import Facts, Picture
from cxr_spark.reasons import FILE_REASONS, REASONS
from cxr_spark.tables import PUBLISHED, Warehouse
from tests.browser import VIEWS, Browser
from tests.conftest import Chain, Finished, source_options

EVIL = "<script>alert(1)</script>"
MINUS = "\N{MINUS SIGN}"
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def picture(name: str, about: str, *, content: str | None = "c1") -> Picture:
    return Picture(name, "nih", content, 8, 9, about)


FACTS = Facts(
    cells=[
        {"source": EVIL, "label": "Edema", "split": "train", "images": 6},
        {"source": "nih", "label": "Edema", "split": "test", "images": 2},
        {"source": "nih", "label": "Covid", "split": "val", "images": 1234},
    ],
    groups={"train": 5, "val": 1200},
    classes={"Edema": [picture(f"nih:{EVIL}.png", "nih, train")]},
    reasons={
        "duplicate": [picture("nih:copy.png", f"{REASONS['duplicate']}: Edema")],
        "unreadable": [picture("nih:broken.png", f"no image: {EVIL}", content=None)],
    },
    copies=[[picture("nih:kept.png", "kept"), picture("nih:copy.png", "left out")]],
    near=[],
    sizes={"nih": {20: 10, 21: 5, 40: 1}},
    greys={"nih": {7: 3, 8: 9}},
    pixels={"c1": bytes(range(64))},
)
RUN = SimpleNamespace(
    run_id="curate-1",
    counts={
        f"{EVIL}.listed": 8,
        f"{EVIL}.unreadable": 2,
        f"{EVIL}.images": 6,
        f"{EVIL}.without_patient": 6,
        "nih.listed": 1237,
        "nih.duplicate": 1,
        "nih.images": 1236,
        "nih.without_patient": 0,
        "images": 1242,
        "rejects": 3,
    },
    resolved={"label_policy": EVIL, "salt": "not told"},
    versions_written={"images": 3},
)


class Page(HTMLParser):
    """The elements of a page, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", self.text)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text() -> str:
    return curation_report.render(FACTS, RUN, made_at=NOW)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_names_from_data_are_shown_and_not_run(page: Page, text: str) -> None:
    assert "<script" not in text
    assert page.words.count(EVIL) >= 6
    assert any(EVIL in attributes["alt"] for attributes in page.all("img"))


def test_nothing_is_asked_from_outside_and_nothing_runs(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert attributes.get("href", f"#{ids[0]}").removeprefix("#") in ids
    policies = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_those_who_cannot_see_are_told_as_well(page: Page) -> None:
    skip = page.all("a")[0]
    assert (skip["class"], skip["href"]) == ("skip", "#ledger")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a]
    assert set(named) <= set(ids)
    assert len(page.all("table")) == len(page.all("caption")) == 3
    assert {attributes.get("scope") for attributes in page.all("th")} == {"col", "row"}
    assert all(attributes["alt"] for attributes in page.all("img"))
    assert all(a["role"] == "img" and a["aria-label"] for a in page.all("svg"))


def test_the_ledger_leads_from_listed_files_to_images(page: Page) -> None:
    assert "1,242 images of 1,245 files" in page.words
    for words in ("listed 8 1,237 1,245", f"{MINUS} unreadable 2 0 2", f"{MINUS} duplicate 0 1 1"):
        assert words in page.words
    assert "= images 6 1,236 1,242" in page.words
    assert f"No patient ids in {EVIL}:" in page.words
    assert "not told" not in page.words


def test_classes_stand_by_source_and_by_split_with_their_shares(page: Page) -> None:
    assert "Edema 6 75 % 2 25 % 8" in page.words
    assert "Edema 6 75 % 0 0 % 2 25 %" in page.words
    assert "Covid 0 1,234 100 % 1,234" in page.words
    assert "train has 5 groups, val has 1,200 groups, test has 0 groups." in page.words


def test_files_without_pixels_are_named_and_others_shown(page: Page) -> None:
    assert len(page.all("img")) == 4
    assert f"nih:broken.png no image: {EVIL}" in page.words
    # What the heading says isn't said again below each picture.
    assert f"duplicate: {REASONS['duplicate']} Edema nih:copy.png" in page.words


def test_a_histogram_counts_what_is_beyond_its_ends() -> None:
    panel = curation_report._size_panel("nih", {20: 10, 21: 5, 40: 1, 0: 2})
    assert panel.files == 18
    assert [round(height) for _, height in panel.bars] == [20, 100, 50, 10]
    assert panel.bars[0][0] == 0
    assert panel.bars[-1][0] + panel.bar_width == pytest.approx(100)
    assert panel.most == "most have a shorter side of 1,024 to 1,448 px"


def test_an_empty_data_set_has_a_page() -> None:
    nothing = Facts([], {}, {}, {}, [], [], {}, {}, {})
    counts = {"nih.listed": 0, "nih.images": 0, "images": 0, "rejects": 0}
    run = SimpleNamespace(**vars(RUN) | {"counts": counts})
    words = Page(curation_report.render(nothing, run, made_at=NOW)).words
    assert "0 images of 0 files" in words
    assert "Nothing was left out." in words


@pytest.mark.parametrize(("width", "media"), VIEWS)
def test_a_browser_without_a_network_shows_the_page(
    browser: Browser, text: str, tmp_path: Path, width: int, media: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(text, "utf-8")
    shown = browser.show(path, width=width, media=media)
    assert (shown.console, shown.requests, shown.broken) == ([], [], [])
    assert html.escape(EVIL, quote=False) in shown.dom
    # There is nothing beside the window, or on paper beside the sheet.
    assert shown.width == shown.picture.shape[1] == width
    assert np.median(shown.picture) > 230
    assert (shown.picture[200:] < 90).sum() > 500


@pytest.fixture(scope="module")
def facts(spark: SparkSession, chain: Chain) -> Facts:
    warehouse = Warehouse(chain.warehouse)
    published = warehouse.published_run()
    assert published
    versions = {name: published.versions[name] for name in PUBLISHED}
    return curation_facts.gather(spark, warehouse, versions, published.arguments["preprocessing"])


@pytest.mark.parametrize(("width", "media"), VIEWS)
def test_a_browser_shows_the_page_of_real_files(
    browser: Browser, facts: Facts, tmp_path: Path, width: int, media: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(curation_report.render(facts, RUN, made_at=NOW), "utf-8")
    shown = browser.show(path, width=width, media=media)
    assert (shown.console, shown.requests, shown.broken) == ([], [], [])
    assert shown.width == width


def test_the_facts_are_those_of_the_tables(facts: Facts, chain: Chain) -> None:
    counts = chain.curate["counts"]
    assert sum(cell["images"] for cell in facts.cells) == counts["images"] == 72
    by_split = {s: sum(c["images"] for c in facts.cells if c["split"] == s) for s in facts.groups}
    assert by_split["test"] == sum(n for name, n in counts.items() if name.endswith(".test"))
    assert sum(map(sum, (bins.values() for bins in facts.greys.values()))) == 72
    unread = sum(counts.get(f"nih.{reason}", 0) for reason in FILE_REASONS)
    readable = counts["nih.listed"] - unread
    assert sum(facts.sizes["nih"].values()) == readable
    assert facts.sizes["tuberculosis"].keys() == {18}  # 512 px


def test_samples_are_of_every_class_and_reason_and_source(facts: Facts, chain: Chain) -> None:
    assert [len(shown) for shown in facts.classes.values()] == [4] * 9
    assert {p.source for p in facts.classes["Pneumonia"][:2]} == {"nih", "pneumonia"}
    found = {
        name for name in REASONS if any(c.endswith(f".{name}") for c in chain.curate["counts"])
    }
    assert facts.reasons.keys() == found
    shown = {p.content_sha256 for pictures in facts.classes.values() for p in pictures}
    assert shown <= facts.pixels.keys()
    assert {len(pixels) for pixels in facts.pixels.values()} == {64 * 64}


def test_copies_stand_side_by_side_the_kept_one_first(facts: Facts) -> None:
    assert len(facts.copies) == 4
    for group in facts.copies:
        assert [p.about for p in group] == ["kept", *["left out"] * (len(group) - 1)]
    assert len({p.source for p in facts.copies[0]}) == 2
    for pair in facts.near:
        assert len({p.content_sha256 for p in pair}) == 2


def test_curate_writes_the_report_of_what_it_publishes(
    run_job: Callable[..., Finished], chain: Chain, tmp_path: Path
) -> None:
    warehouse = tmp_path / "warehouse"
    shutil.copytree(chain.warehouse, warehouse)
    on = ("--warehouse", warehouse, *source_options(chain.sources), "--image-size", 64)
    assert run_job("curate", *on, "--report", tmp_path).exit_code == 2
    done = run_job("curate", *on, "--report", tmp_path / "out" / "report.html")
    assert done.exit_code == 0, done.stderr[-2000:]
    words = Page(Path(done.summary["outputs"]["report"]).read_text("utf-8")).words
    assert done.summary["run_id"] in words
    assert "72 images of 116 files" in words
