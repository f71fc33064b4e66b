"""What lies in a folder, as rows: files are found by one stat each, and none is opened."""

import os
import re
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".dcm", ".dicom", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Microseconds since then, of the years 1 and 9999; a day less, as time zones may add one.
_EARLIEST, _LATEST = (
    (datetime(*day, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
    for day in ((1, 1, 2), (9999, 12, 31))
)
_UNDECODABLE = re.compile("[\udc80-\udcff]")
_FOLDER = "a folder or a link to one, which is not followed"
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class SourceError(ValueError):
    """A source's folder or one of its metadata files is not what it has to be."""


class Box(NamedTuple):
    """A finding's bounding box, in pixels of the original image."""

    label: str
    x: float
    y: float
    width: float
    height: float


class ListedFile(NamedTuple):
    """A file that a source lists, or that its metadata names; unknown is None.

    Attributes:
        image_id: `source:relative/path`, or `nih:Image Index` for a row without a file.
        source: name of the source.
        path: absolute path.
        size_bytes: size; None where there's no file to read.
        modified_at: modification time, UTC.
        raw_labels: findings, canonical where known, in the source's order.
        boxes: bounding boxes in pixels of the original.
        patient_id: the source's own, unique within the source; a pseudonym from a manifest.
        official_split: `train_val` or `test`, by NIH's lists.
        folder_split: `train`, `val` or `test`, by the folder's name or a manifest; not used.
        view: `AP` or `PA`.
        sex: `F` or `M`.
        age_years: full years.
        reason: why the file can't be used, as far as listing shows; None: it may be read.
        detail: the reason in words.
    """

    image_id: str
    source: str
    path: str
    size_bytes: int | None
    modified_at: datetime | None
    raw_labels: list[str]
    boxes: list[Box]
    patient_id: str | None = None
    official_split: str | None = None
    folder_split: str | None = None
    view: str | None = None
    sex: str | None = None
    age_years: int | None = None
    reason: str | None = None
    detail: str | None = None


class Found(NamedTuple):
    """What a path below a root leads to; `relative` is the path as it was found or named."""

    relative: str
    size_bytes: int | None = None
    modified_at: datetime | None = None
    reason: str | None = None
    detail: str | None = None


def listed_file(source: str, root: str, found: Found) -> ListedFile:
    """Makes the row of a file that nothing but its place is known of.

    Tables hold UTF-8, so a name in another encoding could not be opened by its stored path.
    """
    relative = utf8(found.relative)
    reason, detail = found.reason, found.detail and utf8(found.detail)
    if relative != found.relative and reason is None:
        reason, detail = "unreadable", "the file's name is not UTF-8; rename it"
    return ListedFile(
        image_id=f"{source}:{relative}",
        source=source,
        path=f"{root.rstrip('/')}/{relative}",
        size_bytes=found.size_bytes,
        modified_at=found.modified_at,
        raw_labels=[],
        boxes=[],
        reason=reason,
        detail=detail,
    )


def utf8(text: str) -> str:
    """Writes undecodable bytes as `//xff`: no real path has `//`, so no two names become one."""
    return _UNDECODABLE.sub(lambda match: f"//x{ord(match[0]) - 0xDC00:02x}", text)


def leads_out(path: str) -> bool:
    """Tells whether a path that metadata names is absolute, a URL, or climbs above the root."""
    climbs = os.path.normpath(path).split("/")[0] == ".."
    return climbs or path.startswith("/") or _URL.match(path) is not None


def walk(root: str) -> Iterator[Found]:
    """Yields what lies below the root and is named like an image, in no particular order.

    A file is named like an image if it has an image's suffix, in any case, or none; a number
    after a dot is none, as DICOM files are often named by their UID. Hidden files and folders
    are passed over, but AppleDouble files (`._*`) are not, as archives unpacked elsewhere are full
    of them under the images' names. Links are not followed out of the root, and linked folders not
    at all: each is yielded with a reason.

    Raises:
        SourceError: the root can't be listed.
    """
    real_root = os.path.realpath(root)
    folders = [""]
    while folders:
        prefix = folders.pop()
        try:
            with os.scandir(os.path.join(root, prefix)) as scan:
                entries = list(scan)
        except OSError as error:
            detail = f"the folder cannot be listed: {error.strerror}"
            if not prefix:
                raise SourceError(f"{root}: {detail}; check its permissions.") from error
            yield Found(prefix.rstrip("/"), reason="unreadable", detail=detail)
            continue
        for entry in entries:
            if entry.name.startswith(".") and not entry.name.startswith("._"):
                continue
            relative = prefix + entry.name
            if entry.is_symlink():
                if os.path.isdir(entry.path) or _named_like_image(entry.name):
                    yield look_at(root, relative, real_root)
            elif entry.is_dir(follow_symlinks=False) and not _has_image_suffix(entry.name):
                folders.append(f"{relative}/")
            elif _named_like_image(entry.name):
                yield _found(entry.path, relative)


def look_at(root: str, relative: str, real_root: str) -> Found:
    """Describes what a path below the root leads to, where links may be on the way."""
    path = os.path.join(root, relative)
    target = os.path.realpath(path)
    if os.path.commonpath([real_root, target]) != real_root:
        return Found(relative, reason="outside_root", detail=f"a link to {target}")
    return _found(path, relative)


def _found(path: str, relative: str) -> Found:
    """Describes what is at a path by one stat."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return Found(relative, reason="missing_file", detail="not there, or a link to nothing")
    except OSError as error:
        return Found(relative, reason="unreadable", detail=f"no access: {error.strerror}")
    if stat.S_ISDIR(status.st_mode):
        return Found(relative, reason="not_a_file", detail=_FOLDER)
    if not stat.S_ISREG(status.st_mode):
        return Found(relative, reason="not_a_file", detail="a pipe, socket or device")
    return Found(relative, status.st_size, _modified_at(status.st_mtime_ns))


def _modified_at(nanoseconds: int) -> datetime:
    """The moment to the microsecond, or the nearest that can be told: some clocks are far off."""
    since = min(max(nanoseconds // 1000, _EARLIEST), _LATEST)
    return _EPOCH + timedelta(microseconds=since)


def _has_image_suffix(file_name: str) -> bool:
    return os.path.splitext(file_name)[1].lower() in IMAGE_SUFFIXES


def _named_like_image(file_name: str) -> bool:
    suffix = os.path.splitext(file_name)[1]
    return not suffix or suffix[1:].isdecimal() or _has_image_suffix(file_name)
