"""Groups and images in two splits are found in any table, and what can't be checked is said."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from pyspark.sql import SparkSession

from cxr_spark import job
from cxr_spark.leakage import Leak, Leakage, Leaked, TableError, check, find_leaks
from cxr_spark.tables import Warehouse
from jobs import check_leakage
from tests import words

Rows = Sequence[tuple[str | None, ...]]


def found(spark: SparkSession, rows: Rows) -> Leakage:
    """The leaks of rows of split, group and, where they have it, image."""
    names = ["split", "group", "image"][: len(rows[0])]
    frame = spark.createDataFrame(list(rows), ", ".join(f"`{name}` string" for name in names))
    return find_leaks(frame, *names)


def write(path: Path, **columns: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


# --- what is a leak ------------------------------------------------------------------------------


def test_a_group_in_two_splits_is_named_with_its_rows_and_the_worst_comes_first(
    spark: SparkSession,
) -> None:
    rows = [("train", "a"), ("test", "a"), ("train", "b"), ("train", "b"), ("val", "c")]
    leakage = found(spark, [*rows, ("val", "d"), ("train", "d"), ("train", "d")])
    assert leakage.counts == {
        "rows": 8,
        "groups": 4,
        "rows_without_group": 0,
        "rows_without_split": 0,
        "leaking_groups": 2,
    }
    assert leakage.groups == [
        Leak("d", 3, {"train": 2, "val": 1}, []),
        Leak("a", 2, {"test": 1, "train": 1}, []),
    ]
    assert "group d: 2 in train, 1 in val" in leakage.in_words()
    with pytest.raises(Leaked, match="in two splits or more: 2 groups"):
        leakage.require_none()


def test_a_row_without_a_group_is_its_own_and_a_row_without_a_split_leaks_nothing(
    spark: SparkSession,
) -> None:
    rows: Rows = [("train", None), ("test", None), ("val", " "), ("train", "a"), (None, "a")]
    leakage = found(spark, [*rows, ("", "b"), ("test", "b")])
    assert leakage.counts == {
        "rows": 7,
        "groups": 5,
        "rows_without_group": 3,
        "rows_without_split": 2,
        "leaking_groups": 0,
    }
    assert leakage.in_words() == [
        "7 rows in 5 groups",
        "3 rows have no group: each is its own",
        "2 rows have no split: they leak nothing",
    ]
    leakage.require_none()


def test_the_images_of_a_leaking_group_come_from_all_its_splits(spark: SparkSession) -> None:
    rows: Rows = [("train", "a", f"t{number}") for number in range(9)]
    leakage = found(spark, [*rows, ("test", "a", "z"), ("train", "b", "b1"), ("test", None, "x")])
    assert [leak.images for leak in leakage.groups] == [["z", "t0", "t1", "t2", "t3"]]
    assert leakage.counts["leaking_images"] == 0
    assert "; images z, t0, t1, t2, t3" in leakage.in_words()[-1]


def test_an_image_in_two_splits_is_a_leak_though_its_groups_are_not(spark: SparkSession) -> None:
    leakage = found(spark, [("train", "a", "1"), ("test", "b", "1"), ("test", None, "2")])
    assert (leakage.groups, leakage.counts["leaking_groups"]) == ([], 0)
    assert leakage.images == [Leak("1", 2, {"test": 1, "train": 1}, [])]
    with pytest.raises(Leaked, match="in two splits or more: 1 images"):
        leakage.require_none()


def test_an_image_of_two_rows_is_named_once(spark: SparkSession) -> None:
    leakage = found(spark, [("train", "a", "1"), ("test", "a", "1")])
    assert leakage.groups[0].images == ["1"]


def test_a_long_list_is_cut_and_says_so(spark: SparkSession) -> None:
    rows = [(split, f"g{number:02d}") for number in range(25) for split in ("train", "test")]
    leakage = found(spark, rows)
    assert [leak.key for leak in leakage.groups] == [f"g{number:02d}" for number in range(20)]
    assert leakage.in_words()[-1] == "... and 5 more leaking groups"


def test_columns_given_the_wrong_way_round_do_not_flood_the_terminal(spark: SparkSession) -> None:
    leakage = found(spark, [(f"patient{number:04d}", "train") for number in range(500)])
    assert leakage.counts["leaking_groups"] == 1
    assert len(leakage.groups[0].splits) == 10
    assert leakage.in_words()[-1].endswith("1 in patient0009, 490 in further splits")


# --- which tables --------------------------------------------------------------------------------


def test_a_table_of_pandas_is_read_whatever_else_it_holds(
    spark: SparkSession, tmp_path: Path
) -> None:
    frame = pd.DataFrame(
        {
            "Patient ID": [1.0, 1.0, np.nan, np.nan],
            "fold": [0, 1, 0, 1],
            "taken": np.full(4, np.datetime64("2020-01-01", "ns")),
            "empty": [None] * 4,
        }
    )
    frame.to_parquet(tmp_path / "images.parquet")
    leakage = check(spark, str(tmp_path / "images.parquet"), "fold", "Patient ID")
    assert leakage.groups == [Leak("1.0", 2, {"0": 1, "1": 1}, [])]
    assert (leakage.counts["rows_without_group"], leakage.version) == (2, None)


def test_columns_may_have_any_names_and_differ_only_in_case(
    spark: SparkSession, tmp_path: Path
) -> None:
    odd = {"g": ["p", "p"], "G": ["p", "q"], "a.b": ["x", "y"], "s `1`": ["x", "x"]}
    table = write(tmp_path / "odd [1]*/part-0.parquet", **odd)
    folder = str(Path(table).parent)
    leaking = {
        (split, group): check(spark, folder, split, group).counts["leaking_groups"]
        for split, group in (("a.b", "g"), ("a.b", "G"), ("s `1`", "g"))
    }
    assert leaking == {("a.b", "g"): 1, ("a.b", "G"): 0, ("s `1`", "g"): 0}


def test_partition_folders_are_columns_and_01_is_not_1(spark: SparkSession, tmp_path: Path) -> None:
    for place in ("split=train/p=01", "split=test/p=1", "split=train/p=2", "split=test/p=2"):
        write(tmp_path / place / "a.parquet", image=["x"])
    leakage = check(spark, str(tmp_path), "split", "p", "image")
    assert [leak.key for leak in leakage.groups] == ["2"]
    assert leakage.images == [Leak("x", 4, {"test": 2, "train": 2}, [])]


def test_binary_and_nested_groups_are_compared_by_value(
    spark: SparkSession, tmp_path: Path
) -> None:
    groups = {"b": [b"\xff", b"\xfe"], "l": [["a"], ["a"]], "n": [1.5, float("nan")]}
    table = write(tmp_path / "t.parquet", split=["train", "test"], **groups)
    assert check(spark, table, "split", "b").groups == []
    assert check(spark, table, "split", "l").groups == [Leak("[a]", 2, {"test": 1, "train": 1}, [])]
    assert check(spark, table, "split", "n").counts["rows_without_group"] == 1


def test_only_the_newest_version_of_a_foreign_delta_table_counts(
    spark: SparkSession, tmp_path: Path
) -> None:
    leaking = pa.table({"split": ["train", "test"], "id": ["p", "p"]})
    mended = pa.table({"split": ["train", "test", None], "id": ["p", "q", "p"]})
    write_deltalake(tmp_path, leaking, partition_by=["split"])
    assert check(spark, str(tmp_path), "split", "id").counts["leaking_groups"] == 1
    write_deltalake(tmp_path, mended, mode="overwrite")
    leakage = check(spark, str(tmp_path), "split", "id")
    assert (leakage.groups, leakage.counts["rows"], leakage.version) == ([], 3, 1)


def test_a_table_of_a_warehouse_is_read(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    rows = [
        {"run_id": "r", "image_id": f"nih:{split}", "group_id": "nih:1", "split": split}
        for split in ("train", "val")
    ]
    warehouse.append_rows("images", rows)
    leakage = check(spark, warehouse.path("images"), "split", "group_id", "image_id")
    assert leakage.groups == [Leak("nih:1", 2, {"train": 1, "val": 1}, ["nih:train", "nih:val"])]


def test_an_empty_table_leaks_nothing_and_says_that_it_is_empty(
    spark: SparkSession, tmp_path: Path
) -> None:
    table = write(tmp_path / "t.parquet", split=pa.array([], "string"), id=pa.array([], "string"))
    leakage = check(spark, table, "split", "id", "id")
    leakage.require_none()
    assert leakage.in_words() == ["0 rows in 0 groups"]


def test_the_settings_of_the_callers_session_stay(spark: SparkSession, tmp_path: Path) -> None:
    check(spark, write(tmp_path / "t.parquet", split=["a"], id=["p"]), "split", "id")
    assert spark.conf.get("spark.sql.caseSensitive") == "false"
    assert SparkSession.getActiveSession() is spark


# --- what is no table ----------------------------------------------------------------------------


def test_a_missing_column_is_named_with_those_there(spark: SparkSession, tmp_path: Path) -> None:
    table = write(tmp_path / "t.parquet", Split=["a"], id=["p"])
    with pytest.raises(TableError, match=r"no column 'split', 'x' in the table; it has 'Split'"):
        check(spark, table, "split", "id", "x")


def test_what_is_no_table_is_named(spark: SparkSession, tmp_path: Path) -> None:
    whole = Path(write(tmp_path / "t.parquet", split=["a"], id=["p"])).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-9])
    (tmp_path / "empty").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/table.csv").write_text("split,id\ntrain,1\n")
    for name in ("cut.parquet", "empty", "docs"):
        with pytest.raises(TableError, match=rf"{name}: no Delta or Parquet table .* be read: \["):
            check(spark, str(tmp_path / name), "split", "id")
    with pytest.raises(TableError, match="nowhere: no such file or folder"):
        check(spark, str(tmp_path / "nowhere"), "split", "id")


@pytest.mark.parametrize("log", [b"", b"garbage"])
def test_a_broken_log_and_a_missing_column_are_bad_input(
    spark: SparkSession, tmp_path: Path, log: bytes
) -> None:
    (tmp_path / "_delta_log").mkdir()
    (tmp_path / "_delta_log" / f"{0:020d}.json").write_bytes(log)
    table = write(tmp_path / "t.parquet", split=["a"], id=["p"])
    for path, group, message in (
        (str(tmp_path), "id", f"{tmp_path}: .*log"),
        (table, "patient", "no column 'patient' in the table; it has 'split', 'id'"),
    ):
        options = check_leakage.parser().parse_args(
            ["--verbose", "--table", path, "--split", "split", "--group", group]
        )
        with pytest.raises(ValueError, match=message) as raised:
            check_leakage.main(options, job.Run("check_leakage"))
        assert job._outcome(raised.value)[0] == "invalid"


def test_a_file_broken_in_its_middle_is_named(spark: SparkSession, tmp_path: Path) -> None:
    ids = [f"p{number}" for number in range(2000)]
    table = write(tmp_path / "t.parquet", split=["a"] * 2000, id=ids)
    content = bytearray(Path(table).read_bytes())
    content[10:400] = bytes(390)
    Path(table).write_bytes(content)
    with pytest.raises(TableError, match=r"\[FAILED_READ_FILE"):
        check(spark, table, "split", "id")


# --- the job -------------------------------------------------------------------------------------


def test_the_job_ends_with_3_and_names_what_leaks_and_writes_nothing(
    run_job, tmp_path: Path
) -> None:
    columns = {"split": ["train", "test"], "patient": ["p", "p"], "image": ["a.png", "b.png"]}
    table = write(tmp_path / "t.parquet", **columns)
    options = ("--table", table, "--split", "split", "--group", "patient", "--image", "image")
    done = run_job("check_leakage", *options)
    assert (done.exit_code, done.summary["status"]) == (3, "refused")
    assert (done.summary["counts"]["rows"], done.summary["counts"]["leaking_groups"]) == (2, 1)
    leak = {"key": "p", "rows": 2, "splits": {"test": 1, "train": 1}, "images": ["b.png", "a.png"]}
    assert done.summary["outputs"] == {"leaking_groups": [leak], "leaking_images": []}
    assert "group p: 1 in test, 1 in train; images b.png, a.png" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [Path(table)]


def test_the_job_ends_with_0_where_nothing_leaks(run_job, tmp_path: Path) -> None:
    write_deltalake(tmp_path / "t", pa.table({"split": ["train", "test"], "id": ["p", "q"]}))
    done = run_job("check_leakage", "--table", tmp_path / "t", "--split", "split", "--group", "id")
    assert (done.exit_code, done.summary["status"]) == (0, "finished"), done.stderr
    assert (done.summary["counts"]["groups"], done.summary["versions"]) == (2, {"table": 0})
    assert words.bare(done.stderr, "check_leakage") == words.shown("check_leakage")
