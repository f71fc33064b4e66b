"""The HTML report: nothing from outside, everything escaped, the right pictures and figures."""

import base64
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

from cxr_spark import metrics, report
from cxr_spark.figures import Evaluation, ScoredRows, figures_of
from cxr_spark.labels import CLASSES
from cxr_spark.tables import Warehouse

EVIL = "nih:<script>alert(1)</script>.png"
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
# HTML's elements without an end, and those of SVG that the page writes as <.../>.
VOID = {"meta", "img", "br", "rect", "line", "path"}


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
    figures = figures_of(rows, train_counts, counts)
    return Evaluation(model, "test", 3, 5, rows, figures, counts)


def page_of(given: Evaluation) -> str:
    shown = [*report.confident_mistakes(given.rows), *report.clear_hits(given.rows)]
    pixels = np.arange(64, dtype=np.uint8).tobytes()
    thumbnails = {picture.image_id: report.thumbnail(pixels, 8) for picture in shown}
    return report.render(given, thumbnails, made_at=NOW)


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
                assert value.startswith("data:image/png;base64,")
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
    assert len(images) == 2 + 9
    for attributes in images:
        encoded = attributes["src"].removeprefix("data:image/png;base64,")
        picture = Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)))
        assert picture.size == (8, 8)
        assert "labelled" in attributes["alt"]
    for attributes in page.all("svg"):
        assert attributes["role"] == "img"
        assert attributes["aria-label"]


def test_every_table_has_a_caption_and_scoped_headings(page: Page) -> None:
    tags = [tag for tag, _ in page.elements]
    assert tags.count("table") == tags.count("caption") == 4
    assert {attributes.get("scope") for attributes in page.all("th")} == {"col", "row"}


def test_the_headline_stands_beside_both_baselines_and_the_share_of_the_source() -> None:
    given = evaluation()
    page = Page(page_of(given))
    for name in ("cce", "cce_prior", "cce_source_only"):
        assert f"{given.value(name):.3f}" in page.words
    low, high = given.figure("cce")[4:6]
    assert f"95 % interval {low:.3f} to {high:.3f}" in page.words
    # There is one source, so it tells as much as the prior: nothing of the gain.
    assert "Knowing the source alone gives 0 % of the model" in page.words
    assert "Not a medical device" in page.words


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
    panels = report.roc_panels(evaluation(labels=[0, 1, 2] * 5).rows)
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


def test_a_thumbnail_is_the_pixels_and_large_ones_shrink() -> None:
    pixels = np.arange(64, dtype=np.uint8)
    uri = report.thumbnail(pixels.tobytes(), 8)
    shown = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    np.testing.assert_array_equal(np.asarray(shown).ravel(), pixels)
    large = report.thumbnail(bytes(320 * 320), 320)
    assert Image.open(io.BytesIO(base64.b64decode(large.split(",")[1]))).size == (160, 160)


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
    found = report.read_thumbnails(spark, warehouse, evaluation(), [EVIL])
    assert list(found) == [EVIL]
    shown = Image.open(io.BytesIO(base64.b64decode(found[EVIL].split(",")[1])))
    assert np.asarray(shown).max() == 0


def test_the_file_appears_whole_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = evaluation()
    uri = report.thumbnail(bytes(64), 8)
    monkeypatch.setattr(
        report, "read_thumbnails", lambda *_: dict.fromkeys(given.rows.image_id, uri)
    )
    path = tmp_path / "new" / "report.html"
    report.write(None, Warehouse(tmp_path / "warehouse"), given, path)  # type: ignore[arg-type]
    assert path.read_text("utf-8").endswith("</html>")
    path.write_text("the old one")

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        report.write(None, Warehouse(tmp_path / "warehouse"), given, path)  # type: ignore[arg-type]
    assert [file.read_text("utf-8") for file in path.parent.iterdir()] == ["the old one"]


def test_a_place_that_can_hold_no_report_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(report.ReportError, match=r"this is a folder; name a file"):
        report.target(tmp_path)
    with pytest.raises(report.ReportError, match="file isn't a folder"):
        report.target(file / "report.html")
    assert report.target(tmp_path / "a" / "b.html") == tmp_path / "a" / "b.html"
    assert not (tmp_path / "a").exists()
