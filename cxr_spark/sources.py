"""The four public sources: a folder as downloaded in, one row for each file that it lists out."""

import os
import re
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from cxr_spark import sources_nih
from cxr_spark.labels import SOURCES, canonical_label
from cxr_spark.sources_nih import Box, SourceError

__all__ = ["Box", "ListedFile", "SourceError", "list_source"]

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".dcm", ".dicom", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
)
SPLIT_FOLDERS = frozenset(("train", "val", "test"))
LAYOUTS: dict[str, str] = {
    "nih": "Data_Entry_2017.csv beside images_001/images/*.png",
    "pneumonia": "chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg",
    "tuberculosis": "TB_Chest_Radiography_Database/{Normal,Tuberculosis}/*.png",
    "covid": "{train,val,test}/{COVID19,NORMAL,PNEUMONIA,TURBERCULOSIS}/*.jpg",
}
FOLDER_LABELS: dict[str, frozenset[str]] = {
    "pneumonia": frozenset(("No Finding", "Pneumonia")),
    "tuberculosis": frozenset(("No Finding", "Tuberculosis")),
    "covid": frozenset(("Covid", "No Finding", "Pneumonia", "Tuberculosis")),
}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNDECODABLE = re.compile("[\udc80-\udcff]")
# (subtype, number) is the patient: `person12` alone is two children, one with bacteria, one virus.
_PNEUMONIA_PATIENT = re.compile(r"person(\d+)_(bacteria|virus)_", re.IGNORECASE)
_NORMAL_PATIENT = re.compile(r"((?:NORMAL\d+-)?IM-\d+)-", re.IGNORECASE)


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
        patient_id: the source's own, unique within the source.
        official_split: `train_val` or `test`, by NIH's lists.
        folder_split: `train`, `val` or `test`, by the folder's name.
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


class _Found(NamedTuple):
    """A file below a root; `relative` is its path from there as the system gives it."""

    relative: str
    size_bytes: int | None = None
    modified_at: datetime | None = None
    reason: str | None = None
    detail: str | None = None


def list_source(name: str, root: str | os.PathLike[str]) -> Iterator[ListedFile]:
    """Lists a source: every file named like an image, and every metadata row.

    A file is named like an image if it has an image's suffix, in any case, or none. Hidden files
    and folders are not listed, but AppleDouble files (`._*`) are, as archives unpacked elsewhere
    are full of them under the images' names. No file is opened; links are not followed out of the
    root, and linked folders not at all: each is a row with a reason.

    Args:
        name: one of `labels.SOURCES`.
        root: the source's folder, whole or partial, as unpacked or flattened.

    Returns:
        The files in the order of `image_id`.

    Raises:
        SourceError: the name is unknown, or the folder or its metadata is not what it has to be.
    """
    if name not in SOURCES:
        raise SourceError(f"{name}: no such source; the sources are {', '.join(SOURCES)}.")
    folder = os.path.abspath(root)
    layout = f"Expected for {name}: {LAYOUTS[name]}."
    if not os.path.isdir(folder):
        what = "not a folder" if os.path.exists(folder) else "no such folder"
        raise SourceError(f"{folder}: {what}. {layout} Give the folder that holds this.")
    if _UNDECODABLE.search(folder):
        raise SourceError(f"{_utf8(folder)}: the folder's name is not UTF-8; rename it.")
    listed = _list_nih(folder) if name == "nih" else _list_folders(name, folder)
    if name != "nih" and not any(FOLDER_LABELS[name].intersection(f.raw_labels) for f in listed):
        raise SourceError(
            f"{folder}: no image in a folder of this source. {layout} "
            "Give the folder that holds this, unpacked."
        )
    return iter(sorted(listed, key=lambda file: file.image_id))


def list_folder(root: str | os.PathLike[str]) -> Iterator[ListedFile]:
    """Lists the files of any folder that are named like an image, nested ones too, as `file:PATH`.

    Raises:
        SourceError: there is no such folder, or it can't be listed.
    """
    folder = os.path.abspath(root)
    if not os.path.isdir(folder):
        what = "not a folder" if os.path.exists(folder) else "no such folder"
        raise SourceError(f"{folder}: {what}. Give a folder of image files.")
    listed = (_listed("file", folder, found) for found in _walk(folder))
    named = (file._replace(image_id=f"file:{file.path}") for file in listed)
    return iter(sorted(named, key=lambda file: file.image_id))


def _list_nih(root: str) -> list[ListedFile]:
    entries = sources_nih.read_entries(root)
    listed = []
    unseen = dict(entries)
    for found in _walk(root):
        image = found.relative if found.relative in entries else os.path.basename(found.relative)
        entry = entries.get(image)
        unseen.pop(image, None)
        if entry is None and found.reason is None:
            found = found._replace(
                reason="not_in_manifest", detail="no row in the data entry table"
            )
        listed.append(_with_entry(_listed("nih", root, found), entry))
    for image, entry in unseen.items():
        leaves = image.startswith("/") or "://" in image or ".." in image.split("/")
        reason = "outside_root" if leaves else "missing_file"
        detail = "the data entry table names a file that is not in the folder"
        missing = _Found(image, reason=reason, detail=detail)
        listed.append(_with_entry(_listed("nih", root, missing), entry))
    return listed


def _with_entry(file: ListedFile, entry: sources_nih.Entry | None) -> ListedFile:
    return file if entry is None else file._replace(**entry._asdict())


def _list_folders(source: str, root: str) -> list[ListedFile]:
    """Lists a source whose folders say label and split: the last two above a file count."""
    listed = []
    for found in _walk(root):
        *folders, file_name = found.relative.split("/")
        split = folders[-2].lower() if len(folders) > 1 else None
        file = _listed(source, root, found)._replace(
            raw_labels=[canonical_label(_utf8(folder)) for folder in folders[-1:]],
            folder_split=split if split in SPLIT_FOLDERS else None,
            patient_id=_pneumonia_patient(file_name) if source == "pneumonia" else None,
        )
        listed.append(file)
    return listed


def _pneumonia_patient(file_name: str) -> str | None:
    if match := _PNEUMONIA_PATIENT.match(file_name):
        return f"{match[2].lower()}{int(match[1])}"
    match = _NORMAL_PATIENT.match(file_name)
    return match[1].upper() if match else None


def _listed(source: str, root: str, found: _Found) -> ListedFile:
    """Makes the row of a file that nothing but its place is known of.

    Tables hold UTF-8, so a name in another encoding could not be opened by its stored path.
    """
    relative = _utf8(found.relative)
    reason, detail = found.reason, found.detail and _utf8(found.detail)
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


def _utf8(text: str) -> str:
    """Writes undecodable bytes as `//xff`: no real path has `//`, so no two names become one."""
    return _UNDECODABLE.sub(lambda match: f"//x{ord(match[0]) - 0xDC00:02x}", text)


def _walk(root: str) -> Iterator[_Found]:
    """Yields what lies below the root and is named like an image, in no particular order."""
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
            yield _Found(prefix.rstrip("/"), reason="unreadable", detail=detail)
            continue
        for entry in entries:
            if entry.name.startswith(".") and not entry.name.startswith("._"):
                continue
            if entry.is_symlink():
                found = _linked(entry, prefix + entry.name, real_root)
            elif not entry.is_dir(follow_symlinks=False):
                found = _found(entry, prefix + entry.name)
            elif _suffix(entry.name) in IMAGE_SUFFIXES:
                detail = "a folder named like an image, whose content is not listed"
                found = _Found(prefix + entry.name, reason="not_a_file", detail=detail)
            else:
                folders.append(f"{prefix}{entry.name}/")
                continue
            if found is not None:
                yield found


def _found(entry: os.DirEntry[str], relative: str) -> _Found | None:
    """Describes what is no folder, by one stat; None if it isn't named like an image."""
    if not _named_like_image(entry.name):
        return None
    try:
        status = entry.stat()
    except FileNotFoundError:
        return _Found(relative, reason="missing_file", detail="gone, or a link to nothing")
    except OSError as error:
        return _Found(relative, reason="unreadable", detail=f"no access: {error.strerror}")
    if not stat.S_ISREG(status.st_mode):
        return _Found(relative, reason="not_a_file", detail="a pipe, socket or device")
    return _Found(relative, status.st_size, _modified_at(status.st_mtime_ns))


def _linked(entry: os.DirEntry[str], relative: str, real_root: str) -> _Found | None:
    target = os.path.realpath(entry.path)
    is_folder = os.path.isdir(target)
    if os.path.commonpath([real_root, target]) != real_root:
        if is_folder or _named_like_image(entry.name):
            return _Found(relative, reason="outside_root", detail=f"a link to {target}")
        return None
    if is_folder:
        detail = "a link to a folder, which is not followed"
        return _Found(relative, reason="not_a_file", detail=detail)
    return _found(entry, relative)


def _modified_at(nanoseconds: int) -> datetime | None:
    try:
        return _EPOCH + timedelta(microseconds=nanoseconds // 1000)
    except OverflowError:  # a file system may say a year beyond 9999
        return None


def _suffix(file_name: str) -> str:
    return os.path.splitext(file_name)[1].lower()


def _named_like_image(file_name: str) -> bool:
    suffix = _suffix(file_name)
    return not suffix or suffix in IMAGE_SUFFIXES
