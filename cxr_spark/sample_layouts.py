"""What the drawn sources hold: which file shows what, under the names that the originals use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

NIH_CLASSES = ("Edema", "No Finding", "Cardiomegaly", "Emphysema", "Effusion", "Atelectasis")
NIH_SIDE, TUBERCULOSIS_SIDE = 1024, 512
FOLDER_SIDES = (640, 720, 768, 896, 1024)
OTHERS = 4  # images in each folder that curation doesn't take from its source

# More than one finding; then findings of which none is one of the nine classes.
MULTI_LABEL = (
    ("Cardiomegaly", "Effusion"),
    ("Atelectasis", "Effusion"),
    ("Edema", "Cardiomegaly"),
    ("Effusion", "Mass"),
    ("Pneumonia", "Nodule"),
)
NIH_TRAPS = (
    ("No Finding", "conflict"),
    ("Effusion", "truncated"),
    ("No Finding", "empty"),
    ("Atelectasis", "missing"),
    ("Edema", "missing"),
)
OUTSIDE_LABEL = (("Nodule",), ("Mass",), ("Mass", "Nodule"))

TB_FOLDER = "tuberculosis/TB_Chest_Radiography_Database"
TEST_SHARE = 0.23
IMPLAUSIBLE_AGES = {3: 148, 7: 413}  # by place of the patient; the original has 16 of them
_OTHER_SPLITS = {1: "test", 3: "val", 6: "test"}  # by the last digit of the place; else train


class Picture(NamedTuple):
    """A file to draw.

    Attributes:
        path: relative to the folder of all sources.
        findings: what the picture shows.
        number: with the sample's seed the picture's own; equal numbers are equal pictures.
        side: in pixels.
        mode: as Pillow calls it: L, LA, RGB or RGBA.
        format: what the bytes are, whatever the name says: PNG or JPEG.
    """

    path: str
    findings: tuple[str, ...]
    number: int
    side: int
    mode: str
    format: str


class NihImage(NamedTuple):
    """A row of the NIH table: the image and its patient at the time.

    `trap` says what is wrong with the file: `missing`, `empty`, `truncated`, `conflict` (it is
    in the covid source too, as another class), or nothing.
    """

    name: str
    findings: tuple[str, ...]
    follow_up: int
    patient: int
    age: int
    sex: str
    view: str
    official_split: str
    trap: str


class _Shown(NamedTuple):
    findings: tuple[str, ...]
    trap: str = ""


def nih_images(images_per_class: int, rng: np.random.Generator) -> list[NihImage]:
    """The rows of the NIH source, sorted by name, traps included.

    Half of the Pneumonia images (rounded up) are NIH's, the other half the pneumonia source's.
    """
    groups = [(_Shown((label,)), images_per_class) for label in NIH_CLASSES]
    groups += [(_Shown(("Pneumonia",)), images_per_class - images_per_class // 2)]
    groups += [(_Shown(findings), 1) for findings in (*MULTI_LABEL, *OUTSIDE_LABEL)]
    groups += [(_Shown((label,), trap), 1) for label, trap in NIH_TRAPS]
    pools: dict[str, list[_Shown]] = {"test": [], "train_val": []}
    for shown, count in groups:
        in_test = round(TEST_SHARE * count)
        pools["test"] += [shown] * in_test
        pools["train_val"] += [shown] * (count - in_test)
    patients = [
        (split, images)
        for split, pool in pools.items()
        for images in _runs([pool[place] for place in rng.permutation(len(pool))], rng)
    ]
    identities = rng.permutation(max(30805, len(patients)))[: len(patients)] + 1
    rows: list[NihImage] = []
    for place, ((split, images), patient) in enumerate(zip(patients, identities, strict=True)):
        sex = str(rng.choice(["F", "M"]))
        age = IMPLAUSIBLE_AGES.get(place, int(rng.integers(18, 86)))
        for follow_up, (findings, trap) in enumerate(images):
            name = f"{patient:08d}_{follow_up:03d}.png"
            view = str(rng.choice(["PA", "AP"], p=[0.6, 0.4]))
            rows.append(
                NihImage(name, findings, follow_up, int(patient), age, sex, view, split, trap)
            )
    return sorted(rows)


def _runs(pool: Sequence[_Shown], rng: np.random.Generator) -> Iterable[Sequence[_Shown]]:
    """Cut a pool into the images of one patient each: one to four."""
    start = 0
    while start < len(pool):
        stop = start + int(rng.choice([1, 2, 3, 4], p=[0.55, 0.25, 0.12, 0.08]))
        yield pool[start:stop]
        start = stop


def all_pictures(
    images: Sequence[NihImage], images_per_class: int, rng: np.random.Generator
) -> list[Picture]:
    """Every file to draw; images are the rows of the NIH source."""
    pictures = nih_pictures(images, rng)
    for source in (pneumonia_pictures, covid_pictures, tuberculosis_pictures):
        pictures += source(images_per_class, len(pictures), rng)
    return pictures


def nih_pictures(images: Sequence[NihImage], rng: np.random.Generator) -> list[Picture]:
    """The files of the rows, in order over images_001 to images_003, numbered from 0 on.

    A row whose file is missing or empty has no picture, and the last picture has no row.
    """
    unlisted = NihImage("99999999_000.png", ("No Finding",), 0, 0, 0, "", "", "", "")
    pictures: list[Picture] = []
    for place, image in enumerate([*images, unlisted]):
        if image.trap in ("missing", "empty"):
            continue
        folder = f"nih/images_{nih_folder(place, images):03d}/images"
        mode = str(rng.choice(["L", "LA", "RGBA"], p=[0.94, 0.03, 0.03]))
        mode = {1: "LA", 2: "RGBA"}.get(place, mode)
        path = f"{folder}/{image.name}"
        pictures.append(Picture(path, image.findings, len(pictures), NIH_SIDE, mode, "PNG"))
    return pictures


def nih_folder(place: int, images: Sequence[NihImage]) -> int:
    """Number of the images_NNN folder of a row by its place in the table."""
    return 1 + min(2, 3 * place // len(images))


def pneumonia_pictures(
    images_per_class: int, number: int, rng: np.random.Generator
) -> list[Picture]:
    """The pneumonia source: its half of the Pneumonia images, and a few NORMAL ones.

    `number` is the first picture's here and in the other sources.
    """
    names = [*_pneumonia_names(images_per_class // 2, rng), *_normal_names(OTHERS, rng)]
    return [
        Picture(
            f"pneumonia/chest_xray/{split}/{folder}/{name}",
            ("No Finding",) if folder == "NORMAL" else ("Pneumonia",),
            number + place,
            int(rng.choice(FOLDER_SIDES)),
            str(rng.choice(["L", "RGB"], p=[0.9, 0.1])),
            "JPEG",
        )
        for place, (split, folder, name) in enumerate(names)
    ]


def _split(place: int) -> str:
    """The folder of a source without official lists that a place in it falls to."""
    return _OTHER_SPLITS.get(place % 10, "train")


def _pneumonia_names(count: int, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """(split, folder, name); a patient (subtype and number) has one to three, in one split."""
    names: list[tuple[str, str, str]] = []
    patients = rng.permutation(max(1900, count)) + 1
    for place, patient in enumerate(patients):
        subtype, split = str(rng.choice(["bacteria", "virus"])), _split(place)
        first = 3 * int(patient)
        for image in range(int(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1]))):
            if len(names) == count:
                return names
            names.append((split, "PNEUMONIA", f"person{patient}_{subtype}_{first + image}.jpeg"))
    return names


def _normal_names(count: int, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    forms = ("IM-{:04d}-0001.jpeg", "NORMAL2-IM-{:04d}-0001.jpeg", "IM-{:04d}-0001-0002.jpeg")
    numbers = rng.permutation(1400)[:count] + 1
    return [
        (_split(place), "NORMAL", forms[place % 3].format(number))
        for place, number in enumerate(numbers)
    ]


def covid_pictures(images_per_class: int, number: int, rng: np.random.Generator) -> list[Picture]:
    """The covid source: COVID19 in mixed formats, and a few of each of its other folders."""
    numbers = rng.permutation(max(570, images_per_class))[:images_per_class] + 1
    files = []
    for place, own in enumerate(sorted(numbers)):
        # A quarter of what is called .jpg is PNG inside.
        format_ = "PNG" if place % 4 == 3 else "JPEG"
        suffix = ".jpg" if place % 5 else (".png" if format_ == "PNG" else ".jpeg")
        space = " " if place % 7 == 5 else ""
        name = f"COVID19{space}({own}){suffix}"
        files.append((_split(place), "COVID19", name, "Covid", format_))
    for split, folder, name in _normal_names(OTHERS, rng):
        files.append((split, folder, name, "No Finding", "JPEG"))
    for split, folder, name in _pneumonia_names(OTHERS, rng):
        files.append((split, folder, name, "Pneumonia", "JPEG"))
    for place, own in enumerate(sorted(rng.permutation(700)[:OTHERS] + 1)):
        name = f"Tuberculosis-{own}.png"
        files.append((_split(place), "TURBERCULOSIS", name, "Tuberculosis", "PNG"))
    return [
        Picture(
            f"covid/{split}/{folder}/{name}",
            (label,),
            number + place,
            int(rng.choice(FOLDER_SIDES)),
            str(rng.choice(["L", "RGB"], p=[0.6, 0.4])),
            format_,
        )
        for place, (split, folder, name, label, format_) in enumerate(files)
    ]


def tuberculosis_pictures(
    images_per_class: int, number: int, rng: np.random.Generator
) -> list[Picture]:
    """The tuberculosis source: Tuberculosis-N.png from 1 on, and a few Normal-N.png.

    The last Tuberculosis image is the first one again, wrapped in another mode.
    """
    pictures: list[Picture] = []
    for folder, label, count in (
        ("Normal", "No Finding", OTHERS),
        ("Tuberculosis", "Tuberculosis", images_per_class),
    ):
        for place in range(count):
            path = f"{TB_FOLDER}/{folder}/{folder}-{place + 1}.png"
            mode = str(rng.choice(["L", "RGB"], p=[0.7, 0.3]))
            own = number + len(pictures)
            pictures.append(Picture(path, (label,), own, TUBERCULOSIS_SIDE, mode, "PNG"))
    first = pictures[OTHERS]
    again = f"{TB_FOLDER}/Tuberculosis/Tuberculosis-{images_per_class + 1}.png"
    return [*pictures, first._replace(path=again, mode="RGB" if first.mode == "L" else "L")]
