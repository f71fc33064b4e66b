"""The four public sources: a folder as downloaded in, one row for each file that it lists out."""

import os
import re
from collections.abc import Iterator

from cxr_spark import sources_nih
from cxr_spark.labels import SOURCES, canonical_label
from cxr_spark.listing import (
    Box,
    Found,
    ListedFile,
    SourceError,
    leads_out,
    listed_file,
    utf8,
    walk,
)

__all__ = ["Box", "ListedFile", "SourceError", "list_folder", "list_source"]

SPLIT_FOLDERS = frozenset(("train", "val", "test"))
# Folders that say nothing of a file's label: where there is no other, its name does.
PLAIN_FOLDERS = SPLIT_FOLDERS | {"", "images", "chest_xray", "tb_chest_radiography_database"}
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

# (subtype, number) is the patient: `person12` alone is two children, one with bacteria, one virus.
_PNEUMONIA_PATIENT = re.compile(r"person(\d+)_(bacteria|virus)_", re.IGNORECASE)
_NORMAL_PATIENT = re.compile(r"((?:NORMAL\d+-)?IM-\d+)-", re.IGNORECASE)
# `COVID19(566).jpg`, `Tuberculosis-1.png`: class and number.
_NUMBERED = re.compile(r"(\w+?)\s*(?:\(\d+\)|-\d+)\.\w+")


def list_source(name: str, root: str | os.PathLike[str]) -> Iterator[ListedFile]:
    """Lists a source: every file named like an image, and every metadata row.

    `listing.walk` says which files those are. No image is opened. NIH's table says what an image
    shows; in the other sources the folder does, or, where all files were put into one, the names
    that the source gives its files, as in `person1_virus_6.jpeg` and `Normal-1.png`.

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
    layout = f"Expected for {name}: {LAYOUTS[name]}."
    folder = _folder(root, f"{layout} Give the folder that holds this.")
    listed = _list_nih(folder) if name == "nih" else _list_folders(name, folder)
    if name == "nih" and not listed:
        raise SourceError(f"{folder}: no image, and no row in its table. {layout}")
    if name != "nih" and not any(FOLDER_LABELS[name].intersection(f.raw_labels) for f in listed):
        raise SourceError(
            f"{folder}: no image in a folder of this source, and none with a name of it. {layout} "
            "Give the folder that holds this, unpacked."
        )
    return iter(sorted(listed, key=lambda file: file.image_id))


def list_folder(root: str | os.PathLike[str]) -> Iterator[ListedFile]:
    """Lists the files of any folder that are named like an image, nested ones too, as `file:PATH`.

    Raises:
        SourceError: there is no such folder, or it can't be listed.
    """
    folder = _folder(root, "Give a folder of image files.")
    listed = (listed_file("file", folder, found) for found in walk(folder))
    named = (file._replace(image_id=f"file:{file.path}") for file in listed)
    return iter(sorted(named, key=lambda file: file.image_id))


def _folder(root: str | os.PathLike[str], advice: str) -> str:
    """Returns the absolute path of a folder; tables hold UTF-8, and so must its name."""
    folder = os.path.abspath(root)
    if utf8(folder) != folder:
        raise SourceError(f"{utf8(folder)}: the folder's name is not UTF-8; rename it.")
    if not os.path.isdir(folder):
        what = "not a folder" if os.path.exists(folder) else "no such folder"
        raise SourceError(f"{folder}: {what}. {advice}")
    return folder


def _list_nih(root: str) -> list[ListedFile]:
    entries = sources_nih.read_entries(root)
    listed = []
    unseen = dict(entries)
    for found in walk(root):
        image = found.relative if found.relative in entries else os.path.basename(found.relative)
        entry = entries.get(image)
        unseen.pop(image, None)
        if entry is None and found.reason is None:
            found = found._replace(
                reason="not_in_manifest", detail="no row in the data entry table"
            )
        listed.append(_with_entry(listed_file("nih", root, found), entry))
    for image, entry in unseen.items():
        reason = "outside_root" if leads_out(image) else "missing_file"
        detail = "the data entry table names a file that is not in the folder"
        missing = Found(image, reason=reason, detail=detail)
        listed.append(_with_entry(listed_file("nih", root, missing), entry))
    return listed


def _with_entry(file: ListedFile, entry: sources_nih.Entry | None) -> ListedFile:
    return file if entry is None else file._replace(**entry._asdict())


def _list_folders(source: str, root: str) -> list[ListedFile]:
    """Lists a source whose folders say label and split: the last two above a file count."""
    listed = []
    for found in walk(root):
        *folders, file_name = found.relative.split("/")
        splits = [folder.lower() for folder in folders[-2:] if folder.lower() in SPLIT_FOLDERS]
        file = listed_file(source, root, found)._replace(
            raw_labels=_folder_labels(source, folders, file_name),
            folder_split=splits[-1] if splits else None,
            patient_id=_pneumonia_patient(file_name) if source == "pneumonia" else None,
        )
        listed.append(file)
    return listed


def _folder_labels(source: str, folders: list[str], file_name: str) -> list[str]:
    """What the folder says, or, where it says nothing, the file's name."""
    folder = folders[-1] if folders else ""
    by_name = _label_in_name(file_name)
    if folder.lower() in PLAIN_FOLDERS and by_name in FOLDER_LABELS[source]:
        return [by_name]
    return [canonical_label(utf8(folder))] if folder else []


def _label_in_name(file_name: str) -> str | None:
    if _PNEUMONIA_PATIENT.match(file_name):
        return "Pneumonia"
    if _NORMAL_PATIENT.match(file_name):
        return "No Finding"
    match = _NUMBERED.fullmatch(file_name)
    return canonical_label(match[1]) if match else None


def _pneumonia_patient(file_name: str) -> str | None:
    if match := _PNEUMONIA_PATIENT.match(file_name):
        return f"{match[2].lower()}{int(match[1])}"
    match = _NORMAL_PATIENT.match(file_name)
    return match[1].upper() if match else None
