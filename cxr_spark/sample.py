"""Draws synthetic chest radiographs in the layouts of the four sources, with the sources' traps."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import cv2
import numpy as np
from PIL import Image

from cxr_spark import phantom
from cxr_spark import sample_layouts as layouts
from cxr_spark.phantom import FindingBox
from cxr_spark.sample_layouts import NihImage, Picture
from cxr_spark.sample_traps import set_traps

Progress = Callable[[int, int, str], None]

_SHEETS = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_CONTENT = "application/vnd.openxmlformats"
_WORKBOOK_PARTS = {
    "[Content_Types].xml": (
        f'<Types xmlns="{_PACKAGE}/content-types">'
        f'<Default Extension="rels" ContentType="{_CONTENT}-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" '
        f'ContentType="{_CONTENT}-officedocument.spreadsheetml.sheet.main+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet1.xml" '
        f'ContentType="{_CONTENT}-officedocument.spreadsheetml.worksheet+xml"/></Types>'
    ),
    "_rels/.rels": (
        f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="rId1" '
        f'Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>'
    ),
    "xl/workbook.xml": (
        f'<workbook xmlns="{_SHEETS}" xmlns:r="{_OFFICE}"><sheets>'
        f'<sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>'
    ),
    "xl/_rels/workbook.xml.rels": (
        f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="rId1" '
        f'Type="{_OFFICE}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>'
    ),
}

NIH_COLUMNS = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
# Detectors of the time: width, height, pixel spacing.
NIH_DETECTORS = ("2500,2048,0.168,0.168", "2992,2991,0.143,0.143", "3056,2544,0.139,0.139")


class SampleError(ValueError):
    """What was asked for can't be drawn; nothing has been written."""


class Sample(NamedTuple):
    """What was written.

    Attributes:
        files: image files by source, traps and AppleDouble files included.
        rejects: what curation with its default selection rejects, by reason; the files and the
            table rows without a file, less these, are images_per_class of each class.
    """

    files: dict[str, int]
    rejects: dict[str, int]


def write_sample(
    out: str | os.PathLike[str],
    images_per_class: int = 40,
    seed: int = 0,
    *,
    canvas: int = phantom.CANVAS,
    progress: Progress | None = None,
) -> Sample:
    """Write the folders nih, covid, pneumonia and tuberculosis below `out`.

    The pictures are drawn by as many processes as there are cores. `out` appears when everything
    is there: it's built beside its place and renamed.

    Args:
        out: a folder that doesn't exist yet, or is empty.
        images_per_class: how many images of each of the nine classes curation will keep.
        seed: the same one gives the same bytes in every file.
        canvas: pixels a side that pictures are drawn at before they're brought to their sizes.
        progress: called with pictures done, pictures in all, and "images".

    Raises:
        SampleError: `out` is in use, or a number is out of range.
    """
    if images_per_class < 1 or seed < 0:
        raise SampleError(
            f"expected at least 1 image a class and a seed of at least 0, "
            f"not {images_per_class} and {seed}"
        )
    with _staged(Path(os.path.abspath(out))) as folder:
        rng = np.random.default_rng([seed])
        images = layouts.nih_images(images_per_class, rng)
        pictures = layouts.all_pictures(images, images_per_class, rng)
        boxes = _draw_all(folder, pictures, seed, canvas, progress)
        _write_nih_tables(folder / "nih", images, boxes, rng)
        for name in ("Normal", "Tuberculosis"):
            _write_workbook(folder / layouts.TB_FOLDER, name)
        rejects = set_traps(folder, images, pictures)
        suffixes = {".png", ".jpg", ".jpeg"}
        files = Counter(
            path.relative_to(folder).parts[0]
            for path in folder.rglob("*")
            if path.suffix in suffixes
        )
    return Sample(dict(files), rejects)


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A folder to build in that becomes `out` at the end, or goes if anything fails."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SampleError(f"{out}: expected a folder that doesn't exist yet or is empty")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise SampleError(f"{out}: no folder can be made here: {error.strerror}") from error
    try:
        yield folder
        folder.chmod(0o755)
        folder.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _draw_all(
    folder: Path,
    pictures: Sequence[Picture],
    seed: int,
    canvas: int,
    progress: Progress | None,
) -> dict[str, list[FindingBox]]:
    """Draw and write the pictures on all cores; their boxes by path."""
    for parent in {(folder / picture.path).parent for picture in pictures}:
        parent.mkdir(parents=True, exist_ok=True)
    draw = partial(draw_picture, folder, seed=seed, canvas=canvas)
    boxes: dict[str, list[FindingBox]] = {}
    # spawn: the caller may have threads, a JVM's among them, which don't survive a fork.
    cores = min(len(os.sched_getaffinity(0)), len(pictures))
    with multiprocessing.get_context("spawn").Pool(cores, _start_worker) as pool:
        for done, (path, found) in enumerate(pool.imap_unordered(draw, pictures, chunksize=4), 1):
            boxes[path] = found
            if progress is not None:
                progress(done, len(pictures), "images")
    return boxes


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    cv2.setNumThreads(1)


def draw_picture(
    folder: Path, picture: Picture, seed: int, canvas: int
) -> tuple[str, list[FindingBox]]:
    """Draw a picture and write it below a folder; its path there and its boxes.

    All sources go this way, drawn on one canvas and then resized, so that nothing tells them apart.
    """
    drawn = phantom.draw(picture.findings, (seed, picture.number), canvas)
    pixels, size = drawn.pixels, (picture.side, picture.side)
    if picture.side != canvas:
        enlarging = picture.side > canvas
        way = cv2.INTER_CUBIC if enlarging else cv2.INTER_AREA
        pixels = cv2.resize(pixels, size, interpolation=way).astype(np.uint8)
    image = Image.fromarray(pixels).convert(picture.mode)
    image.save(folder / picture.path, picture.format, compress_level=1, quality=92)
    return picture.path, drawn.boxes


def _write_nih_tables(
    folder: Path,
    images: Sequence[NihImage],
    boxes: Mapping[str, list[FindingBox]],
    rng: np.random.Generator,
) -> None:
    """Write the data entry table, the official lists and the bounding boxes."""
    lines = [NIH_COLUMNS]
    for image in images:
        labels, detector = "|".join(image.findings), rng.choice(NIH_DETECTORS)
        lines.append(
            f"{image.name},{labels},{image.follow_up},{image.patient},{image.age},{image.sex},"
            f"{image.view},{detector},"
        )
    (folder / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")
    for split in ("train_val", "test"):
        names = [image.name for image in images if image.official_split == split]
        (folder / f"{split}_list.txt").write_text("\n".join(names))
    lines = ["Image Index,Finding Label,Bbox [x,y,w,h],,,"]
    listed = {image.name for image in images}
    for path, found in sorted(boxes.items()):
        if Path(path).name in listed:
            lines += [_box_line(Path(path).name, box) for box in found]
    (folder / "BBox_List_2017.csv").write_text("\n".join(lines) + "\n")


def _box_line(name: str, box: FindingBox) -> str:
    pixels = (f"{layouts.NIH_SIDE * part:.4f}" for part in box[1:])
    return ",".join((name, box.label, *pixels))


def _write_workbook(folder: Path, name: str) -> None:
    """Write <name>.metadata.xlsx about the images in the folder <name>."""
    stems = sorted((path.stem for path in (folder / name).iterdir()), key=lambda s: (len(s), s))
    rows = [("FILE NAME", "FORMAT", "SIZE", "URL")]
    rows += [(stem, "PNG", "512*512", "drawn by cxr_spark") for stem in stems]
    cells = "".join(
        "<row>"
        + "".join(f'<c t="inlineStr"><is><t>{escape(cell)}</t></is></c>' for cell in row)
        + "</row>"
        for row in rows
    )
    parts = _WORKBOOK_PARTS | {
        "xl/worksheets/sheet1.xml": (
            f'<worksheet xmlns="{_SHEETS}"><sheetData>{cells}</sheetData></worksheet>'
        )
    }
    with zipfile.ZipFile(folder / f"{name}.metadata.xlsx", "w", zipfile.ZIP_DEFLATED) as book:
        for part, text in parts.items():
            entry = zipfile.ZipInfo(part)  # dated 1980: the same bytes each time
            entry.compress_type = zipfile.ZIP_DEFLATED
            book.writestr(entry, f'<?xml version="1.0" encoding="UTF-8"?>{text}')
