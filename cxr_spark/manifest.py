"""A hospital's own images: a CSV or Parquet file names them, with labels and what else is known."""

import os
import re
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from cxr_spark.labels import SOURCES, split_finding_labels
from cxr_spark.listing import Found, ListedFile, SourceError, leads_out, listed_file, look_at, utf8
from cxr_spark.pseudonyms import pseudonym_if_known
from cxr_spark.sources_nih import age_in_years, csv_lines

REQUIRED = ("path", "label")
COLUMNS = (*REQUIRED, "patient_id", "view", "sex", "age", "split")
SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_TAKEN = (*SOURCES, "file")  # `file:` is how scoring names the files of a folder
_WHOLE_FLOAT = re.compile(r"(\d+)\.0")
_EXPECTED = (
    f"Give a Parquet file, or a CSV file with commas, that has the columns {', '.join(REQUIRED)} "
    f"and, where known, {', '.join(COLUMNS[len(REQUIRED) :])}."
)

_Cells = dict[str, str]


def manifest_argument(text: str) -> tuple[str, str]:
    """Parses `NAME=FILE`.

    Raises:
        SourceError: it's not of this form, or the name can't be a source's.
    """
    name, equals, file = text.partition("=")
    if not (equals and file):
        raise SourceError(f"{text}: expected NAME=FILE, as in hospital=/data/images.csv")
    _check_name(name)
    return name, file


def parse_manifests(texts: Sequence[str]) -> dict[str, str]:
    """Parses several `NAME=FILE`; the files by name.

    Raises:
        SourceError: as `manifest_argument`, or a name is given twice.
    """
    manifests: dict[str, str] = {}
    for name, file in map(manifest_argument, texts):
        if manifests.setdefault(name, file) != file:
            raise SourceError(f"{name}: two manifests have this name; give each its own.")
    return manifests


def list_manifest(name: str, file: str | os.PathLike[str], salt: bytes) -> Iterator[ListedFile]:
    """Lists the files that a manifest names, without opening them.

    The columns are `COLUMNS`, of which `REQUIRED` must be there; others are ignored. A path is
    taken from the manifest's folder: one that leads out of it, or to no file, is a row with a
    reason. `label` may hold several findings, as in `Edema|Mass`. `split` is recorded and not used.

    Args:
        name: the source that the images form; no name of a public source.
        file: the manifest, as CSV in UTF-8 or as Parquet.
        salt: makes pseudonyms of the patients' ids; the ids themselves go nowhere.

    Returns:
        The files in the order of `image_id`, which is `name:path as listed`.

    Raises:
        SourceError: the name can't be a source's, or the file is not what it has to be; the
            message names the file and the line.
    """
    _check_name(name)
    manifest = _manifest_path(file)
    root = os.path.dirname(manifest)
    real_root = os.path.realpath(root)
    listed: dict[str, tuple[str, ListedFile]] = {}
    for where, cells in _rows(manifest):
        path = cells["path"]
        if not path.strip() or "\0" in path:
            raise SourceError(f"{manifest}, {where}, column path: {path!r} is no path.")
        row = _with_cells(listed_file(name, root, _look(root, path, real_root)), cells, salt)
        first, first_row = listed.setdefault(path, (where, row))
        if row != first_row:
            raise SourceError(
                f"{manifest}, {where}: {path} stands on {first} too, with other values; "
                "keep one of the two."
            )
    if not listed:
        raise SourceError(f"{manifest}: no row below the header; a manifest names some images.")
    return iter(sorted((row for _, row in listed.values()), key=lambda row: row.image_id))


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name in _TAKEN:
        raise SourceError(
            f"{name!r} can't be a manifest's name: a lower-case letter, then at most 31 letters, "
            f"digits and _, and none of {', '.join(_TAKEN)}."
        )


def _manifest_path(file: str | os.PathLike[str]) -> str:
    manifest = os.path.abspath(file)
    if utf8(manifest) != manifest:
        raise SourceError(f"{utf8(manifest)}: the name is not UTF-8; rename it.")
    if not os.path.isfile(manifest):
        what = "not a file" if os.path.exists(manifest) else "no such file"
        raise SourceError(f"{manifest}: {what}. {_EXPECTED}")
    return manifest


def _look(root: str, path: str, real_root: str) -> Found:
    if leads_out(path):
        detail = "the manifest names a path that leads out of its folder"
        return Found(path, reason="outside_root", detail=detail)
    return look_at(root, path, real_root)


def _with_cells(file: ListedFile, cells: _Cells, salt: bytes) -> ListedFile:
    known = {column: text.strip() for column, text in cells.items()}
    patient = _WHOLE_FLOAT.sub(r"\1", known["patient_id"])
    view, split = known["view"].upper(), known["split"].lower()
    return file._replace(
        raw_labels=split_finding_labels(known["label"]),
        patient_id=pseudonym_if_known(patient, salt),
        view=view if view in ("AP", "PA") else None,
        sex=SEXES.get(known["sex"].lower()),
        age_years=age_in_years(known["age"]),
        folder_split=split if split in ("train", "val", "test") else None,
    )


def _rows(manifest: str) -> Iterator[tuple[str, _Cells]]:
    """Yields where each row stands, and its cells by column; "" is unknown."""
    with open(manifest, "rb") as file:
        is_parquet = manifest.lower().endswith((".parquet", ".pq")) or file.read(4) == b"PAR1"
    return _parquet_rows(manifest) if is_parquet else _csv_rows(manifest)


def _csv_rows(manifest: str) -> Iterator[tuple[str, _Cells]]:
    lines = csv_lines(manifest)
    _, header = next(lines, (1, []))
    places = _places(manifest, header)
    for line, cells in lines:
        if len(cells) <= max(places[column] for column in REQUIRED):
            raise SourceError(f"{manifest}, line {line}: it ends before path and label.")
        if any(cell.strip() for cell in cells[len(header) :]):
            raise SourceError(
                f"{manifest}, line {line}: more cells than the header has columns; "
                "a comma inside a value needs quotes around it."
            )
        found = {column: place for column, place in places.items() if place < len(cells)}
        yield f"line {line}", _cells({column: cells[place] for column, place in found.items()})


def _parquet_rows(manifest: str) -> Iterator[tuple[str, _Cells]]:
    number = 0
    try:
        content = pq.ParquetFile(manifest)
        schema = content.schema_arrow
        places = _places(manifest, schema.names)
        for column, place in places.items():
            if pa.types.is_nested(schema.field(place).type):
                kind = schema.field(place).type
                raise SourceError(f"{manifest}, column {column}: {kind} is neither text nor number")
        for batch in content.iter_batches(columns=[schema.names[at] for at in places.values()]):
            columns = [batch.column(schema.names[at]).to_pylist() for at in places.values()]
            for values in zip(*columns, strict=True):
                number += 1
                texts = map(_text, values)
                yield f"row {number}", _cells(dict(zip(places, texts, strict=True)))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{manifest}: not readable as Parquet: {error}") from error


def _cells(known: _Cells) -> _Cells:
    return dict.fromkeys(COLUMNS, "") | known


def _text(value: object) -> str:
    """Writes a value as a CSV would; pandas makes floats of whole numbers beside unknown ones."""
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value.decode() if isinstance(value, bytes) else str(value)


def _places(manifest: str, header: Sequence[str]) -> dict[str, int]:
    """Finds the columns by their names, forgiving case and surrounding space."""
    names = [name.strip().lower() for name in header]
    missing = [column for column in REQUIRED if column not in names]
    if missing:
        raise SourceError(
            f"{manifest}: no column {', '.join(missing)}; the columns here are: "
            f"{', '.join(header) or 'none'}. {_EXPECTED}"
        )
    twice = [column for column in COLUMNS if names.count(column) > 1]
    if twice:
        raise SourceError(f"{manifest}: two columns are named {twice[0]}; rename one of them.")
    return {column: names.index(column) for column in COLUMNS if column in names}
