"""What is known of files, and what has to be read, without Spark or a file."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from cxr_spark import known_files, tables
from cxr_spark.listing import ListedFile

THEN = datetime(2026, 1, 31, 23, 59, 59, 123456, tzinfo=UTC)
C1 = {"content_sha256": "c1"}


def listed(name: str, **facts: Any) -> ListedFile:
    source = name.split(":")[0]
    plain = ListedFile(name, source, f"/{name}", 1000, THEN, ["Edema"], [])
    return plain._replace(**facts)


def published(*rows: dict[str, Any]) -> pa.Table:
    """images_raw with the facts given, the rest as listed."""
    plain = known_files.published_files(None, None)  # type: ignore[arg-type]
    complete = [listed(row["image_id"])._asdict() | row for row in rows]
    return pa.Table.from_pylist(complete, plain.schema)


def decoded(*rows: dict[str, Any]) -> pa.Table:
    plain = {"size_bytes": 1000, "modified_at": THEN, "preprocessing": "p"}
    return pa.Table.from_pylist(
        [plain | row for row in rows], tables.arrow_schema("pixels", known_files.NARROW)
    )


def ids(table: pa.Table) -> list[str]:
    return table["image_id"].to_pylist()


@pytest.mark.parametrize(
    "now", [{"size_bytes": 1001}, {"modified_at": THEN + timedelta(microseconds=1)}]
)
def test_a_file_is_read_again_if_its_size_or_its_time_has_changed(now: dict[str, Any]) -> None:
    before = published({"image_id": "nih:a.png"} | C1)
    known = known_files.files_read_before(before, decoded({"image_id": "nih:a.png"} | C1))
    same = known_files.files_of_all_sources([listed("nih:a.png")], before)
    changed = known_files.files_of_all_sources([listed("nih:a.png", **now)], before)
    assert ids(known_files.files_to_read(same, known)) == []
    assert ids(known_files.files_to_read(changed, known)) == ["nih:a.png"]


def test_a_file_of_another_preprocessing_is_read_again_and_one_of_a_killed_run_is_not() -> None:
    before = published({"image_id": "nih:a.png", "content_sha256": "other"})
    known = known_files.files_read_before(before, decoded({"image_id": "nih:b.png"} | C1))
    files = known_files.files_of_all_sources([listed("nih:b.png"), listed("nih:a.png")], before)
    assert ids(known_files.files_to_read(files, known)) == ["nih:a.png"]


@pytest.mark.parametrize(("reason", "is_read"), [("empty_file", False), ("unreadable", True)])
def test_of_unread_files_those_refused_by_their_size_wait_until_they_change(
    reason: str, is_read: bool
) -> None:
    before = published({"image_id": "nih:a.png", "reason": reason, "detail": "0 bytes"})
    known = known_files.files_read_before(before, known_files.nothing_decoded())
    files = known_files.files_of_all_sources([listed("nih:a.png")], before)
    assert ids(known_files.files_to_read(files, known)) == ["nih:a.png"] * is_read
    (row,) = known_files.with_facts(files, known, known_files.nothing_decoded()).to_pylist()
    assert (row["reason"], row["detail"]) == ((None, None) if is_read else (reason, "0 bytes"))


def test_what_listing_refuses_is_not_read_and_its_reason_comes_before_that_of_decoding() -> None:
    refused = listed("nih:a.png", reason="not_in_manifest", detail="no row")
    files = known_files.files_of_all_sources([refused], published())
    content = decoded({"image_id": "nih:a.png", "reason": "blank", "detail": "one grey"} | C1)
    known = known_files.files_read_before(published(), content)
    assert ids(known_files.files_to_read(files, known)) == []
    (row,) = known_files.with_facts(files, known, content).to_pylist()
    assert (row["reason"], row["detail"], row["content_sha256"]) == (
        "not_in_manifest",
        "no row",
        "c1",
    )


def test_a_source_that_nobody_lists_stays_with_the_reasons_of_its_listing_alone() -> None:
    before = published(
        {"image_id": "covid:a.png", "reason": "blank", "detail": "one grey"} | C1,
        {"image_id": "covid:b.png", "reason": "not_in_manifest", "detail": "no row"} | C1,
        {"image_id": "covid:c.png", "reason": "missing_file", "detail": "gone"},
        {"image_id": "nih:gone.png"} | C1,
    )
    files = known_files.files_of_all_sources([listed("nih:new.png")], before)
    reasons = dict(zip(ids(files), files["reason"].to_pylist(), strict=True))
    assert reasons == {
        "nih:new.png": None,
        "covid:a.png": None,
        "covid:b.png": "not_in_manifest",
        "covid:c.png": "missing_file",
    }


def test_what_a_source_says_of_a_patient_comes_before_what_the_file_says() -> None:
    files = known_files.files_of_all_sources(
        [listed("nih:a.png", view="PA"), listed("nih:b.png")], published()
    )
    content = decoded(
        {"image_id": "nih:b.png", "view": "AP", "sex": "F", "width": 7} | C1,
        {"image_id": "nih:a.png", "view": "AP", "sex": "F", "content_sha256": "c2"},
    )
    known = known_files.files_read_before(published(), content)
    rows = known_files.with_facts(files, known, content).to_pylist()
    assert [(r["image_id"], r["view"], r["sex"], r["width"]) for r in rows] == [
        ("nih:a.png", "PA", "F", None),
        ("nih:b.png", "AP", "F", 7),
    ]
