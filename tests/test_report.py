"""The HTML report: nothing from outside, everything escaped, the right pictures and figures."""

import base64
import html
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyspark.sql import SparkSession

from cxr_spark import charts, html_pages, learning_curve, metrics, report
from cxr_spark.comparison import Comparison
from cxr_spark.comparison import figures_of as comparison_figures
from cxr_spark.evaluation_words import table
from cxr_spark.figures import Evaluation, Yardsticks, figures_of, figures_of_split
from cxr_spark.labels import CLASSES
from cxr_spark.learning_curve import Point
from cxr_spark.localisation import METRICS as LOCALISATION
from cxr_spark.operating_points import choose
from cxr_spark.report import Pictures
from cxr_spark.scored_rows import ScoredRows
from cxr_spark.slice_figures import Figure
from cxr_spark.tables import Warehouse
from tests.browser import VIEWS, Browser
from tests.conftest import Chain

EVIL = "nih:<script>alert(1)</script>.png"
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
# HTML's elements without an end, and those of SVG that the page writes as <.../>.
VOID = {"meta", "img", "br", "rect", "line", "path", "circle"}


def evaluation(
    *, labels: list[int] | None = None, missing: int = 0, source: str = "nih"
) -> Evaluation:
    """Thirty made-up rows, the first two of them wrong and the first with a hostile name."""
    truth = np.array(labels if labels is not None else [i % 9 for i in range(30)])
    n = len(truth)
    probabilities = np.full((n, 9), 0.05)
    probabilities[np.arange(n), truth] = 0.6
    wrong = (truth + 1) % 9
    for row, certainty in ((0, 0.92), (1, 0.92 - 1e-3)):
        probabilities[row] = (1 - certainty) / 8
        probabilities[row, wrong[row]] = certainty
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    rows = ScoredRows(
        image_id=np.array([EVIL, *(f"nih:{i:02d}.png" for i in range(1, n))]),
        source=np.array([source] * n),
        group_id=np.array([f"g{i // 2}" for i in range(n)]),
        label_index=truth,
        probabilities=probabilities,
        slices={
            "source": np.array([source] * n),
            "sex": np.array([["F", "M", "F"][i % 3] for i in range(n)]),
        },
    )
    counts = {"n": n, "missing": missing, "errors": 0, "related": 0}
    train_counts = {source: np.arange(1, 10)}
    model = {
        "model_version": "<b>m1</b>",
        "artifact_path": "/models/m1",
        "artifact_sha256": "ab" * 32,
        "architecture": "resnet18",
        "image_size": 8,
        "preprocessing": "p1",
        "temperature": 1.0,
        "train_priors": None,
        "images_version": 3,
        "label_policy": "sole",
        "arguments": {"note": "<i>x</i>"},
        "val_cce": None,
        "run_id": "train-1",
        "created_at": NOW,
    }
    yardsticks = Yardsticks(train_counts, np.full((n, 9), 1 / 9), choose(rows))
    figures = figures_of(rows, yardsticks, counts)
    return Evaluation(model, "test", 3, 5, rows, figures, counts)


def page_of(given: Evaluation) -> str:
    pixels = np.arange(64, dtype=np.uint8).tobytes()
    pictures = dict.fromkeys(report.pictured(given), html_pages.thumbnail(pixels))
    return report.render(given, Pictures(pictures, pictures), made_at=NOW)


class Page(HTMLParser):
    """Elements and text of a page; an end tag that closes no open element is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))

    def all(self, tag: str) -> Iterator[dict[str, str]]:
        return (attributes for name, attributes in self.elements if name == tag)


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(page_of(evaluation()))


def test_every_element_is_closed_and_ids_are_unique(page: Page) -> None:
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    named = [a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a]
    assert set(named) <= set(ids)


def test_nothing_is_asked_from_outside_and_nothing_runs(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base"}
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "href", "srcset", "poster", "data", "action"}:
                assert value.startswith(("data:image/png;base64,", "#"))
    style = (Path(report.__file__).parent / "templates" / "_style.html").read_text("utf-8")
    assert "url(" not in style
    assert "@import" not in style
    policies = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_names_from_data_are_shown_and_not_run(page: Page) -> None:
    text = page_of(evaluation())
    assert "<script>alert" not in text
    assert "<b>m1" not in text
    assert "<i>x" not in text
    for shown in (EVIL, "<b>m1</b>", "<i>x</i>"):
        assert shown in page.words
    assert any(EVIL in attributes["alt"] for attributes in page.all("img"))
    assert '<img src="x">' not in page_of(evaluation(source='<img src="x">'))


def test_pictures_decode_and_have_words_for_those_who_cannot_see_them(page: Page) -> None:
    images = list(page.all("img"))
    assert len(images) == 2 * (2 + 9)
    for attributes in images:
        encoded = attributes["src"].removeprefix("data:image/png;base64,")
        picture = Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)))
        assert picture.size == (8, 8)
        assert "labelled" in attributes["alt"] or "with heat" in attributes["alt"]
    for attributes in page.all("svg"):
        assert attributes["role"] == "img"
        assert attributes["aria-label"]


def test_every_table_has_a_caption_and_scoped_headings(page: Page) -> None:
    tags = [tag for tag, _ in page.elements]
    assert tags.count("table") == tags.count("caption") == 7
    assert {attributes.get("scope") for attributes in page.all("th")} == {"col", "row", "rowgroup"}


def test_the_headline_stands_beside_the_baselines_and_the_share_of_the_source() -> None:
    given = evaluation()
    page = Page(page_of(given))
    for name in ("cce", "cce_prior", "cce_source_only", "cce_border_only"):
        assert f"{given.value(name):.3f}" in page.words
    low, high = given.figure("cce")[4:6]
    assert f"95 % interval {low:.3f} to {high:.3f}" in page.words
    # There is one source, so it tells as much as the prior: nothing of the gain.
    assert "Knowing the source alone gives 0 % of the model" in page.words
    assert "gain over the class prior (0.0 to 0.0 %)" in page.words
    assert "Not a medical device" in page.words


def test_a_figure_that_is_not_defined_is_not_called_one_of_too_few_images() -> None:
    one_class = Page(page_of(evaluation(labels=[2] * 30)))
    # Of a source with one class no AUROC is defined, and neither is one of the classes it lacks.
    assert re.search("nih 30 [^u]*undefined", one_class.words)
    assert "Edema 0 \N{EN DASH} undefined undefined" in one_class.words
    assert "too few (30)" not in one_class.words
    assert re.search("mean AUROC +undefined +30", "\n".join(table(evaluation(labels=[2] * 30))))


def test_a_model_without_any_gain_is_told_so() -> None:
    given = evaluation(labels=[0, 0])
    assert "gains nothing over the class prior" in Page(page_of(given)).words


def test_rows_left_out_are_told_only_where_there_are_some(page: Page) -> None:
    assert "Not the whole split" not in page.words
    incomplete = Page(page_of(evaluation(missing=4)))
    assert "4 of 34 rows are left out, 4 without a prediction" in incomplete.words


def test_the_confusion_matrix_shows_the_counts() -> None:
    given = evaluation()
    text = page_of(given)
    matrix = metrics.confusion_matrix(given.rows.probabilities, given.rows.label_index)
    for truth, counts in zip(CLASSES, matrix, strict=True):
        for predicted, count in zip(CLASSES, counts, strict=True):
            assert f'title="{truth} read as {predicted}: {count} of {counts.sum()}"' in text


def test_mistakes_come_most_confident_first_and_hits_one_a_class() -> None:
    rows = evaluation().rows
    mistakes = report.confident_mistakes(rows)
    assert [picture.image_id for picture in mistakes] == [EVIL, "nih:01.png"]
    assert (mistakes[0].truth, mistakes[0].predicted) == ("Atelectasis", "Cardiomegaly")
    assert mistakes[0].confidence == pytest.approx(0.92)
    assert mistakes[0].of_truth == pytest.approx(0.01)
    hits = report.clear_hits(rows)
    assert [picture.truth for picture in hits] == list(CLASSES)
    assert all(picture.truth == picture.predicted for picture in hits)


def test_no_more_mistakes_are_shown_than_the_page_has_room_for() -> None:
    n = 40
    probabilities = np.full((n, 9), 0.02)
    probabilities[:, 1] = 0.84
    names = np.array([f"nih:{i}" for i in range(n)])
    rows = ScoredRows(names, names, names, np.zeros(n, dtype=np.int64), probabilities)
    assert len(report.confident_mistakes(rows)) == report.MISTAKES
    assert report.clear_hits(rows) == []


def test_roc_curves_run_from_corner_to_corner_and_an_absent_class_has_none() -> None:
    panels = charts.roc_panels(evaluation(labels=[0, 1, 2] * 5).rows)
    assert [panel.name for panel in panels] == list(CLASSES)
    for panel in panels[:3]:
        assert panel.path.startswith("M0.0 100.0L")
        assert panel.path.endswith("100.0 0.0")
        assert panel.positives == 5
    for panel in panels[3:]:
        assert (panel.path, panel.auroc, panel.positives) == ("", None, 0)


def test_an_absent_class_leaves_the_page_whole() -> None:
    page = Page(page_of(evaluation(labels=[0, 1, 2] * 5)))
    assert page.open == []
    assert "nan" not in page.words.lower()


def test_what_the_model_does_not_say_is_a_dash() -> None:
    given = evaluation()
    unsaid = replace(given, model=given.model | {"label_policy": None, "arguments": None})
    words = Page(page_of(unsaid)).words
    assert "label policy \N{EN DASH}" in words
    assert "None" not in words


def test_the_pixels_come_from_the_images_version_of_the_model(
    spark: SparkSession, tmp_path: Path
) -> None:
    warehouse = Warehouse(tmp_path)
    row = {"run_id": "x", "image_id": "first", "split": "test", "image_size": 8}
    black = [row | {"image_id": name, "pixels": bytes(64)} for name in (EVIL, "other")]
    warehouse.append_rows("images", [row])
    warehouse.append_rows("images", [row])
    assert warehouse.append_rows("images", black) == 3
    warehouse.append_rows("images", [row | {"image_id": EVIL, "pixels": b"\xff" * 64}])
    thumbnails, overlays = report.read_pictures(spark, warehouse, evaluation())
    assert (list(thumbnails), overlays) == ([EVIL], {})
    shown = Image.open(io.BytesIO(base64.b64decode(thumbnails[EVIL].split(",")[1])))
    assert np.asarray(shown).max() == 0


def test_a_slice_that_is_too_small_says_so_in_place_of_a_number(page: Page) -> None:
    assert "nih 30 " in page.words
    assert "F 20 " in page.words
    assert "M 10 too few (10) too few (10) too few (10)" in page.words


def test_the_forest_has_all_rows_first_and_the_longest_interval_fills_it() -> None:
    rows = charts.forest(evaluation())
    assert [(row.kind, row.name) for row in rows] == [
        ("", "All images"),
        ("Source", "nih"),
        ("Sex", "F"),
        ("Sex", "M"),
    ]
    whiskers = [row.cce.whisker for row in rows if row.cce.whisker]
    assert min(start for start, _ in whiskers) == pytest.approx(0)
    assert max(start + width for start, width in whiskers) == pytest.approx(100)
    for row in rows[:3]:
        start, width = row.cce.whisker or (0, 0)
        assert start < (row.cce.at or 0) < start + width
    assert (rows[3].cce.at, rows[3].cce.whisker) == (None, None)


def test_reliability_counts_each_row_in_one_bin() -> None:
    bins = charts.reliability(evaluation().rows)
    assert sum(one.n for one in bins) == 30
    assert all(one.low <= one.confidence < one.high for one in bins)
    wrong = next(one for one in bins if one.low <= 0.92 < one.high)
    assert (wrong.n, wrong.accuracy) == (2, 0)


def test_a_comparison_shows_the_images_gained_and_lost() -> None:
    given = evaluation()
    theirs = given.rows.probabilities.copy()
    theirs[0] = np.eye(9)[0]
    theirs[5] = np.eye(9)[0]
    theirs[6] = np.roll(theirs[6], 1)
    comparison = Comparison({"model_version": "<i>old</i>"}, given.rows, theirs, 0, 0)
    compared = replace(
        given, figures=[*given.figures, *comparison_figures(comparison)], comparison=comparison
    )
    text = page_of(compared)
    page = Page(text)
    assert page.open == []
    assert "Compared with <i>old</i>" in page.words
    assert "<i>old" not in text
    changed = report.pictured(compared).keys() - report.pictured(given).keys()
    assert changed <= {"nih:05.png", "nih:06.png"}
    gained = page.words.split("Gained, the greatest change first")[1]
    # The other model gave the truth nothing at all of 05, and still a little of 06.
    assert gained.index("nih:05.png") < gained.index("nih:06.png")
    assert text.count("nih:05.png") > page_of(given).count("nih:05.png")


def test_shares_of_train_and_other_splits_are_told_where_they_are_known(page: Page) -> None:
    assert "How much data it takes" not in page.words
    given = evaluation()
    assert "Splits" not in page.words
    points = [
        Point(share, images, f"<b>{share}</b>", given.rows)
        for share, images in ((0.25, 250), (1.0, 1000))
    ]
    told = replace(
        given,
        figures=[*given.figures, *learning_curve.figures_of(points)],
        learning_curve=points,
        other_splits={"train": figures_of_split(given.rows, {"nih": np.arange(1, 10)})},
    )
    text = page_of(told)
    shown = Page(text)
    cce = f"{given.value('cce'):.3f}"
    assert shown.open == [] and "<b>0.25" not in text
    assert f"25.0 % 250 {cce}" in shown.words and f"100.0 % 1,000 {cce}" in shown.words
    assert f"train 30 {cce}" in shown.words and f"test 30 {cce}" in shown.words
    lines = "\n".join(table(told))
    assert re.search(rf"0\.25: 250 images +{cce}", lines)
    assert re.search(rf"CCE on train +{cce}", lines)


def test_heat_and_boxes_are_told_where_there_are_boxes(page: Page) -> None:
    assert "Localisation" not in page.words
    given = evaluation()
    told = [Figure("all", "all", m, 0.25, 0.2, 0.3, 12) for m in LOCALISATION.values()]
    words = Page(page_of(replace(given, figures=[*given.figures, *told]))).words
    assert "All with boxes 12 25.0 % 20.0 to 30.0 %" in words


@pytest.mark.parametrize(("width", "media"), VIEWS)
def test_a_browser_without_a_network_shows_the_page(
    browser: Browser, tmp_path: Path, width: int, media: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(page_of(evaluation()), "utf-8")
    shown = browser.show(path, width=width, media=media)
    assert (shown.console, shown.requests, shown.broken) == ([], [], [])
    assert html.escape(EVIL, quote=False) in shown.dom
    # There is nothing beside the window, or on paper beside the sheet.
    assert shown.width == shown.picture.shape[1] == width
    assert np.median(shown.picture) > 230
    assert (shown.picture[200:] < 90).sum() > 500


@pytest.mark.parametrize(("width", "media"), VIEWS)
def test_a_browser_shows_the_report_of_a_trained_model(
    browser: Browser, chain: Chain, width: int, media: str
) -> None:
    shown = browser.show(chain.report, width=width, media=media)
    assert (shown.console, shown.requests, shown.broken) == ([], [], [])
    assert shown.width == width


def test_the_report_of_a_trained_model_has_its_heat_on_every_picture(chain: Chain) -> None:
    page = Page(chain.report.read_text("utf-8"))
    alts = [attributes["alt"] for attributes in page.all("img")]
    heats = [alt for alt in alts if "with heat" in alt]
    assert len(heats) == len(alts) / 2 > 0
    assert "Pointing game" in page.words
