"""Pages: written whole or not at all, in a place that can hold them, with pictures inside."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxr_spark import html_pages


def picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1], validate=True)))


def test_a_thumbnail_is_the_pixels_and_large_ones_shrink() -> None:
    pixels = np.arange(64, dtype=np.uint8)
    shown = picture(html_pages.thumbnail(pixels.tobytes()))
    np.testing.assert_array_equal(np.asarray(shown).ravel(), pixels)
    assert picture(html_pages.thumbnail(bytes(320 * 320))).size == (160, 160)


def test_a_page_appears_whole_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "page.html"
    html_pages.write(path, "the old one")

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        html_pages.write(path, "the new one")
    assert [file.read_text("utf-8") for file in path.parent.iterdir()] == ["the old one"]


def test_a_place_that_can_hold_no_page_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(html_pages.PageError, match=r"this is a folder; name a file"):
        html_pages.target(tmp_path)
    with pytest.raises(html_pages.PageError, match="file isn't a folder"):
        html_pages.target(file / "report.html")
    assert html_pages.target(tmp_path / "a" / "b.html") == tmp_path / "a" / "b.html"
    assert not (tmp_path / "a").exists()


def test_templates_escape_texts_and_show_a_dash_for_what_is_not_known() -> None:
    template = html_pages.environment().from_string("{{ a }}|{{ b }}|{{ c | percent(1) }}")
    shown = template.render(a="<b>", b=None, c=0.1234)
    assert shown == "&lt;b&gt;|\N{EN DASH}|12.3\N{NO-BREAK SPACE}%"
    assert html_pages.percent(float("nan")) == html_pages.percent(None) == "\N{EN DASH}"
