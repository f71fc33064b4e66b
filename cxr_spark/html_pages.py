"""What the HTML reports share: where they go, how they are written, how a picture gets into one."""

import base64
import io
import os
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from cxr_spark.whole_files import replaced

THUMBNAIL_SIDE = 160
UNKNOWN = "\N{EN DASH}"


class PageError(ValueError):
    """The page can't be written where it was asked for."""


def target(path: str | Path) -> Path:
    """The absolute path of a page to be written, checked before any work is done.

    Raises:
        PageError: a folder is there, or what should be its folder is none.
    """
    place = Path(path).absolute()
    if place.is_dir():
        raise PageError(f"--report {path}: this is a folder; name a file, as {place}/report.html")
    existing = next(folder for folder in place.parents if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise PageError(f"--report {path}: {existing} isn't a folder that can be written to")
    return place


def write(path: Path, page: str) -> None:
    """Write a page; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as file:
        file.write(page.encode())


def environment() -> Environment:
    """Templates of the package; every text is escaped, and what isn't known is a dash."""
    pages = Environment(
        loader=PackageLoader("cxr_spark"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: UNKNOWN if value is None else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {"thousands": lambda number: f"{number:,}", "percent": percent}
    return pages


def percent(share: float | None, digits: int = 0) -> str:
    """A share in percent, kept on one line."""
    if share is None or np.isnan(share):
        return UNKNOWN
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def thumbnail(pixels: bytes) -> str:
    """A PNG data URI of a square of uint8 grey pixels (row-major), at most 160 px a side."""
    side = int(np.sqrt(len(pixels)))
    picture = Image.fromarray(np.frombuffer(pixels, dtype=np.uint8).reshape(side, side))
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    png = io.BytesIO()
    picture.save(png, format="PNG", optimize=True)
    return data_uri(png.getvalue())


def data_uri(png: bytes) -> str:
    """A PNG as the source of an image in a page."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
