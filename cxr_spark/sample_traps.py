"""The traps of the sources, set in a drawn sample: copies, conflicts, broken and foreign files."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cxr_spark import sample_layouts as layouts
from cxr_spark.sample_layouts import NihImage, Picture

APPLE_DOUBLE = bytes.fromhex("0005160700020000") + b"Mac OS X".ljust(16) + bytes(4072)


def set_traps(
    folder: Path, images: Sequence[NihImage], pictures: Sequence[Picture]
) -> dict[str, int]:
    """Set the traps that are no drawing of their own.

    Args:
        folder: the one with the four sources, all pictures drawn.
        images: the rows of the NIH table.
        pictures: what was drawn.

    Returns:
        How many files and rows curation rejects with its default selection, by reason.
    """
    rejects = Counter(
        multi_label=len(layouts.MULTI_LABEL),
        no_target_label=len(layouts.OUTSIDE_LABEL),
        missing_file=sum(image.trap == "missing" for image in images),
        not_in_manifest=1,
        class_not_selected=sum(_is_other(picture) for picture in pictures),
        duplicate=1,  # the Tuberculosis image that is drawn twice
    )
    rejects += _copies(folder, images, pictures)
    rejects += _nested_copy(folder, pictures)
    rejects += _broken(folder, images, pictures)
    return dict(rejects)


def _is_other(picture: Picture) -> bool:
    """Whether the picture is of a class that curation doesn't take from its source."""
    source = picture.path.split("/")[0]
    taken = {"covid": "Covid", "pneumonia": "Pneumonia", "tuberculosis": "Tuberculosis"}
    return source in taken and picture.findings != (taken[source],)


def _copies(folder: Path, images: Sequence[NihImage], pictures: Sequence[Picture]) -> Counter[str]:
    """Byte copies: across sources with the same label and with another, and inside a class."""
    above = max(1900, len(pictures))  # the numbers that the layouts use
    covid = folder / "covid/train/COVID19"
    pneumonia = folder / "pneumonia/chest_xray/train/PNEUMONIA"
    pneumonia.mkdir(parents=True, exist_ok=True)
    by_name = {Path(picture.path).name: picture for picture in pictures}
    conflicting = next(image for image in images if image.trap == "conflict")
    shared = next(image for image in images if image.findings == ("Pneumonia",))
    repeated = next(picture for picture in pictures if picture.findings == ("Covid",))
    shutil.copyfile(folder / by_name[conflicting.name].path, covid / f"COVID19({above + 1}).jpg")
    shutil.copyfile(folder / repeated.path, covid / f"COVID19({above + 2}).jpg")
    shutil.copyfile(
        folder / by_name[shared.name].path, pneumonia / f"person{above + 1}_virus_{3 * above}.jpeg"
    )
    return Counter(label_conflict=2, duplicate=2)


def _nested_copy(folder: Path, pictures: Sequence[Picture]) -> Counter[str]:
    """chest_xray/chest_xray with some of the files again, and what a Mac left beside them."""
    root = folder / "pneumonia/chest_xray"
    own = [picture for picture in pictures if picture.path.startswith("pneumonia/")]
    again = [p for p in own if not _is_other(p)][:2] + [p for p in own if _is_other(p)][:1]
    for picture in again:
        relative = (folder / picture.path).relative_to(root)
        copy = root / "chest_xray" / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / picture.path, copy)
        note = root / "__MACOSX/chest_xray" / relative.with_name(f"._{relative.name}")
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_bytes(APPLE_DOUBLE)
    others = sum(_is_other(picture) for picture in again)
    return Counter(duplicate=len(again) - others, class_not_selected=others, unreadable=len(again))


def _broken(folder: Path, images: Sequence[NihImage], pictures: Sequence[Picture]) -> Counter[str]:
    """A file cut off in the middle, and an empty one."""
    by_name = {Path(picture.path).name: folder / picture.path for picture in pictures}
    for place, image in enumerate(images):
        if image.trap == "truncated":
            data = by_name[image.name].read_bytes()
            by_name[image.name].write_bytes(data[: len(data) // 2])
        if image.trap == "empty":
            number = layouts.nih_folder(place, images)
            (folder / f"nih/images_{number:03d}/images" / image.name).touch()
    return Counter(truncated=1, empty_file=1)
