"""Care for the tables: what must stay reads as before, and all that nothing needs is gone."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from cxr_spark import commits, delta, maintenance, staging, tables
from cxr_spark.job import Busy, Run
from cxr_spark.maintenance import maintain
from cxr_spark.retention import DamagedTable
from cxr_spark.tables import Warehouse

DAY = 86_400
NOW = datetime.now(UTC)
WEEK_HOURS = 168


def write(warehouse: Warehouse, name: str, *rows: dict[str, Any], mode: str = "append") -> int:
    """Rows from the driver into a table; its new version."""
    staged = staging.stage_rows(rows, warehouse.path(name), tables.contract(name))
    return commits.commit(staged, run_id="r", mode=mode)


def write_images(warehouse: Warehouse, content: str, mode: str = "overwrite") -> int:
    """An image in train."""
    row = {"image_id": f"nih:{content}", "split": "train", "pixels": content.encode()}
    return write(warehouse, "images", row, mode=mode)


def record(warehouse: Warehouse, job: str, days_ago: float, **versions: int) -> None:
    """A finished run."""
    finished_at = NOW - timedelta(days=days_ago)
    row = {"run_id": f"{job}-{days_ago}", "job": job, "status": "finished"}
    written = {"finished_at": finished_at, "versions_written": versions, "counts": {"n": days_ago}}
    write(warehouse, "runs", row | written)


def age(folder: str | Path, days: float) -> None:
    """Let all below a folder be as old."""
    moment = time.time() - days * DAY
    for place in Path(folder).rglob("*"):
        os.utime(place, (moment, moment), follow_symlinks=False)


def tree(folder: Path) -> dict[str, int]:
    """Every file below a folder, with its size."""
    return {str(path): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def image_ids(warehouse: Warehouse, version: int) -> list[str]:
    """What a version of images holds."""
    rows = delta.read_rows(warehouse.path("images"), ("image_id", "pixels"), version)
    return sorted(row["image_id"] for row in rows if row["pixels"])


def maintained(warehouse: Warehouse, **options: Any) -> Run:
    """The run that has maintained a warehouse."""
    run = Run("maintain")
    try:
        maintain(warehouse, run, **{"retain_hours": WEEK_HOURS} | options)
    finally:
        run.release()
    return run


class Images(NamedTuple):
    """Versions of images by the one image that each holds."""

    a: int
    b: int
    c: int
    d: int
    e: int


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    """The warehouse of `images`."""
    return Warehouse(tmp_path / "a [1] é")


@pytest.fixture
def images(warehouse: Warehouse) -> Images:
    """Five versions, each replacing the last: a trained on, c published, e the newest; all old."""
    images = Images(*(write_images(warehouse, content) for content in "abcde"))
    record(warehouse, "curate", 40, images=images.a)
    record(warehouse, "curate", 30, images=images.c)
    write(warehouse, "models", {"model_version": "m", "images_version": images.a})
    age(warehouse.root, 30)
    return images


def test_versions_that_rows_name_read_as_before_and_the_others_are_gone(
    warehouse: Warehouse, images: Images
) -> None:
    run = maintained(warehouse)
    there = [image_ids(warehouse, version) for version in (images.a, images.c, images.e)]
    assert there == [["nih:a"], ["nih:c"], ["nih:e"]]
    why = {images.a: "model m", images.c: "published", images.e: "newest"}
    assert run.outputs["kept"]["images"] == why
    assert run.outputs["lost"]["images"] == [images.b, images.d]
    assert len(list(Path(warehouse.path("images")).glob("j-*"))) == 3
    assert run.counts["removed_files"] == run.counts["images.old_files"] == 2


def test_a_version_stays_for_readers_until_its_successor_is_older_than_the_retention(
    warehouse: Warehouse, images: Images
) -> None:
    log = Path(warehouse.path("images")) / "_delta_log"
    six_days_ago = time.time() - 6 * DAY
    os.utime(log / f"{images.e:020}.json", (six_days_ago, six_days_ago))
    record(warehouse, "curate", 6, images=images.e)
    run = maintained(warehouse)
    assert run.outputs["lost"]["images"] == [images.b]
    assert run.outputs["kept"]["images"][images.c] == "published"
    assert image_ids(warehouse, images.d) == ["nih:d"]
    later = maintained(warehouse, retain_hours=5 * 24)
    assert later.outputs["lost"]["images"] == [images.c, images.d]


def test_tables_published_with_a_models_images_stay_with_them(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    rows = [{"image_id": content, "source": "nih", "reason": "blank"} for content in "abcd"]
    versions = [write(warehouse, "rejects", row, mode="overwrite") for row in rows]
    images = write_images(warehouse, "a")
    record(warehouse, "curate", 40, images=images, rejects=versions[1])
    record(warehouse, "curate", 30, images=images, rejects=versions[3])
    write(warehouse, "models", {"model_version": "m", "images_version": images})
    age(warehouse.root, 30)
    lost = maintained(warehouse).outputs["lost"]["rejects"]
    assert (versions[0] in lost, versions[1] in lost, versions[2] in lost) == (True, False, True)
    assert maintained(warehouse).counts["removed_files"] == 0


def killed_write(warehouse: Warehouse, days: float) -> Path:
    """What a killed run has left in images, as old."""
    folder = Path(staging.new_folder(warehouse.path("images"))) / "_temporary" / "0" / "split=val"
    folder.mkdir(parents=True)
    for name in ("part-0.parquet", ".part-0.parquet.crc"):
        (folder / name).write_bytes(b"x" * 10)
    age(folder.parents[2], days)
    os.utime(folder.parents[2], (time.time() - days * DAY,) * 2)
    return folder.parents[2]


@pytest.mark.usefixtures("images")
def test_leftovers_of_killed_runs_go_once_they_are_old(warehouse: Warehouse) -> None:
    old, young = killed_write(warehouse, 8), killed_write(warehouse, 6)
    run = maintained(warehouse)
    assert (old.exists(), young.exists()) == (False, True)
    assert (run.counts["images.orphan_files"], run.counts["orphan_bytes"]) == (2, 20)


def test_a_checksum_goes_or_stays_with_its_file(warehouse: Warehouse, images: Images) -> None:
    checksums = {}
    for version in (images.b, images.c):
        (file,) = map(Path, (f.path for f in warehouse.files("images", version)))
        checksums[version] = file.with_name(f".{file.name}.crc")
        checksums[version].touch()
    age(warehouse.root, 30)
    maintained(warehouse)
    assert not checksums[images.b].parent.exists()
    assert checksums[images.c].exists()


@pytest.mark.usefixtures("images")
def test_what_a_job_at_work_may_have_written_stays_however_old(warehouse: Warehouse) -> None:
    place = warehouse.root / ".locks" / "score-m"
    place.parent.mkdir()
    with place.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.utime(place, (time.time() - 20 * DAY,) * 2)
        before, after = killed_write(warehouse, 21), killed_write(warehouse, 19)
        maintained(warehouse)
        assert (before.exists(), after.exists()) == (False, True)
    maintained(warehouse)
    assert not after.exists()


@pytest.mark.usefixtures("images")
def test_only_data_files_in_the_tables_own_folders_are_removed(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    outside = tmp_path / "elsewhere" / f"j-{'0' * 32}"
    outside.mkdir(parents=True)
    table = Path(warehouse.path("images"))
    kept = [outside / "part-0.parquet", table / "notes.parquet", table / "_x" / "part-0.parquet"]
    for path in kept:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    links = [table / outside.name, table / "part-1.parquet"]
    for link, target in zip(links, (outside, kept[0]), strict=True):
        link.symlink_to(target)
    age(tmp_path, 30)
    maintained(warehouse)
    assert all(path.exists() for path in [*kept, *links])


@pytest.mark.usefixtures("images")
def test_a_dry_run_tells_what_the_real_one_does_and_changes_nothing(warehouse: Warehouse) -> None:
    killed_write(warehouse, 30)
    before = tree(warehouse.root)
    planned = maintained(warehouse, dry_run=True)
    assert tree(warehouse.root) == before
    done = maintained(warehouse)
    assert planned.outputs == done.outputs
    assert planned.counts["removed_files"] == 0
    told = {name: number for name, number in planned.counts.items() if "_files" in name}
    assert told.items() - {("removed_files", 0)} <= done.counts.items()
    assert done.counts["removed_files"] == planned.counts["old_files"] + 2
    assert maintained(warehouse).counts["removed_files"] == 0


def test_a_kill_between_two_removals_leaves_what_must_stay(
    warehouse: Warehouse, images: Images
) -> None:
    program = f"""
import os, signal, pathlib
from cxr_spark import job, maintenance, tables
unlink = pathlib.Path.unlink
def last(path, **how):
    unlink(path, **how)
    os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.unlink = last
warehouse = tables.Warehouse({str(warehouse.root)!r})
maintenance.maintain(warehouse, job.Run("maintain"), retain_hours=168)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    there = [image_ids(warehouse, version) for version in (images.a, images.c, images.e)]
    assert there == [["nih:a"], ["nih:c"], ["nih:e"]]
    assert maintained(warehouse).counts["removed_files"] == 1


def _rows_of(name: str, number: int) -> dict[str, Any]:
    rows: dict[str, dict[str, Any]] = {
        "pixels": {
            "content_sha256": f"{number:064}",
            "preprocessing": "p",
            "image_id": f"nih:{number}",
            "pixels": bytes([number]) * 64,
        },
        "predictions": {
            "image_id": f"nih:{number}",
            "model_version": f"m {number % 2}",
            "predicted_label": "Covid",
            "scored_at": NOW,
        },
        "runs": {"run_id": f"r{number}", "counts": {"n": 1.0}, "versions_written": {"images": 1}},
    }
    return rows[name]


def _sorted(warehouse: Warehouse, name: str, version: int | None = None) -> list[str]:
    columns = [n for n in tables.schema(name).names if n != "model_version"]
    return sorted(map(repr, delta.read_rows(warehouse.path(name), columns, version)))


@pytest.mark.parametrize("name", ["pixels", "predictions", "runs"])
def test_many_small_files_become_few_with_the_same_rows(tmp_path: Path, name: str) -> None:
    warehouse = Warehouse(tmp_path)
    record(warehouse, "score", 1)
    for number in range(40):
        write(warehouse, name, _rows_of(name, number))
    before, files, newest = _sorted(warehouse, name), warehouse.files(name), warehouse.version(name)
    run = maintained(warehouse)
    after = warehouse.files(name)
    assert (len(files), len(after)) == (41 if name == "runs" else 40, 1 + (name == "predictions"))
    assert (run.counts["merged"], run.counts["into"]) == (len(files), len(after))
    assert _sorted(warehouse, name) == before == _sorted(warehouse, name, newest)
    assert {file.partition.get("model_version") for file in after} == {
        file.partition.get("model_version") for file in files
    }
    log = Path(warehouse.path(name)) / "_delta_log" / f"{run.versions_written[name]:020}.json"
    actions = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    changed = [a.get("add", a.get("remove", {})).get("dataChange") for a in actions]
    assert True not in changed
    assert False in changed
    assert all(pq.read_schema(file.path) for file in after)
    assert maintained(warehouse).counts["merged"] == 0


def test_files_of_images_are_never_merged(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    record(warehouse, "score", 1)
    for number in range(20):
        write_images(warehouse, str(number), mode="append")
    files = warehouse.files("images")
    maintained(warehouse)
    assert warehouse.files("images") == files


def test_a_few_small_files_are_not_worth_the_writing(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    for number in range(15):
        record(warehouse, "score", number)
    assert maintained(warehouse).counts["merged"] == 0


@pytest.mark.usefixtures("images")
def test_an_empty_folder_of_a_job_that_is_about_to_write_stays(warehouse: Warehouse) -> None:
    folder = Path(staging.new_folder(warehouse.path("images")))
    maintained(warehouse)
    assert folder.exists()


def test_rows_appended_while_files_are_merged_are_all_there(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    for number in range(40):
        write(warehouse, "runs", _rows_of("runs", number))

    def append() -> None:
        for number in range(40, 60):
            write(warehouse, "runs", _rows_of("runs", number))

    writer = Thread(target=append)
    writer.start()
    merged = 0
    while writer.is_alive() or not merged:
        merged += int(maintained(warehouse).counts["merged"])
    writer.join()
    rows = delta.read_rows(warehouse.path("runs"), ["run_id"])
    assert sorted(row["run_id"] for row in rows) == sorted(f"r{number}" for number in range(60))


def test_a_table_that_is_rewritten_meanwhile_is_merged_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = Warehouse(tmp_path)
    record(warehouse, "score", 1)
    for number in range(20):
        write(warehouse, "pixels", _rows_of("pixels", number))

    def open_then_rewritten(table: str) -> DeltaTable:
        snapshot = delta.open_table(table)
        if table == warehouse.path("pixels"):
            write(warehouse, "pixels", _rows_of("pixels", 99), mode="overwrite")
        return snapshot

    late = SimpleNamespace(**vars(delta) | {"open_table": open_then_rewritten})
    monkeypatch.setattr(maintenance, "delta", late)
    assert maintained(warehouse).counts["merged"] == 0
    rows = delta.read_rows(warehouse.path("pixels"), ["image_id"])
    assert rows == [{"image_id": "nih:99"}]


def test_a_log_that_was_cut_is_followed_from_its_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warehouse = Warehouse(tmp_path)
    versions = [write_images(warehouse, content) for content in "abcde"]
    record(warehouse, "curate", 40, images=versions[0])
    DeltaTable(warehouse.path("images")).create_checkpoint()
    for version in range(versions[2]):
        (Path(warehouse.path("images")) / "_delta_log" / f"{version:020}.json").unlink()
    age(tmp_path, 30)
    maintained(warehouse)
    assert image_ids(warehouse, versions[4]) == ["nih:e"]
    assert f"version {versions[0]} (published) can't be read any more" in capsys.readouterr().err


def test_logs_get_a_checkpoint_and_keep_their_old_end(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    for number in range(20):
        record(warehouse, "score", number)
    # As after the hundredth commit, where delta-rs writes one and cuts what is older than 30 days.
    interval = {"delta.checkpointInterval": "1"}
    DeltaTable(warehouse.path("runs")).alter.set_table_properties(interval)
    for file in Path(warehouse.path("runs")).glob("_delta_log/*checkpoint*"):
        file.unlink()
    age(tmp_path, 60)
    run = maintained(warehouse)
    assert (run.counts["checkpoints"], run.counts["merged"]) == (1, 20)
    assert list(Path(warehouse.path("runs")).glob("_delta_log/*.checkpoint.parquet"))
    assert len(delta.read_rows(warehouse.path("runs"), ["run_id"], 0)) == 1
    assert maintained(warehouse).counts["checkpoints"] == 0


def test_versions_that_figures_were_computed_from_stay(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    record(warehouse, "evaluate", 40)
    versions = [write(warehouse, "predictions", _rows_of("predictions", n)) for n in range(40)]
    judged = versions[30]
    before = _sorted(warehouse, "predictions", judged)
    write(warehouse, "metrics", _figure(predictions_version=judged))
    maintained(warehouse)
    age(tmp_path, 30)
    assert versions[31] in maintained(warehouse).outputs["lost"]["predictions"]
    assert _sorted(warehouse, "predictions", judged) == before


def _figure(**versions: int) -> dict[str, Any]:
    named = {"split": "test", "slice": "all", "class": "all", "metric": "cce"}
    return {"model_version": "m", "images_version": 0} | named | versions


def _cut_commit(images: Path) -> None:
    log = images / "_delta_log" / f"{2:020}.json"
    log.write_bytes(log.read_bytes()[:-20])


def _without_commit(images: Path) -> None:
    (images / "_delta_log" / f"{2:020}.json").unlink()


def _without_log(images: Path) -> None:
    (images / "_delta_log").rename(images / "log")


def _without_file(images: Path) -> None:
    Path(delta.data_files(str(images))[0].path).unlink()


def _as_link(images: Path) -> None:
    images.rename(images.parent.parent / "moved")
    images.symlink_to(images.parent.parent / "moved")


@pytest.mark.parametrize(
    "damage", [_cut_commit, _without_commit, _without_log, _without_file, _as_link]
)
@pytest.mark.usefixtures("images")
def test_a_damaged_table_is_named_and_nothing_is_removed_anywhere(
    warehouse: Warehouse, damage: Callable[[Path], None]
) -> None:
    killed_write(warehouse, 30)
    damage(Path(warehouse.path("images")))
    before = tree(warehouse.root)
    with pytest.raises(DamagedTable, match="images"):
        maintained(warehouse)
    assert before.items() <= tree(warehouse.root).items()


def test_a_job_starts_though_its_lock_is_just_looked_at(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse.root.mkdir()
    run = Run("curate")
    run.lock(warehouse.root, "curate")
    run.release()
    looking = (warehouse.root / ".locks" / "curate").open("rb")
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda seconds: looking.close())
    run.lock(warehouse.root, "curate")
    with pytest.raises(Busy, match=run.run_id):
        Run("curate").lock(warehouse.root, "curate")
    run.release()


@pytest.mark.usefixtures("images")
def test_what_a_killed_first_run_left_is_no_table_yet_and_stays(warehouse: Warehouse) -> None:
    folder = Path(staging.new_folder(warehouse.path("pixels")))
    age(warehouse.root, 30)
    maintained(warehouse)
    assert folder.exists()


@pytest.mark.usefixtures("images")
def test_what_cannot_be_maintained_is_refused(warehouse: Warehouse, tmp_path: Path) -> None:
    with pytest.raises(maintenance.NothingToMaintain, match="no run has finished"):
        maintained(Warehouse(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(maintenance.RetentionTooShort, match="at least 24"):
        maintained(warehouse, retain_hours=23)


@pytest.mark.usefixtures("images")
def test_the_job_tells_and_records_what_it_did(
    warehouse: Warehouse, run_job: Callable[..., Any]
) -> None:
    dry = run_job("maintain", "--warehouse", warehouse.root, "--dry-run")
    assert (dry.exit_code, dry.summary["counts"]["images.old_files"]) == (0, 2)
    assert len(delta.read_rows(warehouse.path("runs"), ["job"])) == 2
    done = run_job("maintain", "--warehouse", warehouse.root)
    assert (done.exit_code, done.summary["counts"]["removed_files"]) == (0, 2)
    rows = delta.read_rows(warehouse.path("runs"), ["job", "status", "counts"])
    (row,) = [row for row in rows if row["job"] == "maintain"]
    assert (row["status"], row["counts"]["removed_files"]) == ("finished", 2)
    assert "to remove: 2 files" in dry.stderr
