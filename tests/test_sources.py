"""Listing the four sources: every trap that their real copies set, drawn in small."""

import csv
import gzip
import os
import shutil
import socket
import stat
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cxr_spark import listing, sources_nih
from cxr_spark.labels import canonical_label
from cxr_spark.sources import Box, ListedFile, SourceError, list_folder, list_source

REAL = Path(__file__).parents[2] / "shared" / "data"
needs_real_data = pytest.mark.skipif(
    not REAL.is_dir(), reason="the real images (../shared/data) are not here"
)
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


def write(path: Path, data: bytes | str = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def nih(root: Path, *lines: str, name: str = "Data_Entry_2017.csv", header: str = HEADER) -> Path:
    write(root / name, "\n".join((header, *lines)))
    return root


def row(image: str, findings: str = "Edema", patient: str = "1", age: str = "58") -> str:
    return f"{image},{findings},0,{patient},{age},M,PA,2682,2749,0.143,0.143"


def listed(source: str, root: Path) -> dict[str, ListedFile]:
    files = list(list_source(source, root))
    by_id = {file.image_id: file for file in files}
    assert len(by_id) == len(files), "an image_id occurs twice"
    assert list(by_id) == sorted(by_id)
    return by_id


def one(source: str, root: Path) -> ListedFile:
    (file,) = list_source(source, root)
    return file


# --- NIH: the table's three forms --------------------------------------------------------------

KAGGLE = (HEADER + ",", "00000001_000.png,Cardiomegaly,0,1,58,M,PA,2682,2749,0.143,0.143,")
FIRST_RELEASE = (
    HEADER + ",\r",
    "00000001_000.png,Cardiomegaly,000,00000001,058Y,M,PA,2682,2749,0.143,0.143\r",
)
V2020 = (HEADER, "00000001_000.png,Cardiomegaly,0,1,58,M,PA,2682,2749,0.143000000002,0.143")


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("Data_Entry_2017.csv", KAGGLE),
        ("Data_Entry_2017.csv", FIRST_RELEASE),
        ("Data_Entry_2017_v2020.csv", V2020),
    ],
    ids=["kaggle", "first release", "v2020"],
)
def test_the_three_forms_of_the_nih_table_say_the_same(tmp_path, name, form):
    nih(tmp_path, form[1], name=name, header=form[0])
    write(tmp_path / "images_001/images/00000001_000.png")
    file = one("nih", tmp_path)
    assert file.image_id == "nih:images_001/images/00000001_000.png"
    assert file.path == str(tmp_path / "images_001/images/00000001_000.png")
    assert (file.source, file.size_bytes, file.reason) == ("nih", 1, None)
    assert file.raw_labels == ["Cardiomegaly"]
    assert (file.patient_id, file.age_years, file.sex, file.view) == ("1", 58, "M", "PA")
    assert (file.official_split, file.folder_split, file.boxes) == (None, None, [])


def test_where_both_tables_are_there_the_revised_one_speaks(tmp_path):
    nih(tmp_path, row("a.png", age="411"))
    nih(tmp_path, row("a.png", age="41"), name="Data_Entry_2017_v2020.csv")
    assert one("nih", tmp_path).age_years == 41


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("058Y", 58),
        ("58", 58),
        ("58.0", 58),
        ("58.9", 58),
        ("011M", 0),
        ("020M", 1),
        ("001D", 0),
        ("0", 0),
        ("120", 120),
        ("148", None),
        ("412Y", None),
        ("", None),
        ("-1", None),
        ("9" * 5000, None),
        ("old", None),
    ],
)
def test_ages_become_years_and_implausible_ones_unknown(tmp_path, text, years):
    nih(tmp_path, row("a.png", age=text))
    assert one("nih", tmp_path).age_years == years


def test_several_findings_are_kept_in_their_order(tmp_path):
    nih(tmp_path, row("a.png", "Pneumonia|Effusion|Pleural_Thickening"))
    assert one("nih", tmp_path).raw_labels == ["Pneumonia", "Effusion", "Pleural_Thickening"]


def test_unknown_sex_view_and_patient_are_null(tmp_path):
    nih(tmp_path, "a.png,Edema,0,,58,?,,2682,2749,0.143,0.143")
    file = one("nih", tmp_path)
    assert (file.sex, file.view, file.patient_id) == (None, None, None)


def test_official_lists_without_a_last_newline_are_read_whole(tmp_path):
    nih(tmp_path, row("a.png"), row("b.png"), row("c.png"), row("d.png"))
    write(tmp_path / "train_val_list.txt", "a.png\r\nb.png")
    write(tmp_path / "test_list.txt", "c.png")
    splits = [file.official_split for file in list_source("nih", tmp_path)]
    assert splits == ["train_val", "train_val", "test", None]


def test_an_image_in_both_official_lists_is_an_error(tmp_path):
    nih(tmp_path, row("a.png"))
    write(tmp_path / "train_val_list.txt", "a.png")
    write(tmp_path / "test_list.txt", "b.png\na.png")
    with pytest.raises(SourceError, match=r"test_list\.txt, line 2: a\.png is in train_val_list"):
        list_source("nih", tmp_path)


def test_boxes_are_read_under_their_ragged_header(tmp_path):
    nih(tmp_path, row("a.png"), row("b.png"))
    write(
        tmp_path / "BBox_List_2017.csv",
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        "a.png,Infiltrate,552.4,458.8,196.8,176.4,,,\n"
        "a.png,Pneumonia,1,2,3,4\n"
        "not listed.png,Mass,1,2,3,4\n",
    )
    boxes = [file.boxes for file in list_source("nih", tmp_path)]
    expected = [Box("Infiltration", 552.4, 458.8, 196.8, 176.4), Box("Pneumonia", 1, 2, 3, 4)]
    assert boxes == [expected, []]


@pytest.mark.parametrize("number", ["wide", "nan", ""])
def test_a_box_without_a_number_names_file_line_and_column(tmp_path, number):
    nih(tmp_path, row("a.png"))
    write(tmp_path / "BBox_List_2017.csv", f"Image Index,F,B,,,\n\na.png,Mass,1,2,{number},4\n")
    with pytest.raises(SourceError, match=r"BBox_List_2017\.csv, line 3, column w: "):
        list_source("nih", tmp_path)


def test_files_are_found_unpacked_and_flattened(tmp_path):
    nih(tmp_path, row("a.png", patient="1"), row("b.png", patient="2"), row("c.png", patient="3"))
    for place in ("images_001/images/a.png", "images/b.png", "c.png"):
        write(tmp_path / place)
    patients = {key: file.patient_id for key, file in listed("nih", tmp_path).items()}
    assert patients == {
        "nih:images_001/images/a.png": "1",
        "nih:images/b.png": "2",
        "nih:c.png": "3",
    }


def test_a_file_that_lies_there_twice_is_two_rows_of_one_table_row(tmp_path):
    nih(tmp_path, row("a.png", "Mass"))
    write(tmp_path / "images_001/images/a.png")
    write(tmp_path / "images/a.png")
    files = listed("nih", tmp_path)
    assert set(files) == {"nih:images_001/images/a.png", "nih:images/a.png"}
    assert all(file.raw_labels == ["Mass"] and not file.reason for file in files.values())


def test_a_table_row_without_a_file_is_a_missing_file_and_keeps_what_is_known(tmp_path):
    nih(tmp_path, row("00000007_001.png", patient="7"))
    file = one("nih", tmp_path)
    assert file.image_id == "nih:00000007_001.png"
    assert file.path == str(tmp_path / "00000007_001.png")
    assert (file.reason, file.size_bytes, file.modified_at) == ("missing_file", None, None)
    assert (file.raw_labels, file.patient_id) == (["Edema"], "7")


def test_a_file_without_a_table_row_is_not_in_the_manifest(tmp_path):
    nih(tmp_path, row("a.png"))
    write(tmp_path / "a.png")
    write(tmp_path / "images/b.png")
    file = listed("nih", tmp_path)["nih:images/b.png"]
    assert (file.reason, file.raw_labels, file.size_bytes) == ("not_in_manifest", [], 1)


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/secret.png", "https://example.org/a.png", "x/../../a.png"]
)
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, name):
    write(tmp_path / "secret.png")
    root = nih(tmp_path / "nih", row(name))
    file = one("nih", root)
    assert (file.reason, file.size_bytes) == ("outside_root", None)


@pytest.mark.parametrize("name", ["a..b.png", "x/../a.png", "./a.png"])
def test_a_name_with_dots_in_it_does_not_lead_out(tmp_path, name):
    nih(tmp_path, row(name))
    assert one("nih", tmp_path).reason == "missing_file"


def test_the_suffix_of_a_name_is_no_follow_up_number_and_rows_may_be_in_any_order(tmp_path):
    rows = (row("00000002_007.png", "Mass", "2"), row("00000001_001.png", "Edema", "1"))
    nih(tmp_path, *rows, name="Data_Entry_2017_v2020.csv")  # both are follow-up 0 there
    known = [(file.raw_labels, file.patient_id) for file in list_source("nih", tmp_path)]
    assert known == [(["Edema"], "1"), (["Mass"], "2")]


def test_what_a_mac_leaves_beside_nih_images_has_no_row(tmp_path):
    nih(tmp_path, row("a.png"))
    write(tmp_path / "images/a.png")
    write(tmp_path / "__MACOSX/images/._a.png")
    files = listed("nih", tmp_path)
    assert files["nih:__MACOSX/images/._a.png"].reason == "not_in_manifest"
    assert files["nih:images/a.png"].reason is None


def test_a_folder_without_the_nih_table_says_what_was_expected(tmp_path):
    write(tmp_path / "a.png")
    with pytest.raises(SourceError, match=r"no Data_Entry_2017\.csv or Data_Entry_2017_v2020"):
        list_source("nih", tmp_path)


def test_a_table_without_rows_beside_no_image_is_an_error(tmp_path):
    nih(tmp_path)
    with pytest.raises(SourceError, match="no image, and no row in its table"):
        list_source("nih", tmp_path)


def test_a_table_without_a_column_names_it_and_those_there(tmp_path):
    nih(tmp_path, "a.png,Edema", header="Image Index,Finding Labels")
    with pytest.raises(
        SourceError, match=r"line 1: no column Patient ID, Patient Age.*here are: Image Index, F"
    ):
        list_source("nih", tmp_path)


def test_a_line_that_ends_early_is_named_with_its_column(tmp_path):
    nih(tmp_path, row("a.png"), "b.png,Edema,0,1")
    with pytest.raises(SourceError, match=r"Data_Entry_2017\.csv, line 3, column Patient Age: "):
        list_source("nih", tmp_path)


def test_a_line_without_an_image_is_named(tmp_path):
    nih(tmp_path, row(""))
    with pytest.raises(SourceError, match=r"line 2, column Image Index: empty"):
        list_source("nih", tmp_path)


def test_an_image_on_two_lines_with_different_values_is_an_error(tmp_path):
    nih(tmp_path, row("a.png", "Edema"), row("b.png"), row("a.png", "Mass"))
    with pytest.raises(SourceError, match=r"line 4, column Image Index: a\.png stands on line 2"):
        list_source("nih", tmp_path)


def test_a_repeated_line_and_empty_lines_are_harmless(tmp_path):
    nih(tmp_path, row("a.png"), "", ",,,,,,,,,,,", row("a.png"))
    assert one("nih", tmp_path).image_id == "nih:a.png"


def test_a_table_that_is_no_utf8_text_names_the_line(tmp_path):
    write(tmp_path / "Data_Entry_2017.csv", f"{HEADER}\n{row('a.png')}\n".encode() + b"\xff,\n")
    with pytest.raises(SourceError, match=r"line 3: not UTF-8"):
        list_source("nih", tmp_path)


def test_a_table_with_an_endless_cell_names_the_line(tmp_path):
    nih(tmp_path, row("a.png"), '"' + "x" * 200_000)
    with pytest.raises(SourceError, match=r"line 3: field larger"):
        list_source("nih", tmp_path)


def test_a_table_with_a_nul_byte_or_an_open_quote_names_the_line(tmp_path):
    nih(tmp_path, row("a.png"), row("b\0.png"))
    with pytest.raises(SourceError, match=r"line 3: a NUL byte"):
        list_source("nih", tmp_path)
    nih(tmp_path, row("a.png"), f'"{row("b.png")}', row("c.png"))
    with pytest.raises(SourceError, match=r"line 3: unexpected end of data"):
        list_source("nih", tmp_path)


def test_a_byte_order_mark_does_not_hide_the_first_column(tmp_path):
    nih(tmp_path, row("a.png"), header="\ufeff" + HEADER)
    assert one("nih", tmp_path).raw_labels == ["Edema"]


# --- the sources whose folders are the labels ----------------------------------------------------


def test_covid_folders_in_any_case_and_either_spelling_give_label_and_split(tmp_path):
    for place in (
        "train/COVID19/COVID19(566).jpg",
        "VAL/normal/a.png",
        "Test/Pneumonia/b.JPEG",
        "train/TURBERCULOSIS/c.jpg",
        "train/tuberculosis/d.jpg",
    ):
        write(tmp_path / place)
    facts = [(f.raw_labels, f.folder_split) for f in list_source("covid", tmp_path)]
    assert facts == [
        (["Pneumonia"], "test"),
        (["No Finding"], "val"),
        (["Covid"], "train"),
        (["Tuberculosis"], "train"),
        (["Tuberculosis"], "train"),
    ]


def test_folder_sources_have_no_official_split_and_covid_and_tuberculosis_no_patients(tmp_path):
    write(tmp_path / "train/PNEUMONIA/person1_virus_2.jpeg")
    write(tmp_path / "Tuberculosis/Tuberculosis-1.png")
    for source in ("covid", "tuberculosis"):
        for file in list_source(source, tmp_path):
            assert (file.official_split, file.patient_id) == (None, None)


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("person12_bacteria_46.jpeg", "bacteria12"),
        ("person12_virus_25.jpeg", "virus12"),
        ("person1_bacteria_1_1.jpeg", "bacteria1"),
        ("IM-0115-0001.jpeg", "IM-0115"),
        ("IM-0115-0002-0001.jpeg", "IM-0115"),
        ("NORMAL2-IM-0115-0001.jpeg", "NORMAL2-IM-0115"),
        ("something else.jpeg", None),
    ],
)
def test_pneumonia_patients_are_read_from_the_names(tmp_path, name, patient):
    write(tmp_path / "chest_xray/train/PNEUMONIA" / name)
    assert one("pneumonia", tmp_path).patient_id == patient


def test_the_nested_second_copy_and_macosx_take_label_and_split_from_their_last_folders(tmp_path):
    for place in (
        "chest_xray/chest_xray/val/NORMAL/IM-0001-0001.jpeg",
        "chest_xray/__MACOSX/chest_xray/test/PNEUMONIA/._person1_virus_6.jpeg",
    ):
        write(tmp_path / place)
    apple, nested = list_source("pneumonia", tmp_path)
    assert (nested.raw_labels, nested.folder_split) == (["No Finding"], "val")
    assert (apple.raw_labels, apple.folder_split) == (["Pneumonia"], "test")
    assert apple.patient_id is None and apple.reason is None


def test_tuberculosis_is_listed_without_its_metadata(tmp_path):
    top = tmp_path / "TB_Chest_Radiography_Database"
    write(top / "Normal/Normal-1.png")
    write(top / "Normal.metadata.xlsx")
    write(top / "README.md.txt")
    file = one("tuberculosis", tmp_path)
    assert (file.raw_labels, file.folder_split) == (["No Finding"], None)


@pytest.mark.parametrize("folder", ["", "images/", "Train/"])
def test_in_one_folder_the_names_of_files_give_their_labels(tmp_path, folder):
    names = {
        "covid": {
            "COVID19(566).jpg": "Covid",
            "covid19 (3).png": "Covid",
            "NORMAL2-IM-0115-0001.jpeg": "No Finding",
            "person1_virus_6.jpeg": "Pneumonia",
            "Tuberculosis-12.png": "Tuberculosis",
        },
        "pneumonia": {
            "IM-0115-0001.jpeg": "No Finding",
            "person1_bacteria_1_1.jpeg": "Pneumonia",
        },
        "tuberculosis": {"Normal-7.png": "No Finding", "Tuberculosis-7.png": "Tuberculosis"},
    }
    for source, known in names.items():
        for name in known:
            write(tmp_path / source / folder / name)
        files = list(list_source(source, tmp_path / source))
        assert {os.path.basename(file.path): file.raw_labels for file in files} == {
            name: [label] for name, label in known.items()
        }
        assert {file.folder_split for file in files} == {"train" if folder == "Train/" else None}


def test_a_name_counts_only_where_the_folder_says_nothing(tmp_path):
    write(tmp_path / "Normal/Tuberculosis-1.png")
    write(tmp_path / "set aside/Tuberculosis-2.png")
    write(tmp_path / "COVID19(3).png")  # no class of this source
    write(tmp_path / "other.png")
    labels = {key: file.raw_labels for key, file in listed("tuberculosis", tmp_path).items()}
    assert labels == {
        "tuberculosis:COVID19(3).png": [],
        "tuberculosis:Normal/Tuberculosis-1.png": ["No Finding"],
        "tuberculosis:other.png": [],
        "tuberculosis:set aside/Tuberculosis-2.png": ["set aside"],
    }


def test_an_unknown_folder_is_listed_under_its_name(tmp_path):
    write(tmp_path / "train/COVID19/a.jpg")
    write(tmp_path / "train/Lung Opacity/b.jpg")
    write(tmp_path / "c.jpg")
    labels = {key: file.raw_labels for key, file in listed("covid", tmp_path).items()}
    assert labels == {
        "covid:c.jpg": [],
        "covid:train/COVID19/a.jpg": ["Covid"],
        "covid:train/Lung Opacity/b.jpg": ["Lung Opacity"],
    }


@pytest.mark.parametrize("source", ["pneumonia", "tuberculosis", "covid"])
def test_a_folder_of_another_layout_says_what_was_expected(tmp_path, source):
    write(tmp_path / "holiday/a.jpg")
    with pytest.raises(SourceError, match=rf"{tmp_path}: no image.*Expected for {source}: "):
        list_source(source, tmp_path)


def test_a_missing_root_and_a_file_as_root_are_errors_before_anything_is_listed(tmp_path):
    with pytest.raises(SourceError, match=r"nowhere: no such folder\. Expected for covid: "):
        list_source("covid", tmp_path / "nowhere")
    with pytest.raises(SourceError, match="not a folder"):
        list_source("covid", write(tmp_path / "file"))


def test_an_unknown_source_is_an_error_that_lists_the_known(tmp_path):
    with pytest.raises(SourceError, match="mimic: no such source; the sources are nih, pneumonia"):
        list_source("mimic", tmp_path)


# --- what lies in folders ------------------------------------------------------------------------


def test_every_image_suffix_in_any_case_and_none_at_all_is_listed_and_nothing_else(tmp_path):
    images = ["a.png", "a.jpg", "a.jpeg", "a.bmp", "a.tif", "a.tiff", "a.gif", "a.webp", "a.dcm"]
    images += ["a.dicom", "B.PNG", "no suffix", "._c.jpg", "1.2.840.113619.2"]
    others = ["x.csv", "x.txt", "x.xlsx", "x.json", "x.md", ".DS_Store", ".hidden.png", "x.zip"]
    for name in images + others:
        write(tmp_path / "Normal" / name)
    write(tmp_path / ".cache/Normal/d.png")
    names = {key.rsplit("/", 1)[1] for key in listed("tuberculosis", tmp_path)}
    assert names == set(images)


@pytest.mark.parametrize(
    "name",
    [
        "with space (1) [2].png",
        "new\nline.png",
        "%41.png",
        "star*?{a,b}.png",
        "Übersicht 胸部.png",
        "quote'\"\\.png",
        "nih:colon.png",
    ],
)
def test_odd_names_stay_as_they_are_and_open_by_their_path(tmp_path, name):
    write(tmp_path / "Normal" / name, b"content")
    file = one("tuberculosis", tmp_path)
    assert file.image_id == f"tuberculosis:Normal/{name}"
    assert Path(file.path).read_bytes() == b"content"


def test_a_name_that_is_not_utf8_is_escaped_and_refused(tmp_path):
    folder = os.fsencode(tmp_path / "Normal")
    os.mkdir(folder)
    for name in (b"caf\xe9.png", b"caf\\xe9.png"):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(b"x")
    files = listed("tuberculosis", tmp_path)
    bad = files.pop("tuberculosis:Normal/caf//xe9.png")
    assert (bad.reason, bad.raw_labels) == ("unreadable", ["No Finding"])
    assert "not UTF-8" in (bad.detail or "")
    bad.path.encode("utf-8")
    assert [file.reason for file in files.values()] == [None]


def test_pipes_sockets_and_folders_named_like_images_are_no_files(tmp_path, monkeypatch):
    folder = tmp_path / "Normal"
    write(folder / "scan.dcm/inside.png")
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(folder)  # a socket's path must be short
        server.bind("socket.jpg")
        files = listed("tuberculosis", tmp_path)
    assert {key.rsplit("/", 1)[1]: file.reason for key, file in files.items()} == {
        "pipe.png": "not_a_file",
        "socket.jpg": "not_a_file",
        "scan.dcm": "not_a_file",
    }
    assert all(file.size_bytes is None for file in files.values())


def test_a_device_named_like_an_image_is_no_file(tmp_path):
    write(tmp_path / "Normal/a.png")
    try:
        os.mknod(tmp_path / "Normal/zero.png", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root can make a device")
    assert listed("tuberculosis", tmp_path)["tuberculosis:Normal/zero.png"].reason == "not_a_file"


def test_links_are_followed_inside_the_root_only_and_linked_folders_never(tmp_path):
    root = tmp_path / "root"
    inside = write(root / "Normal/inside.png", b"1234")
    outside = write(tmp_path / "elsewhere/outside.png")
    for name, target in {
        "link.png": inside,
        "out.png": outside,
        "out_relative.png": "../../elsewhere/outside.png",
        "dangling.png": root / "gone.png",
        "loop.png": "loop.png",
        "notes.txt": outside,
        "same_folder": root / "Normal",
        "other_folder": outside.parent,
    }.items():
        (root / "Normal" / name).symlink_to(target)
    files = listed("tuberculosis", root)
    reasons = {key.rsplit("/", 1)[1]: file.reason for key, file in files.items()}
    assert reasons == {
        "inside.png": None,
        "link.png": None,
        "out.png": "outside_root",
        "out_relative.png": "outside_root",
        "dangling.png": "missing_file",
        "loop.png": "unreadable",
        "same_folder": "not_a_file",
        "other_folder": "outside_root",
    }
    assert files["tuberculosis:Normal/link.png"].size_bytes == 4
    assert "not followed" in (files["tuberculosis:Normal/same_folder"].detail or "")


def test_a_root_behind_a_link_and_with_a_slash_lists_as_any_other(tmp_path):
    write(tmp_path / "real/Normal/a.png")
    (tmp_path / "real/Normal/b.png").symlink_to("a.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    files = list(list_source("tuberculosis", f"{tmp_path}/link/"))
    assert [(file.image_id, file.path, file.reason) for file in files] == [
        (f"tuberculosis:Normal/{name}", f"{tmp_path}/link/Normal/{name}", None)
        for name in ("a.png", "b.png")
    ]


def test_a_folder_that_cannot_be_listed_is_a_row(tmp_path, monkeypatch):
    write(tmp_path / "Normal/a.png")
    write(tmp_path / "locked/b.png")
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(os.path.normpath(path)) == "locked":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    file = listed("tuberculosis", tmp_path)["tuberculosis:locked"]
    assert (file.reason, file.detail) == (
        "unreadable",
        "the folder cannot be listed: Permission denied",
    )


def test_size_and_modification_time_are_the_files_own_to_the_microsecond(tmp_path):
    path = write(tmp_path / "Normal/a.png", b"12345")
    os.utime(path, ns=(0, 1_700_000_000_123_456_789))
    file = one("tuberculosis", tmp_path)
    assert file.size_bytes == 5
    assert file.modified_at == datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)


@pytest.mark.parametrize(
    ("nanoseconds", "moment"),
    [(10**21, datetime(9999, 12, 31, tzinfo=UTC)), (-(10**21), datetime(1, 1, 2, tzinfo=UTC))],
)
def test_a_time_that_no_calendar_has_becomes_the_nearest_that_it_has(
    tmp_path, monkeypatch, nanoseconds, moment
):
    path = write(tmp_path / "Normal/a.png")
    fields = list(path.stat())
    monkeypatch.setattr(
        listing.os, "stat", lambda path: os.stat_result(fields, {"st_mtime_ns": nanoseconds})
    )
    assert listing._found(str(path), "a.png").modified_at == moment


def test_listing_reads_no_file(tmp_path):
    path = write(tmp_path / "Normal/a.png")
    os.utime(path, ns=(1, 1))
    one("tuberculosis", tmp_path)
    assert path.stat().st_atime_ns == 1


def test_twenty_thousand_files_are_listed_in_seconds(tmp_path):
    (tmp_path / "images").mkdir()
    names = [f"{number:08d}_000.png" for number in range(20_000)]
    nih(tmp_path, *(row(name) for name in names))
    for name in names:
        os.close(os.open(tmp_path / "images" / name, os.O_CREAT))
    started = time.process_time()
    assert sum(file.reason is None for file in list_source("nih", tmp_path)) == 20_000
    assert time.process_time() - started < 4


# --- any folder, for scoring ----------------------------------------------------------------------


def test_any_folder_is_listed_under_absolute_paths_with_nothing_known(tmp_path, monkeypatch):
    write(tmp_path / "in/b/scan.dcm", b"12")
    write(tmp_path / "in/1.2.840.10008")
    write(tmp_path / "in/notes.txt")
    (tmp_path / "in/out.png").symlink_to("/etc/hostname")
    monkeypatch.chdir(tmp_path)
    files = list(list_folder("in"))
    assert [(file.image_id, file.reason) for file in files] == [
        (f"file:{tmp_path}/in/1.2.840.10008", None),
        (f"file:{tmp_path}/in/b/scan.dcm", None),
        (f"file:{tmp_path}/in/out.png", "outside_root"),
    ]
    assert (files[1].path, files[1].size_bytes) == (f"{tmp_path}/in/b/scan.dcm", 2)
    assert (files[1].source, files[1].raw_labels, files[1].patient_id) == ("file", [], None)


def test_a_folder_that_is_none_or_not_named_in_utf8_is_an_error(tmp_path):
    with pytest.raises(
        SourceError, match=r"nowhere: no such folder\. Give a folder of image files"
    ):
        list_folder(tmp_path / "nowhere")
    latin = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(latin)
    for call in (lambda: list_folder(os.fsdecode(latin)), lambda: one("covid", os.fsdecode(latin))):
        with pytest.raises(SourceError, match=r"caf//xe9: the folder's name is not UTF-8"):
            call()


# --- the real data -------------------------------------------------------------------------------


def independent_folder_counts(source: str) -> Counter:
    counts: Counter = Counter()
    for folder, _, names in os.walk(REAL / source):
        for name in names:
            if name.lower().endswith((".png", ".jpg", ".jpeg")):
                split = os.path.basename(os.path.dirname(folder))
                split = split if split in ("train", "val", "test") else None
                counts[canonical_label(os.path.basename(folder)), split] += 1
    return counts


@needs_real_data
@pytest.mark.parametrize("source", ["pneumonia", "tuberculosis", "covid"])
def test_the_real_folder_sources_count_as_their_folders_do(source):
    files = list(list_source(source, REAL / source))
    assert all(file.reason is None and len(file.raw_labels) == 1 for file in files)
    counts = Counter((file.raw_labels[0], file.folder_split) for file in files)
    assert counts == independent_folder_counts(source)
    assert sum(counts.values()) > 40


@needs_real_data
@pytest.mark.parametrize(
    "table",
    [
        "nih/Data_Entry_2017.csv",
        "nih_csv_variants/box2017/Data_Entry_2017.csv",
        "nih_csv_variants/v2020/Data_Entry_2017_v2020.csv",
    ],
)
def test_the_real_nih_images_agree_with_each_form_of_their_table(tmp_path, table):
    for path in (REAL / table, *(REAL / "nih").glob("*.*")):
        if path.name not in sources_nih.DATA_ENTRY_FILES or path == REAL / table:
            shutil.copyfile(path, tmp_path / path.name)
    for path in (REAL / "nih").glob("images_*/images/*.png"):
        write(tmp_path / path.relative_to(REAL / "nih"))
    with open(REAL / table, newline="") as lines:
        expected = {line["Image Index"]: line for line in csv.DictReader(lines)}
    test = (REAL / "nih/test_list.txt").read_text().split()
    files = list(list_source("nih", tmp_path))
    assert {os.path.basename(file.path) for file in files} == set(expected)
    for file in files:
        line = expected[os.path.basename(file.path)]
        assert file.reason is None
        assert "|".join(file.raw_labels) == line["Finding Labels"]
        assert file.patient_id == str(int(line["Patient ID"]))
        assert file.age_years == int(line["Patient Age"].rstrip("Y"))
        assert (file.sex, file.view) == (line["Patient Gender"], line["View Position"])
        official = "test" if os.path.basename(file.path) in test else "train_val"
        assert file.official_split == official
    boxes = (REAL / "nih/BBox_List_2017.csv").read_text().strip().split("\n")[1:]
    assert sum(len(file.boxes) for file in files) == len(boxes) > 0


@needs_real_data
@pytest.mark.parametrize(
    ("table", "sole_pneumonia"),
    [("Data_Entry_2017.csv", 322), ("Data_Entry_2017.first_release.csv", None)],
)
def test_the_whole_nih_metadata_is_read_as_published(tmp_path, table, sole_pneumonia):
    for packed, name in (
        (table, "Data_Entry_2017.csv"),
        ("train_val_list.txt", "train_val_list.txt"),
        ("test_list.txt", "test_list.txt"),
    ):
        data = gzip.decompress((REAL / "nih_metadata" / f"{packed}.gz").read_bytes())
        (tmp_path / name).write_bytes(data)
    entries = sources_nih.read_entries(str(tmp_path)).values()
    assert len(entries) == 112_120
    assert len({entry.patient_id for entry in entries}) == 30_805
    assert Counter(entry.official_split for entry in entries) == {
        "train_val": 86_524,
        "test": 25_596,
    }
    assert sum(entry.age_years is None for entry in entries) == 16
    if sole_pneumonia is not None:
        sole = Counter(entry.raw_labels[0] for entry in entries if len(entry.raw_labels) == 1)
        assert (sole["No Finding"], sole["Pneumonia"]) == (60_361, sole_pneumonia)
