"""The drawn sources: layouts and names as the originals', and exactly the traps that are told."""

import csv
import hashlib
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from cxr_spark import sample
from cxr_spark import sample_layouts as layouts
from cxr_spark.labels import CLASSES, OTHER_FINDINGS, SELECTED
from cxr_spark.sample_layouts import FOLDER_SIDES, NIH_SIDE, TUBERCULOSIS_SIDE, Picture
from tests.conftest import Finished
from tests.shortcuts import linear_probabilities, thumbnails

FOLDER_LABELS = {
    "COVID19": "Covid",
    "NORMAL": "No Finding",
    "Normal": "No Finding",
    "PNEUMONIA": "Pneumonia",
    "TURBERCULOSIS": "Tuberculosis",
    "Tuberculosis": "Tuberculosis",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, sample.Sample]:
    """Three images a class, drawn coarsely."""
    folder = tmp_path_factory.mktemp("small") / "sources"
    return folder, sample.write_sample(folder, 3, seed=5, canvas=64)


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def image_files(folder: Path) -> list[Path]:
    return [path for path in files_in(folder) if path.suffix in (".png", ".jpg", ".jpeg")]


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files_in(folder)
    }


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "nih/Data_Entry_2017.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def names_in(path: Path) -> list[str]:
    return path.read_text().split("\n")


def survivors(folder: Path) -> tuple[Counter[str], Counter[str]]:
    """Images kept by class and files rejected by reason, by a plain reading of the rules."""
    findings = {row["Image Index"]: row["Finding Labels"].split("|") for row in table(folder)}
    rejects: Counter[str] = Counter()
    pictures: dict[bytes, list[str]] = defaultdict(list)
    for path in image_files(folder):
        source = path.relative_to(folder).parts[0]
        labels = [FOLDER_LABELS.get(path.parent.name, "")]
        if source == "nih":
            if path.name not in findings:
                rejects["not_in_manifest"] += 1
                continue
            labels = findings.pop(path.name)
        data = path.read_bytes()
        if not data or data.startswith(bytes.fromhex("00051607")):
            rejects["unreadable" if data else "empty_file"] += 1
            continue
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("L"))
        except OSError:
            rejects["truncated"] += 1
            continue
        wanted = set(labels) & set(SELECTED[source])
        if not wanted:
            no_class = not set(labels) & set(CLASSES)
            rejects["no_target_label" if no_class else "class_not_selected"] += 1
        elif len(labels) > 1:
            rejects["multi_label"] += 1
        else:
            pictures[pixels.tobytes()].append(labels[0])
    rejects["missing_file"] = len(findings)
    kept: Counter[str] = Counter()
    for copies in pictures.values():
        if len(set(copies)) > 1:
            rejects["label_conflict"] += len(copies)
        else:
            kept[copies[0]] += 1
            rejects["duplicate"] += len(copies) - 1
    return kept, rejects


def test_exactly_the_images_asked_for_survive_and_the_rest_is_told_by_reason(
    small: tuple[Path, sample.Sample],
) -> None:
    folder, written = small
    kept, rejects = survivors(folder)
    assert kept == dict.fromkeys(CLASSES, 3)
    assert rejects == written.rejects
    files = Counter(path.relative_to(folder).parts[0] for path in image_files(folder))
    assert files == written.files


def test_no_two_files_show_the_same_patient_but_the_one_that_is_wrapped_twice() -> None:
    rng = np.random.default_rng(0)
    pictures = layouts.all_pictures(layouts.nih_images(9, rng), 9, rng)
    assert len({picture.path for picture in pictures}) == len(pictures)
    twice = [n for n, count in Counter(p.number for p in pictures).items() if count > 1]
    same = [picture for picture in pictures if picture.number in twice]
    assert [Path(picture.path).name for picture in same] == [
        "Tuberculosis-1.png",
        "Tuberculosis-10.png",
    ]


def test_one_image_a_class_is_enough_for_every_trap(tmp_path: Path) -> None:
    written = sample.write_sample(tmp_path / "one", 1, canvas=64)
    kept, rejects = survivors(tmp_path / "one")
    assert kept == dict.fromkeys(CLASSES, 1)
    assert rejects == written.rejects and min(rejects.values()) > 0


def test_curation_agrees_with_the_sample_about_every_trap(
    curated: tuple[Path, dict[str, Any]],
) -> None:
    counts = curated[1]["counts"]
    told = {
        "multi_label": 5,
        "no_target_label": 3,
        "missing_file": 2,
        "not_in_manifest": 1,
        "truncated": 1,
        "empty_file": 1,
        "unreadable": 3,
        "duplicate": 5,
        "label_conflict": 2,
        "class_not_selected": 21,
    }
    found = {
        reason: sum(v for k, v in counts.items() if k.endswith(f".{reason}")) for reason in told
    }
    assert found == told
    assert counts["images"] == 8 * len(CLASSES) and counts["rejects"] == sum(told.values())


def test_a_seed_gives_the_same_bytes_and_another_seed_other_pictures(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        sample.write_sample(tmp_path / name, 1, seed, canvas=64)
    one, again, other = (hashes(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again
    pictures = {value for path, value in one.items() if path.endswith((".png", ".jpg"))}
    shared = pictures & set(other.values())
    assert shared <= {hashlib.sha256(b"").hexdigest()}, "only the empty file may be the same"


def test_the_nih_table_has_the_form_of_the_original(sources: Path) -> None:
    text = (sources / "nih/Data_Entry_2017.csv").read_text()
    header, *lines = text.rstrip("\n").split("\n")
    assert "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]," in header
    assert all(line.count(",") == 11 and line.endswith(",") for line in [header, *lines])
    rows = table(sources)
    for row in rows:
        assert re.fullmatch(r"\d{8}_\d{3}\.png", row["Image Index"])
        assert int(row["Image Index"][:8]) == int(row["Patient ID"])
        assert set(row["Finding Labels"].split("|")) <= {*CLASSES, *OTHER_FINDINGS}
    assert {row["View Position"] for row in rows} == {"PA", "AP"}
    assert {row["Patient Gender"] for row in rows} == {"F", "M"}
    ages = {row["Patient ID"]: int(row["Patient Age"]) for row in rows}
    assert 1 <= sum(age > 120 for age in ages.values()) <= 2
    assert max(Counter(row["Patient ID"] for row in rows).values()) > 1


def test_the_official_lists_share_out_the_patients_of_the_table(sources: Path) -> None:
    train_val = names_in(sources / "nih/train_val_list.txt")
    test = names_in(sources / "nih/test_list.txt")
    assert "" not in train_val + test, "no newline at the end"
    assert sorted(train_val + test) == sorted(row["Image Index"] for row in table(sources))
    patients = [{name[:8] for name in names} for names in (train_val, test)]
    assert not patients[0] & patients[1]
    assert 0.12 < len(patients[1]) / len(patients[0] | patients[1]) < 0.35
    by_name = {row["Image Index"]: row["Finding Labels"] for row in table(sources)}
    in_test = {by_name[name] for name in test}
    assert in_test == set(SELECTED["nih"]) - {"Covid", "Tuberculosis"}, "each class is tested"


def test_nih_images_lie_in_numbered_folders_as_1024_pixel_pngs(sources: Path) -> None:
    paths = [path for path in image_files(sources / "nih") if path.stat().st_size]
    assert {str(path.parent.relative_to(sources)) for path in paths} == {
        f"nih/images_{number:03d}/images" for number in (1, 2, 3)
    }
    with_modes = [Image.open(path) for path in paths]
    assert {image.size for image in with_modes} == {(1024, 1024)}
    assert {image.format for image in with_modes} == {"PNG"}
    assert {image.mode for image in with_modes} == {"L", "LA", "RGBA"}


def test_boxes_are_within_the_image_and_name_a_finding_of_its_row(sources: Path) -> None:
    header, *lines = (sources / "nih/BBox_List_2017.csv").read_text().splitlines()
    assert header == "Image Index,Finding Label,Bbox [x,y,w,h],,,"
    findings = {row["Image Index"]: row["Finding Labels"].split("|") for row in table(sources)}
    boxed = set()
    for line in lines:
        name, label, *numbers = line.split(",")
        x, y, width, height = map(float, numbers)
        assert label in findings[name]
        assert 0 <= x < x + width <= 1024 and 0 <= y < y + height <= 1024
        boxed.add(label)
    assert {"Atelectasis", "Cardiomegaly", "Effusion", "Pneumonia"} <= boxed


def test_covid_files_have_the_originals_names_and_mixed_formats(sources: Path) -> None:
    root = sources / "covid"
    assert {path.name for path in root.iterdir()} == {"train", "val", "test"}
    folders = {path.parent.name for path in image_files(root)}
    assert folders == {"COVID19", "NORMAL", "PNEUMONIA", "TURBERCULOSIS"}
    paths = [path for path in image_files(root) if path.parent.name == "COVID19"]
    assert all(re.fullmatch(r"COVID19 ?\(\d+\)\.(jpg|jpeg|png)", path.name) for path in paths)
    assert any(" " in path.name for path in paths)
    images = [Image.open(path) for path in image_files(root)]
    assert {image.mode for image in images} >= {"L", "RGB"}
    inside = {
        image.format
        for path, image in zip(image_files(root), images, strict=True)
        if path.suffix == ".jpg"
    }
    assert inside == {"JPEG", "PNG"}


def test_pneumonia_files_name_their_patients_who_stay_in_one_split(sources: Path) -> None:
    root = sources / "pneumonia/chest_xray"
    splits = defaultdict(set)
    for path in image_files(root):
        if path.name.startswith("._"):
            assert "__MACOSX" in path.parts
            assert path.read_bytes().startswith(bytes.fromhex("0005160700020000"))
        elif path.parent.name == "PNEUMONIA":
            match = re.fullmatch(r"person(\d+)_(bacteria|virus)_\d+\.jpeg", path.name)
            assert match, path.name
            splits[match.groups()].add(path.parent.parent.name)
        else:
            assert re.fullmatch(r"(NORMAL2-)?IM-\d{4}-\d{4}(-\d{4})?\.jpeg", path.name), path.name
    assert all(len(where) == 1 for where in splits.values())
    nested = image_files(root / "chest_xray")
    assert nested
    for path in nested:
        again = root / path.relative_to(root / "chest_xray")
        assert again.read_bytes() == path.read_bytes()


def test_tuberculosis_is_512_pixel_pngs_with_a_workbook_about_each_folder(sources: Path) -> None:
    root = sources / "tuberculosis/TB_Chest_Radiography_Database"
    for name in ("Normal", "Tuberculosis"):
        paths = image_files(root / name)
        assert all(re.fullmatch(rf"{name}-\d+\.png", path.name) for path in paths)
        images = [Image.open(path) for path in paths]
        assert {image.size for image in images} == {(512, 512)}
        with zipfile.ZipFile(root / f"{name}.metadata.xlsx") as book:
            assert {"[Content_Types].xml", "_rels/.rels", "xl/workbook.xml"} <= set(book.namelist())
            sheet = ElementTree.fromstring(book.read("xl/worksheets/sheet1.xml"))
        rows = [["".join(cell.itertext()) for cell in row] for row in sheet[0]]
        assert rows[0] == ["FILE NAME", "FORMAT", "SIZE", "URL"]
        assert sorted(row[0] for row in rows[1:]) == sorted(path.stem for path in paths)
    modes = {Image.open(path).mode for path in image_files(root)}
    assert modes == {"L", "RGB"}


def test_a_folder_in_use_is_refused_and_left_alone(
    run_job: Callable[..., Finished], tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("precious")
    done = run_job("sample", "--out", tmp_path, "--images-per-class", 1)
    assert done.exit_code == 2 and str(tmp_path) in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (-3, 0), (1, -1)])
def test_impossible_numbers_are_refused(tmp_path: Path, count: int, seed: int) -> None:
    with pytest.raises(sample.SampleError, match="at least"):
        sample.write_sample(tmp_path / "out", count, seed)
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(done: int, total: int, unit: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample.write_sample(tmp_path / "out", 1, canvas=64, progress=stop)
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_filled_and_progress_ends_at_the_total(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    calls: list[tuple[int, int, str]] = []
    sample.write_sample(tmp_path / "out", 1, canvas=64, progress=lambda *call: calls.append(call))
    total = calls[0][1]
    assert calls == [(done, total, "images") for done in range(1, total + 1)]
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(SELECTED)


@pytest.mark.parametrize(
    "label",
    [
        "Pneumonia",
        *(pytest.param(label, marks=pytest.mark.long) for label in ("No Finding", "Effusion")),
    ],
)
def test_a_linear_model_on_thumbnails_guesses_the_source_no_better_than_chance(
    label: str, tmp_path: Path
) -> None:
    """Every source's way of writing, on one class: what it writes is told by nothing but luck."""
    ways = [(NIH_SIDE, "L", "PNG"), (TUBERCULOSIS_SIDE, "RGB", "PNG")]
    ways += [(FOLDER_SIDES[0], "L", "JPEG"), (FOLDER_SIDES[-1], "RGB", "JPEG")]
    images, truth = [], []
    for number in range(200):
        side, mode, form = ways[number % 4]
        picture = Picture("x", (label,), number, side // 4, mode, form)
        path, _ = sample.draw_picture(tmp_path, picture, seed=11, canvas=128)
        with Image.open(tmp_path / path) as image:
            images.append(np.asarray(image.convert("L").resize((96, 96), Image.Resampling.BOX)))
        truth.append(number % 4)
    features, labels = thumbnails(np.array(images)), np.array(truth)
    cut = 130
    guesses = linear_probabilities(features[:cut], labels[:cut], features[cut:]).argmax(axis=1)
    right = int((guesses == labels[cut:]).sum())
    # 70 guesses at 1 in 4: 17.5 expected, and more than 28 come by luck once in 250 times.
    assert right <= 28
