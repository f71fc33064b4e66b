"""Listing a hospital's own images: what a manifest may say, and what it may not."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr_spark.listing import ListedFile, SourceError
from cxr_spark.manifest import list_manifest, manifest_argument, parse_manifests
from cxr_spark.pseudonyms import pseudonym

SALT = b"0123456789abcdef0123456789abcdef"
FULL = "path,label,patient_id,view,sex,age,split"


def csv(folder: Path, *lines: str, header: str = "path,label") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "images.csv").write_text("\n".join((header, *lines)), newline="")
    return folder / "images.csv"


def parquet(folder: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), folder / "images.parquet")
    return folder / "images.parquet"


def listed(manifest: Path) -> dict[str, ListedFile]:
    files = list(list_manifest("mercy", manifest, SALT))
    assert [file.image_id for file in files] == sorted({file.image_id for file in files})
    return {file.image_id.removeprefix("mercy:"): file for file in files}


def one(manifest: Path) -> ListedFile:
    (file,) = list_manifest("mercy", manifest, SALT)
    return file


def reasons(manifest: Path) -> dict[str, str | None]:
    return {path: file.reason for path, file in listed(manifest).items()}


def refusal(manifest: Path) -> str:
    with pytest.raises(SourceError) as error:
        list_manifest("mercy", manifest, SALT)
    assert str(error.value).startswith(str(manifest))
    return str(error.value).removeprefix(str(manifest))


# --- what a row says -----------------------------------------------------------------------------


def test_a_row_becomes_a_file_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.png").write_bytes(b"1234")
    file = one(csv(tmp_path, "a/1.png,Edema,p7,AP,F,58,test", header=FULL))
    assert (file.image_id, file.source) == ("mercy:a/1.png", "mercy")
    assert file.path == str(tmp_path / "a/1.png")
    assert (file.size_bytes, file.reason, file.boxes) == (4, None, [])
    assert file.modified_at is not None
    assert file.modified_at.timestamp() == pytest.approx((tmp_path / "a/1.png").stat().st_mtime)
    assert (file.raw_labels, file.patient_id) == (["Edema"], pseudonym("p7", SALT))
    assert (file.view, file.sex, file.age_years) == ("AP", "F", 58)
    assert (file.folder_split, file.official_split) == ("test", None)


def test_a_patients_id_stands_in_no_column(tmp_path: Path) -> None:
    file = one(csv(tmp_path, "1.png,Edema,Mrs Miller,AP,F,58,test", header=FULL))
    assert "Miller" not in repr(file)


def test_what_the_manifest_leaves_out_is_unknown(tmp_path: Path) -> None:
    for manifest in (csv(tmp_path, "a.png,Edema,,,,,"), csv(tmp_path, "a.png,Edema", header=FULL)):
        file = one(manifest)
        assert (file.patient_id, file.view, file.sex) == (None, None, None)
        assert (file.age_years, file.folder_split) == (None, None)


def test_words_that_say_nothing_here_are_unknown(tmp_path: Path) -> None:
    file = one(csv(tmp_path, "a.png,Edema,nan,lateral,other,old,holdout", header=FULL))
    assert (file.patient_id, file.view, file.sex) == (None, None, None)
    assert (file.age_years, file.folder_split) == (None, None)


def test_headers_and_words_may_be_in_any_case_and_any_order_among_other_columns(
    tmp_path: Path,
) -> None:
    header = "notes,SEX , Label,View,Path,Split,AGE,Patient_ID"
    row = "seen twice, female , NORMAL,pa,a.png,Train,058Y, p7 "
    file = one(csv(tmp_path, row, header=header))
    assert (file.raw_labels, file.sex, file.view) == (["No Finding"], "F", "PA")
    assert (file.folder_split, file.age_years) == ("train", 58)
    assert file.patient_id == pseudonym("p7", SALT)


@pytest.mark.parametrize(("word", "sex"), [("m", "M"), ("Male", "M"), ("FEMALE", "F"), ("X", None)])
def test_sex_is_a_letter_or_a_word(tmp_path: Path, word: str, sex: str | None) -> None:
    assert one(csv(tmp_path, f"a.png,Edema,{word}", header="path,label,sex")).sex == sex


def test_labels_may_be_several_and_those_not_known_stay_as_written(tmp_path: Path) -> None:
    files = listed(csv(tmp_path, "a,covid-19| Mass", "b,Lungenödem", "c,"))
    assert [file.raw_labels for file in files.values()] == [["Covid", "Mass"], ["Lungenödem"], []]


def test_the_same_id_from_csv_and_from_any_column_of_parquet_is_the_same_patient(
    tmp_path: Path,
) -> None:
    known = [pa.array([12]), pa.array([12.0]), pa.array(["12"]), pa.array([b"12"])]
    known += [pa.array([12], pa.uint16()), pa.array(["12"]).dictionary_encode()]
    for ids in known:
        manifest = parquet(tmp_path, path=["a"], label=["Edema"], patient_id=ids)
        assert one(manifest).patient_id == pseudonym("12", SALT), ids.type
    manifests = [csv(tmp_path / text, f"a,Edema,{text}", header=FULL) for text in ("12", "12.0")]
    assert {one(manifest).patient_id for manifest in manifests} == {pseudonym("12", SALT)}


def test_padded_ids_are_other_patients_as_hospitals_may_mean_them(tmp_path: Path) -> None:
    files = listed(csv(tmp_path, "a,Edema,12", "b,Edema,012", header=FULL))
    assert files["a"].patient_id != files["b"].patient_id


def test_a_parquet_file_of_pandas_says_what_a_csv_says(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "path": ["a.png", "b.png"],
            "label": pd.Categorical(["Edema", "Mass|Covid"]),
            "patient_id": [12, np.nan],
            "age": [58.0, None],
            "Sex": ["F", None],
            "taken": pd.Timestamp("2020-01-01"),
        },
        index=["x", "y"],
    )
    frame.to_parquet(tmp_path / "images.pq")
    frame.to_csv(tmp_path / "images.csv")
    files = listed(tmp_path / "images.pq")
    assert files == listed(tmp_path / "images.csv")
    known = [(f.raw_labels, f.age_years, f.sex, f.patient_id is None) for f in files.values()]
    assert known == [(["Edema"], 58, "F", False), (["Mass", "Covid"], None, None, True)]


def test_nan_says_nothing_in_any_column(tmp_path: Path) -> None:
    nan = float("nan")
    assert one(parquet(tmp_path, path=["a"], label=[nan], patient_id=[nan])).raw_labels == []
    assert "column path: ''" in refusal(parquet(tmp_path, path=[nan], label=["Edema"]))


def test_parquet_is_known_by_its_content_too(tmp_path: Path) -> None:
    manifest = parquet(tmp_path, path=["a"], label=["Edema"]).rename(tmp_path / "images")
    assert one(manifest).raw_labels == ["Edema"]


# --- where a path leads --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "no suffix",
        "x.txt",
        "new\nline.png",
        "%41*?[1]{a,b}.png",
        "Übersicht 胸部.png",
        " space ",
        ".h",
    ],
)
def test_a_listed_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"content")
    for manifest in (
        csv(tmp_path, f'"{name}",Edema'),
        parquet(tmp_path, path=[name], label=["Edema"]),
    ):
        file = one(manifest)
        assert (file.image_id, file.reason) == (f"mercy:{name}", None)
        assert Path(file.path).read_bytes() == b"content"


def test_paths_are_taken_from_the_manifests_folder_wherever_the_job_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    csv(tmp_path / "archive", "a.png,Edema")
    (tmp_path / "archive/a.png").touch()
    monkeypatch.chdir(tmp_path)
    file = one(Path("archive/images.csv"))
    assert (file.path, file.reason) == (str(tmp_path / "archive/a.png"), None)


@pytest.mark.parametrize(
    "path",
    ["../secret.png", "/etc/passwd", "https://example.org/a.png", "S3://x/a", "x/../../secret.png"],
)
def test_a_path_that_leads_out_of_the_folder_is_a_reject(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.png").touch()
    file = one(csv(tmp_path / "in", f"{path},Edema"))
    assert (file.image_id, file.reason) == (f"mercy:{path}", "outside_root")
    assert (file.size_bytes, file.raw_labels) == (None, ["Edema"])


def test_a_path_through_a_folder_and_back_is_inside_and_a_row_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b.png").touch()
    assert reasons(csv(tmp_path, "a/../b.png,Edema", "./b.png,Edema", "b.png,Edema")) == {
        "./b.png": None,
        "a/../b.png": None,
        "b.png": None,
    }


def test_links_are_followed_inside_the_folder_and_never_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "in/real").mkdir(parents=True)
    (tmp_path / "in/real/a.png").touch()
    (tmp_path / "out.png").touch()
    (tmp_path / "in/linked").symlink_to("real")
    (tmp_path / "in/link.png").symlink_to("real/a.png")
    (tmp_path / "in/away").symlink_to(tmp_path)
    (tmp_path / "in/away.png").symlink_to("../out.png")
    (tmp_path / "in/dangling.png").symlink_to("gone.png")
    paths = ["linked/a.png", "link.png", "away/out.png", "away.png", "dangling.png"]
    paths += ["away/../in/real/a.png", "linked/../real/a.png"]
    assert reasons(csv(tmp_path / "in", *(f"{path},Edema" for path in paths))) == {
        "linked/a.png": None,
        "link.png": None,
        "away/out.png": "outside_root",
        "away.png": "outside_root",
        "dangling.png": "missing_file",
        "away/../in/real/a.png": "outside_root",
        "linked/../real/a.png": None,
    }


def test_what_is_not_there_and_what_is_no_file_are_rejects_and_never_opened(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe.png")
    paths = ["gone.png", "file/below.png", "folder.png", "pipe.png", ".", "x" * 300]
    assert reasons(csv(tmp_path, *(f"{path},Edema" for path in paths))) == {
        "gone.png": "missing_file",
        "file/below.png": "missing_file",
        "folder.png": "not_a_file",
        "pipe.png": "not_a_file",
        ".": "not_a_file",
        "x" * 300: "unreadable",
    }


def test_listing_reads_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    os.utime(tmp_path / "a.png", ns=(1, 1))
    one(csv(tmp_path, "a.png,Edema"))
    assert (tmp_path / "a.png").stat().st_atime_ns == 1


# --- what a manifest may not be ------------------------------------------------------------------


def test_a_repeated_row_is_one_row(tmp_path: Path) -> None:
    assert one(csv(tmp_path, "a.png,Edema", "a.png, edema ")).raw_labels == ["Edema"]


def test_a_path_with_two_sets_of_values_names_both_lines(tmp_path: Path) -> None:
    said = refusal(csv(tmp_path, '"a.png",Edema', "", '"b\nb.png",Mass', "a.png,Mass"))
    assert said.startswith(", line 6: a.png stands on line 2 too, with other values")
    said = refusal(parquet(tmp_path, path=["a", "b", "a"], label=["Edema", "Edema", "Mass"]))
    assert said.startswith(", row 3: a stands on row 1 too")


@pytest.mark.parametrize("path", ["", "  "])
def test_an_empty_path_names_its_line(tmp_path: Path, path: str) -> None:
    said = refusal(csv(tmp_path, "a.png,Edema", f"{path},Edema"))
    assert said.startswith(f", line 3, column path: {path!r} is no path")
    said = refusal(parquet(tmp_path, path=["a", path or None], label=["Edema", "Edema"]))
    assert said.startswith(f", row 2, column path: {path!r} is no path")


def test_a_missing_column_names_those_there_and_those_expected(tmp_path: Path) -> None:
    said = refusal(csv(tmp_path, "a.png;Edema", header="path;label"))
    assert "no column path, label; the columns here are: path;label. Give" in said
    said = refusal(parquet(tmp_path, path=["a"], finding=["Edema"]))
    assert "no column label; the columns here are: path, finding. Give" in said
    assert "columns path, label and, where known, patient_id, view, sex, age, split" in said


def test_a_column_that_is_there_twice_is_ambiguous(tmp_path: Path) -> None:
    said = refusal(csv(tmp_path, "a.png,b.png,Edema", header="path,Path,label"))
    assert said == ": two columns are named path; rename one of them."


def test_lines_with_too_few_and_too_many_cells_are_named(tmp_path: Path) -> None:
    assert refusal(csv(tmp_path, "a.png,Edema", "b.png")).startswith(", line 3: it ends before")
    said = refusal(csv(tmp_path, "a.png,Edema, mild"))
    assert said.startswith(", line 2: more cells than the header has columns; a comma inside")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": no column path, label; the columns here are: none"),
        (b"path,label\n\n", ": no row below the header"),
        (b"path,label\na.png,\xff\n", ", line 2: not UTF-8 text"),
        ("path,label\na.png,Edema\n".encode("utf-16"), ", line 1: not UTF-8 text"),
        (b"path,label\na.png,Ed\0ema\n", ", line 2: a NUL byte"),
        (b'path,label\na.png,Edema\n"b.png,Edema\nc.png,Edema\n', ", line 3: unexpected end"),
        (b"path,label\n" + b"x" * 200_000, ", line 2: field larger"),
        (b"PAR1 and no more", ": not readable as Parquet"),
    ],
)
def test_what_is_no_csv_is_one_clear_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "images.csv").write_bytes(content)
    assert refusal(tmp_path / "images.csv").startswith(message)


def test_byte_order_mark_and_line_ends_of_windows_are_forgiven(tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_bytes(b'\xef\xbb\xbfpath,label\r\n"a.png","Edema"\r\n')
    assert one(tmp_path / "images.csv").raw_labels == ["Edema"]


def test_a_parquet_file_that_is_cut_off_or_text_is_one_clear_error(tmp_path: Path) -> None:
    manifest = parquet(tmp_path, path=["a"], label=["Edema"])
    whole = manifest.read_bytes()
    for content in (whole[:-9], b"path,label\n", b"", whole.replace(b"Edema", b"Ede\xffa")):
        manifest.write_bytes(content)
        assert refusal(manifest).startswith(": not readable as Parquet: ")


def test_a_parquet_column_of_lists_is_named_with_its_type(tmp_path: Path) -> None:
    said = refusal(parquet(tmp_path, path=["a"], label=[["Edema", "Mass"]]))
    assert "column label: list<element: string> is neither text nor number" in said


def test_a_nul_byte_in_a_path_of_parquet_names_its_row(tmp_path: Path) -> None:
    assert ", row 1, column path: 'a\\x00b'" in refusal(
        parquet(tmp_path, path=["a\0b"], label=[""])
    )


def test_a_manifest_must_be_a_file_that_is_there(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    assert refusal(tmp_path / "gone.csv").startswith(
        ": no such file. Give a Parquet file, or a CSV"
    )
    assert refusal(tmp_path / "pipe.csv").startswith(": not a file. ")
    assert refusal(tmp_path).startswith(": not a file. ")


# --- NAME=FILE -----------------------------------------------------------------------------------


def test_an_argument_is_a_name_and_a_file() -> None:
    assert manifest_argument("mercy=/a=b/c.csv") == ("mercy", "/a=b/c.csv")
    assert parse_manifests(["a=x.csv", "b_2=y.csv"]) == {"a": "x.csv", "b_2": "y.csv"}


@pytest.mark.parametrize("text", ["mercy.csv", "mercy=", "", "="])
def test_an_argument_of_another_form_says_the_form(text: str) -> None:
    with pytest.raises(SourceError, match="expected NAME=FILE"):
        manifest_argument(text)


@pytest.mark.parametrize(
    "name", ["", "Mercy", "2nd", "a b", "a:b", "a/b", "_a", "a" * 33, "é", "a\n", "nih", "file"]
)
def test_a_name_that_cannot_be_a_sources_says_what_can(tmp_path: Path, name: str) -> None:
    message = "a lower-case letter, then at most 31 .* none of nih, pneumonia, .*covid, file"
    with pytest.raises(SourceError, match=message):
        manifest_argument(f"{name}=x.csv")
    with pytest.raises(SourceError, match=message):
        list_manifest(name, csv(tmp_path, "a.png,Edema"), SALT)


def test_two_manifests_of_one_name_are_an_error() -> None:
    with pytest.raises(SourceError, match="mercy: two manifests have this name"):
        parse_manifests(["mercy=a.csv", "mercy=b.csv"])
