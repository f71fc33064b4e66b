"""The metadata files of NIH ChestX-ray14: the data entry table, the official lists, the boxes."""

import csv
import io
import math
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from cxr_spark.labels import canonical_label, split_finding_labels
from cxr_spark.listing import Box, SourceError

# The revised table comes first: NIH corrected ages and labels in it, so where a folder holds
# both files it speaks.
DATA_ENTRY_FILES: tuple[str, ...] = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
OFFICIAL_LISTS: dict[str, str] = {"train_val": "train_val_list.txt", "test": "test_list.txt"}
BOXES_FILE = "BBox_List_2017.csv"

MAX_AGE_YEARS = 120
"""Ages above are typing errors (the table has 148 to 414) and become null."""

_COLUMNS = (
    "Image Index",
    "Finding Labels",
    "Patient ID",
    "Patient Age",
    "Patient Gender",
    "View Position",
)
_AGE = re.compile(r"(\d{1,6})(?:\.\d*)?([YMWD]?)", re.IGNORECASE)
_UNITS_PER_YEAR = {"": 1, "Y": 1, "M": 12, "W": 52, "D": 365}


class Entry(NamedTuple):
    """What the NIH's files say of one image."""

    raw_labels: list[str]
    patient_id: str | None
    age_years: int | None
    sex: str | None
    view: str | None
    official_split: str | None
    boxes: list[Box]


def read_entries(root: str) -> dict[str, Entry]:
    """Reads the metadata files in the folder `root`.

    The lists and the boxes may be absent; then no image has an official split, or a box.

    Returns:
        An entry for each `Image Index` of the data entry table, in the table's order.

    Raises:
        SourceError: there is no data entry table, or a file is not what it has to be; the message
            names the file, the line and the column.
    """
    present = [name for name in DATA_ENTRY_FILES if os.path.isfile(os.path.join(root, name))]
    if not present:
        raise SourceError(
            f"{root}: no {' or '.join(reversed(DATA_ENTRY_FILES))} here. The NIH source is the "
            "folder that holds this table beside the images; give that one, or put the table there."
        )
    splits = _read_lists(root)
    boxes = _read_boxes(os.path.join(root, BOXES_FILE))
    return _read_table(os.path.join(root, present[0]), splits, boxes)


def _read_table(path: str, splits: dict[str, str], boxes: dict[str, list[Box]]) -> dict[str, Entry]:
    lines = csv_lines(path)
    _, header = next(lines, (1, []))
    names = [name.strip() for name in header]
    missing = [name for name in _COLUMNS if name not in names]
    if missing:
        raise SourceError(
            f"{path}, line 1: no column {', '.join(missing)}; the columns here are: "
            f"{', '.join(names) or 'none'}. Use the table as NIH or Kaggle publishes it."
        )
    places = [names.index(name) for name in _COLUMNS]
    entries: dict[str, Entry] = {}
    first_lines: dict[str, int] = {}
    for line, cells in lines:
        if len(cells) <= max(places):
            missing_name = next(
                name for name, at in zip(_COLUMNS, places, strict=True) if at >= len(cells)
            )
            raise SourceError(
                f"{path}, line {line}, column {missing_name}: the line ends before it; "
                "repair or remove the line."
            )
        image, findings, patient, age, sex, view = (cells[place].strip() for place in places)
        if not image:
            raise SourceError(f"{path}, line {line}, column Image Index: empty.")
        entry = Entry(
            raw_labels=split_finding_labels(findings),
            patient_id=_patient_id(patient),
            age_years=age_in_years(age),
            sex=sex.upper() if sex.upper() in ("F", "M") else None,
            view=view.upper() if view.upper() in ("AP", "PA") else None,
            official_split=splits.get(image),
            boxes=boxes.get(image, []),
        )
        if entries.setdefault(image, entry) != entry:
            raise SourceError(
                f"{path}, line {line}, column Image Index: {image} stands on line "
                f"{first_lines[image]} too, with other values; keep one of the two."
            )
        first_lines.setdefault(image, line)
    return entries


def _read_lists(root: str) -> dict[str, str]:
    splits: dict[str, str] = {}
    for split, name in OFFICIAL_LISTS.items():
        path = os.path.join(root, name)
        if not os.path.isfile(path):
            continue
        for line, text in enumerate(_text(path).splitlines(), start=1):
            image = text.strip()
            if image and splits.setdefault(image, split) != split:
                raise SourceError(
                    f"{path}, line {line}: {image} is in {OFFICIAL_LISTS[splits[image]]} too; "
                    "an image belongs to one of the official lists."
                )
    return splits


def _read_boxes(path: str) -> dict[str, list[Box]]:
    """Reads the boxes by place: the header `Bbox [x,y,w,h],,,` is unquoted and ragged."""
    boxes: dict[str, list[Box]] = {}
    if not os.path.isfile(path):
        return boxes
    lines = csv_lines(path)
    next(lines, None)
    for line, cells in lines:
        numbers = []
        for place, column in enumerate(("x", "y", "w", "h"), start=2):
            text = cells[place].strip() if place < len(cells) else ""
            number = _finite(text)
            if number is None:
                raise SourceError(
                    f"{path}, line {line}, column {column}: {text!r} is not a number of pixels; "
                    "expected: Image Index, Finding Label, x, y, w, h."
                )
            numbers.append(number)
        boxes.setdefault(cells[0].strip(), []).append(Box(canonical_label(cells[1]), *numbers))
    return boxes


def age_in_years(text: str) -> int | None:
    """Returns full years of `58`, `058Y`, `58.7`, `011M`, `001D`; None where it's no likely age."""
    match = _AGE.fullmatch(text.strip())
    if match is None:
        return None
    years = int(match[1]) // _UNITS_PER_YEAR[match[2].upper()]
    return years if years <= MAX_AGE_YEARS else None


def _patient_id(text: str) -> str | None:
    """Returns the id without padding, as only one of the table's forms pads it."""
    return (text.lstrip("0") or "0") if text.isdecimal() else text or None


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise SourceError(f"{path}: it can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(f"{path}, line {line}: not UTF-8 text; save it as UTF-8.") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise SourceError(f"{path}, line {line}: a NUL byte, which text never has; save it anew.")
    return text


def csv_lines(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the cells of each row of a CSV that has any, and the line where the row begins.

    Raises:
        SourceError: the file is no UTF-8 text, or no CSV; the message names the line.
    """
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise SourceError(f"{path}, line {line}: {error}.") from error
