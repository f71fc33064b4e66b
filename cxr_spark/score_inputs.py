"""What is to be scored, as a narrow Arrow table: curated images, folders, lists of paths."""

import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from cxr_spark import delta, tables
from cxr_spark.artifact import Card
from cxr_spark.listing import Found, ListedFile, listed_file, look_at, utf8
from cxr_spark.sources import list_folder
from cxr_spark.sources_nih import csv_lines
from cxr_spark.tables import Warehouse

# A file that changed less than this before the listing may still be written.
SETTLED_SECONDS = 3.0
PLACES = ("image_id", "path", "size_bytes", "modified_at")
MOMENT = pa.timestamp("us", "UTC")


class ScoreInputError(ValueError):
    """Something that can't be scored as asked; the message says what was expected."""


def listed_schema() -> pa.Schema:
    """The columns of what is listed.

    Those of predictions that are known before scoring, with images_version; `name`, as a
    submission calls the image; `part`, the Parquet file that has a curated image's pixels;
    `reason` and `detail` where listing showed that a file can't be read.
    """
    known = tables.arrow_schema("predictions", (*PLACES, "content_sha256", "images_version"))
    texts = ("name", "part", "reason", "detail")
    return pa.schema([*known, *(pa.field(name, pa.string()) for name in texts)])


def curated_images(
    warehouse: Warehouse, version: int, images_raw_version: int, *, split: str, card: Card
) -> pa.Table:
    """The images of a split (or `all`) at a version, in the order of image_id.

    Raises:
        ScoreInputError: they were preprocessed in another way than the model expects.
    """
    names = ("image_id", "content_sha256", "preprocessing")
    schema = tables.arrow_schema("images", names)
    parts = [schema.append(pa.field("part", pa.string())).empty_table()]
    for file in warehouse.files("images", version):
        if split in ("all", file.partition["split"]):
            rows = delta.read_part(file.path, schema)
            parts.append(rows.append_column("part", pa.array([file.path] * len(rows), pa.string())))
    images = pa.concat_tables(parts)
    _check_preprocessing(images, card)
    places = warehouse.read_arrow("images_raw", PLACES, images_raw_version)
    found = pc.index_in(images["image_id"], places["image_id"].combine_chunks())
    columns = {name: places[name].take(found) for name in PLACES[1:]}
    columns |= {name: images[name] for name in ("image_id", "content_sha256", "part")}
    columns |= {"name": images["image_id"], "images_version": pa.array([version] * len(images))}
    return _listed(columns).sort_by("image_id")


def _check_preprocessing(images: pa.Table, card: Card) -> None:
    found = images["preprocessing"].unique().to_pylist()
    if found and found != [card.preprocessing_fingerprint]:
        raise ScoreInputError(
            f"{card.model_version} expects images of preprocessing {card.preprocessing} and these "
            "have another; curate with the same --image-size, or train a model on these"
        )


def _listed(columns: dict[str, pa.Array | pa.ChunkedArray]) -> pa.Table:
    """A table of these columns, the others null."""
    schema, length = listed_schema(), len(next(iter(columns.values())))
    whole = [columns.get(f.name, pa.nulls(length, f.type)).cast(f.type) for f in schema]
    return pa.table(whole, schema)


def image_files(folders: Iterable[str | Path], lists: Iterable[str | Path]) -> pa.Table:
    """The files below folders and those that lists name.

    A file that is met again below another folder is left out. A list's rows all stay, also those
    that name a file once more: each has the name that the list has.

    Args:
        folders: nested ones too; `listing.walk` says what counts as an image.
        lists: Delta tables, Parquet files or folders, or CSV files, with a column `path`; paths
            are absolute or taken from the list's own folder.

    Raises:
        SourceError: a folder is missing or can't be listed, or a list is no CSV.
        ScoreInputError: a list can't be read, or has no column `path`.
    """
    below: dict[str, tuple[str, ListedFile]] = {}
    for folder in folders:
        root = os.path.abspath(folder)
        for file in list_folder(folder):
            below.setdefault(file.image_id, (os.path.relpath(file.path, root), file))
    named = []
    for place in lists:
        for name in _paths(place):
            file = _look(os.path.join(os.path.dirname(os.path.abspath(place)), name))
            named.append((utf8(name), file))
    names = ("image_id", "path", "size_bytes", "modified_at", "reason", "detail")
    rows = [
        {"name": name} | {column: getattr(file, column) for column in names}
        for name, file in [*below.values(), *named]
    ]
    return pa.Table.from_pylist(rows, listed_schema())


def _look(path: str) -> ListedFile:
    """Describes a file anywhere by one stat."""
    if "\0" in path:
        detail = "no file's name has a character 0"
        found = Found(path.lstrip("/"), reason="unreadable", detail=detail)
    else:
        found = look_at("/", os.path.normpath(path).lstrip("/"), "/")
    file = listed_file("file", "/", found)
    return file._replace(image_id=f"file:{file.path}")


def _paths(place: str | Path) -> list[str]:
    """The column `path` of a Delta table, a Parquet file or folder, or a CSV file."""
    try:
        if os.path.isdir(place) and delta.version(str(place)) is not None:
            _require_path(place, delta.table_schema(str(place)).names)
            rows = delta.read_arrow(str(place), pa.schema([("path", pa.string())]))
        elif str(place).lower().endswith(".csv"):
            return _csv_paths(place)
        else:
            data = ds.dataset(place, format="parquet")
            _require_path(place, data.schema.names)
            rows = data.to_table(columns=["path"])
    except (pa.ArrowException, OSError) as error:
        raise ScoreInputError(
            f"{place}: not readable as a Delta table, Parquet, or CSV (*.csv): {error}"
        ) from error
    paths = rows["path"].to_pylist()
    if not all(isinstance(path, str) and path for path in paths):
        raise ScoreInputError(f"{place}: the column path must be text, and never null or empty")
    return paths


def _csv_paths(place: str | Path) -> list[str]:
    lines = csv_lines(str(place))
    _, header = next(lines, (1, []))
    names = [name.strip() for name in header]
    _require_path(place, names)
    column = names.index("path")
    paths = []
    for line, cells in lines:
        if column >= len(cells) or not cells[column].strip():
            raise ScoreInputError(f"{place}, line {line}: no path")
        paths.append(cells[column])
    return paths


def _require_path(place: str | Path, names: Sequence[str]) -> None:
    if "path" not in names:
        raise ScoreInputError(
            f"{place}: no column path; the columns here are {', '.join(names) or 'none'}"
        )


def is_settled(listed: pa.Table, now: datetime) -> pa.Array:
    """Of each file whether it can be whole: false where it changed seconds before `now`."""
    a_moment = timedelta(seconds=SETTLED_SECONDS)
    after = pc.greater(listed["modified_at"], pa.scalar(now.astimezone(UTC) - a_moment, MOMENT))
    before = pc.less(listed["modified_at"], pa.scalar(now.astimezone(UTC) + a_moment, MOMENT))
    return pc.invert(pc.fill_null(pc.and_(after, before), False))
