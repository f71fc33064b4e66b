"""The audit: each expectation can fail, names the rows that it fails for, and decides the run."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from cxr_spark import expectations, tables
from cxr_spark.data_docs import Table
from cxr_spark.expectations import AuditRefused, suite
from cxr_spark.labels import CLASSES
from cxr_spark.reasons import FILE_REASONS, REASONS
from cxr_spark.splits import SPLITS

NAMES = ("images_raw", "images", "rejects", "near_duplicates", "ledger")
LEDGER = """source string, listed long, accounted long, unreadable_share double,
    rejected_share double"""
Row = dict[str, Any]


class Voice:
    """Remembers what was said."""

    run_id = "curate-1"
    started_at = datetime(2026, 1, 2, tzinfo=UTC)

    def __init__(self) -> None:
        self.counts: dict[str, int | float] = {}
        self.outputs: dict[str, Any] = {}
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def sha(number: int) -> str:
    return f"{number:064x}"


def raw(i: int, **broken: Any) -> Row:
    row = {"image_id": f"nih:{i}", "source": "nih", "path": f"/{i}.png", "size_bytes": 9}
    row |= {"content_sha256": sha(i), "pixel_sha256": sha(i), "perceptual_hash": "0f"}
    row |= {"width": 80, "height": 80, "official_split": "test", "folder_split": "train"}
    return row | {"view": "PA", "sex": "F", "age_years": 60, "patient_id": "SECRET"} | broken


def image(i: int, **broken: Any) -> Row:
    row = {"image_id": f"nih:{i}", "source": "nih", "group_id": f"nih:g{i}", "image_size": 32}
    row |= {"content_sha256": sha(i), "pixel_sha256": sha(i), "preprocessing": "p"}
    row |= {"label": CLASSES[i % 9], "label_index": i % 9, "patient_id": "SECRET"}
    split = SPLITS[2 if i % 10 == 0 else 1 if i % 10 == 1 else 0]
    return row | {"split": split, "split_since": datetime(2026, 1, 1)} | broken


def reject(i: int, **broken: Any) -> Row:
    row = {"image_id": f"nih:{i}", "source": "nih", "path": f"/{i}.png"}
    return row | {"reason": "blank", "detail": "nearly one grey"} | broken


def pair(i: int, **broken: Any) -> Row:
    row = {"content_sha256": sha(i), "other_sha256": sha(i + 1)}
    return row | {"hash_distance": 3, "similarity": 0.98} | broken


def account(source: str | None, **broken: Any) -> Row:
    row = {"source": source, "listed": 9, "accounted": 9}
    return row | {"unreadable_share": 0.1, "rejected_share": 0.5} | broken


GOOD = {
    "images_raw": [raw(1), raw(2, reason="blank", detail="grey", width=None, pixel_sha256=None)],
    "images": [image(i) for i in range(20)],
    "rejects": [reject(1), reject(2, reason="duplicate", duplicate_of="nih:1")],
    "near_duplicates": [pair(1), pair(2)],
    "ledger": [account("nih"), account("covid")],
}
# One row, at the least, for each expectation; none but the shares takes more than one.
BROKEN = {
    "images_raw": [
        *(raw(1) for _ in range(7)),
        *(raw(2, **{name: None}) for name in ("image_id", "source", "path")),
        raw(3, reason="duplicate", detail="no reason of a file"),
        raw(4, perceptual_hash=None),
        raw(5, reason="blank", detail=None),
        *(raw(6, **{name: -1}) for name in ("size_bytes", "width", "height")),
        *(raw(7, **{name: "0F"}) for name in ("content_sha256", "pixel_sha256")),
        raw(8, official_split="val", folder_split="valid", view="LL", sex="male", age_years=121),
    ],
    "images": [
        image(1),
        image(1),
        image(5, group_id="nih:g1"),
        image(3, label_index=77),
        image(4, split_since=datetime(2999, 1, 1)),
        *(image(10, **{n: None}) for n in ("image_id", "source", "label", "split", "group_id")),
        *(image(12, **{n: None}) for n in ("preprocessing", "content_sha256", "pixel_sha256")),
        image(30, label="<b>Flu</b>", split="holdout", image_size=0),
        *(image(i, label="Edema", label_index=3) for i in range(11, 111, 10)),
        *(image(i, label="Edema", label_index=3) for i in range(110, 250, 10)),
    ],
    "rejects": [
        reject(1),
        reject(1),
        *(reject(2, **{n: None}) for n in ("image_id", "source", "path", "reason", "detail")),
        reject(3, reason="ugly"),
        reject(4, duplicate_of="nih:1"),
        reject(5, reason="duplicate"),
        reject(6, reason="duplicate", duplicate_of="nih:6"),
    ],
    "near_duplicates": [
        pair(1),
        pair(1),
        pair(2, content_sha256=None),
        pair(3, other_sha256=None),
        pair(4, other_sha256=sha(4)),
        pair(5, hash_distance=None, similarity=None),
        pair(6, hash_distance=-1, similarity=1.01),
    ],
    "ledger": [
        account("nih"),
        account("nih"),
        account(None),
        account("covid", listed=None),
        account("pneumonia", accounted=None),
        account("tuberculosis", unreadable_share=0.21, rejected_share=0.99),
    ],
}


def frames(spark: SparkSession, rows: dict[str, list[Row]]) -> dict[str, DataFrame]:
    """Frames as curation stages them, and the ledger."""
    schemas = {name: tables.schema(name) for name in NAMES[:-1]} | {"ledger": LEDGER}
    return {name: spark.createDataFrame(rows[name], schemas[name]) for name in NAMES}


@pytest.fixture(scope="module")
def good(spark: SparkSession) -> list[Table]:
    return expectations.validate(frames(spark, GOOD))


@pytest.fixture(scope="module")
def broken(spark: SparkSession) -> list[Table]:
    return expectations.validate(frames(spark, BROKEN))


@pytest.fixture
def refusal(broken: list[Table], tmp_path: Path) -> AuditRefused:
    with pytest.raises(AuditRefused) as refused:
        expectations.conclude(broken, Voice(), tmp_path / "docs")
    return refused.value


def sole_warning(good: list[Table], broken: list[Table]) -> list[Table]:
    """The good tables, but one warning fails."""
    ledger = broken[NAMES.index("ledger")].results
    warning = [r for r in ledger if r.expectation_config.kwargs["column"] == "rejected_share"]
    return [*good[:-1], Table("ledger", 2, warning)]


def value_set(table: str, column: str) -> list[Any]:
    (found,) = [
        one["kwargs"]["value_set"]
        for one in suite(table)["expectations"]
        if one["type"].endswith("_to_be_in_set") and one["kwargs"]["column"] == column
    ]
    return found


def test_value_sets_are_those_of_the_code() -> None:
    assert value_set("images_raw", "reason") == list(FILE_REASONS)
    assert value_set("rejects", "reason") == list(REASONS)
    assert value_set("images", "label") == list(CLASSES)
    assert value_set("images", "split") == list(SPLITS)
    quoted = re.findall("'([^']+)'", suite("images")["laws"]["has_index_of_label"])
    assert quoted == list(CLASSES)


@pytest.mark.parametrize("name", NAMES[:-1])
def test_a_suite_tells_rows_apart_by_the_key_of_the_table(name: str) -> None:
    assert suite(name)["key"] == list(tables.contract(name).key)


def test_good_tables_pass(good: list[Table], tmp_path: Path) -> None:
    voice = Voice()
    expectations.conclude(good, voice, tmp_path / "docs", strict=True)
    assert voice.said == []
    assert voice.counts == {"audit_warnings": 0}
    assert Path(voice.outputs["data_docs"]).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_every_expectation_fails_for_a_table_that_breaks_it(broken: list[Table], name: str) -> None:
    results = [r for r in broken[NAMES.index(name)].results if not r.success]
    assert all(r.exception_info["raised_exception"] is False for r in results)
    failed = {(r.expectation_config.type, r.expectation_config.kwargs["column"]) for r in results}
    asked = {(one["type"], one["kwargs"]["column"]) for one in suite(name)["expectations"]}
    assert failed == asked


def test_a_refusal_names_what_failed_and_its_rows(refusal: AuditRefused) -> None:
    text = str(refusal)
    assert "images: label_index is the label's place among the nine classes" in text
    assert "['nih:3']" in text
    assert f"['{sha(4)} {sha(4)}']" in text
    assert refusal.status == "refused"


def test_keys_of_rows_are_capped(broken: list[Table], refusal: AuditRefused) -> None:
    (repeated,) = [f for f in refusal.failures if str(f).startswith("images_raw: image_id is uni")]
    assert len(repeated.keys) == 5
    # The list of all of them would have come to the driver.
    assert not any("unexpected_index_list" in r.result for table in broken for r in table.results)
    assert max(len(failure.keys) for failure in refusal.failures) == 5


def test_every_hard_failure_refuses_and_no_other(refusal: AuditRefused) -> None:
    hard = [e for name in NAMES for e in suite(name)["expectations"] if e["severity"] == "critical"]
    assert len(refusal.failures) == len(hard)
    assert {failure.severity for failure in refusal.failures} == {"critical"}


def test_a_warning_is_said_and_counted(
    good: list[Table], broken: list[Table], tmp_path: Path
) -> None:
    voice = Voice()
    expectations.conclude(sole_warning(good, broken), voice, tmp_path / "docs")
    assert voice.counts == {"audit_warnings": 1}
    assert "audit warning: ledger: at most 98 %" in voice.said[0]
    assert "tuberculosis" in voice.said[0]


def test_under_strict_a_warning_refuses(
    good: list[Table], broken: list[Table], tmp_path: Path
) -> None:
    with pytest.raises(AuditRefused, match="ledger: at most 98 %"):
        expectations.conclude(sole_warning(good, broken), Voice(), tmp_path / "docs", strict=True)


def test_docs_of_a_refusal_hold_the_keys_and_no_patients(
    refusal: AuditRefused, tmp_path: Path
) -> None:
    pages = {page.stem: page.read_text("utf-8") for page in (tmp_path / "docs").iterdir()}
    assert pages.keys() == {"index", *NAMES}
    assert "nih:3" in pages["images"]
    assert "nih:3" in pages["index"]
    assert "&lt;b&gt;Flu&lt;/b&gt;" in pages["images"]
    assert "<b>Flu" not in pages["images"]
    assert "SECRET" not in "".join(pages.values())


def test_docs_that_cannot_be_written_lose_no_verdict(broken: list[Table], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    voice = Voice()
    with pytest.raises(AuditRefused):
        expectations.conclude(broken, voice, tmp_path / "file" / "docs")
    assert re.search("Data Docs can't be written to .*docs: .*Not a directory", voice.said[-1])
    assert "data_docs" not in voice.outputs
