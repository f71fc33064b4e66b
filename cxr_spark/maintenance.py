"""The stage that cares for the tables: old files are removed, small ones merged, logs shortened.

All is decided for every table before the first file goes, and a file goes only if no version that
stays names it: a kill at any moment leaves those versions as they are.
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from deltalake import ColumnProperties, CommitProperties, WriterProperties
from deltalake.exceptions import CommitFailedError
from deltalake.exceptions import DeltaError as DeltaRsError
from pyspark.sql import types as T

from cxr_spark import delta, retention, tables
from cxr_spark.commits import KEEP_THE_LOG
from cxr_spark.retention import DamagedTable, History, StoredFile
from cxr_spark.run import Run
from cxr_spark.tables import TABLES, Warehouse

LEAST_RETAIN_HOURS = 24
# Not images, whose files are the units that readers share out; nor what curate writes anew as one
# file each time, and readers open at the version that it published.
MERGED = ("pixels", "predictions", "metrics", "models", "runs")
# Of a merged file. A file of less than half of it is small.
FILE_BYTES = 16 << 20
# Fewer small files in a partition, or commits behind a checkpoint, aren't worth the writing.
FEWEST_SMALL_FILES = 16
FEWEST_COMMITS = 10
# Counts of what was done, not only found.
DONE = ("removed_files", "removed_bytes", "merged", "into", "checkpoints")


class NothingToMaintain(ValueError):
    """There is no warehouse, or no run has finished in it."""


class RetentionTooShort(ValueError):
    """Readers hold no lock: only the retention keeps the files that they are reading."""


class Plan(NamedTuple):
    """What is to be done with a table.

    Attributes:
        table: its name.
        kept: named versions and the newest one, and why each stays.
        lost: versions that can't be read any more once the old files are gone.
        old: files that only versions which don't stay name.
        orphans: files that no version names.
        folders: folders of ours as old as those; the empty ones go.
        small: how many small files there are to be merged, by value of the partition column.
        needs_checkpoint: whether the log has grown.
    """

    table: str
    kept: dict[int, str]
    lost: list[int]
    old: list[StoredFile]
    orphans: list[StoredFile]
    folders: list[str]
    small: dict[str | None, int]
    needs_checkpoint: bool


def maintain(warehouse: Warehouse, run: Run, *, retain_hours: int, dry_run: bool = False) -> None:
    """Remove files that nothing needs, merge small ones, write checkpoints; or say what would be.

    Args:
        retain_hours: versions and files younger than that stay.
        dry_run: change nothing.

    Raises:
        NothingToMaintain, RetentionTooShort: nothing was changed.
        DamagedTable: a table can't be followed; nothing was changed, in no table.
    """
    if retain_hours < LEAST_RETAIN_HOURS:
        raise RetentionTooShort(
            f"{retain_hours} hours: at least {LEAST_RETAIN_HOURS}, and more than the longest "
            "training or query, which may read older versions all that time"
        )
    names = [name for name in TABLES if _is_table(Path(warehouse.path(name)))]
    if "runs" not in names:
        raise NothingToMaintain(f"{warehouse.root}: no run has finished there")
    if not dry_run:
        run.lock(warehouse.root, "maintain")
    plans = _plans(warehouse, names, retain_hours, run)
    run.counts |= dict.fromkeys(DONE, 0)
    for plan in plans:
        _tell(plan, run)
    if dry_run:
        run.say("a dry run: nothing was changed")
        return
    _remove(plans, run)
    for plan in plans:
        try:
            _keep_whole_log(warehouse.path(plan.table))
            if plan.small:
                _merge(warehouse.path(plan.table), plan, run)
        except CommitFailedError:
            run.say(f"{plan.table}: rewritten meanwhile, its small files wait for the next time")
        if plan.needs_checkpoint:
            delta.open_table(warehouse.path(plan.table)).create_checkpoint()
            run.counts["checkpoints"] += 1


def _plans(warehouse: Warehouse, names: list[str], retain_hours: int, run: Run) -> list[Plan]:
    """A plan for each table.

    Files are listed first, then the jobs at work, then the logs: whoever wrote a file that is
    listed is still at work then, or has committed it, or never will.
    """
    files = {name: retention.stored(warehouse.path(name)) for name in names}
    now, started = time.time(), retention.oldest_start(warehouse)
    cutoff = min(now - retain_hours * 3600, started)
    if cutoff == started:
        run.say(f"a job has been at work for {(now - started) / 3600:.0f} hours; as long all stays")
    histories = {name: _history(warehouse.path(name)) for name in names}
    named = retention.named_versions(warehouse, cutoff)
    return [
        _plan(warehouse, name, histories[name], named[name], files[name], cutoff, run)
        for name in names
    ]


def _is_table(folder: Path) -> bool:
    """Whether there is a table; not yet where a first run was killed, or is at work."""
    if folder.is_symlink():
        raise DamagedTable(f"{folder}: a link; files are removed only below the warehouse itself")
    if not folder.exists() or (folder / "_delta_log").is_dir():
        return folder.exists()
    if not folder.is_dir() or not all(map(retention.OUR_FOLDER.fullmatch, os.listdir(folder))):
        raise DamagedTable(f"{folder}: no Delta table, and not empty; it doesn't belong there")
    return False


def _history(table: str) -> History:
    try:
        return retention.history(table)
    except (delta.NoSuchVersion, delta.UnreadableTable) as error:
        raise DamagedTable(str(error)) from error
    except (DeltaRsError, json.JSONDecodeError, OSError) as error:
        (reason, *_) = str(error).splitlines()
        raise DamagedTable(f"{table}: its Delta log can't be read: {reason}") from error


def _plan(
    warehouse: Warehouse,
    name: str,
    history: History,
    named: Mapping[int, str],
    listed: tuple[list[StoredFile], list[StoredFile]],
    cutoff: float,
    run: Run,
) -> Plan:
    table, (files, folders) = warehouse.path(name), listed
    # Once more: the newest version may be younger than the list of files.
    sizes = {file.path: file.size_bytes for file in retention.stored(table)[0]}
    if missing := history.named_by([history.newest]) - sizes.keys():
        raise DamagedTable(
            f"{table}: version {history.newest} needs {min(missing)}; it isn't there"
        )
    kept = {history.newest: "newest"} | dict(named)
    for version, why in kept.items():
        if version not in history.written_at or history.named_by([version]) - sizes.keys():
            run.say(f"{name}: version {version} ({why}) can't be read any more")
    known = {span.path for span in history.spans}
    needed = history.named_by({*kept, *history.young(cutoff)})
    old: list[StoredFile] = []
    orphans: list[StoredFile] = []
    for file in files:
        data_file = retention.data_file_of(file.path)
        is_needed = data_file in needed or file.modified_at >= cutoff
        if not is_needed and retention.is_data(data_file, table):
            (old if data_file in known else orphans).append(file)
    return Plan(
        name,
        kept,
        sorted(history.with_any({retention.data_file_of(file.path) for file in old})),
        old,
        orphans,
        [folder.path for folder in folders if folder.modified_at < cutoff],
        _small_files(table, sizes) if name in MERGED else {},
        history.newest - history.checkpoint >= FEWEST_COMMITS,
    )


def _small_files(table: str, sizes: Mapping[str, int]) -> dict[str | None, int]:
    """The number of small files in those partitions that have many."""
    numbers: dict[str | None, int] = {}
    for file in delta.data_files(table):
        if sizes.get(file.path, FILE_BYTES) < FILE_BYTES / 2:
            value = next(iter(file.partition.values()), None)
            numbers[value] = numbers.get(value, 0) + 1
    return {value: number for value, number in numbers.items() if number >= FEWEST_SMALL_FILES}


def _tell(plan: Plan, run: Run) -> None:
    """Say and count what is to be done with a table."""
    amounts: dict[str, int] = {
        "lost_versions": len(plan.lost),
        "old_files": len(plan.old),
        "old_bytes": sum(file.size_bytes for file in plan.old),
        "orphan_files": len(plan.orphans),
        "orphan_bytes": sum(file.size_bytes for file in plan.orphans),
        "small_files": sum(plan.small.values()),
    }
    for what, amount in amounts.items():
        run.counts[what] = run.counts.get(what, 0) + amount
        if amount:
            run.counts[f"{plan.table}.{what}"] = amount
    run.outputs.setdefault("kept", {})[plan.table] = dict(sorted(plan.kept.items()))
    if plan.lost:
        run.outputs.setdefault("lost", {})[plan.table] = plan.lost
    kept = ", ".join(f"{version} ({why})" for version, why in sorted(plan.kept.items()))
    words = [f"{plan.table}: stays in version {kept}"]
    if plan.old:
        words.append(f"to remove: {_amount(plan.old)} of {len(plan.lost)} other versions")
    if plan.orphans:
        words.append(f"to remove: {_amount(plan.orphans)} of no version")
    if plan.small:
        words.append(f"to merge: {amounts['small_files']:,} small files")
    if plan.needs_checkpoint:
        words.append("to get a checkpoint")
    run.say("; ".join(words))


def _amount(files: list[StoredFile]) -> str:
    return f"{len(files):,} files ({sum(file.size_bytes for file in files) / 1e6:,.1f} MB)"


def _remove(plans: list[Plan], run: Run) -> None:
    files = [file for plan in plans for file in (*plan.old, *plan.orphans)]
    for done, file in enumerate(files, start=1):
        Path(file.path).unlink(missing_ok=True)
        run.counts["removed_files"] += 1
        run.counts["removed_bytes"] += file.size_bytes
        run.progress(done, len(files), "files removed")
    # What is in a folder comes behind it.
    for folder in sorted((folder for plan in plans for folder in plan.folders), reverse=True):
        with contextlib.suppress(OSError):  # it isn't empty
            os.rmdir(folder)


def _keep_whole_log(table: str) -> None:
    """Forbid all writers what Delta allows: to cut from the log what is older than 30 days.

    Without its old end the log doesn't lead to the versions that models were trained on. The option
    of a commit for that is ignored by delta-rs's `compact`; the table's own property isn't.
    """
    target = delta.open_table(table)
    if not KEEP_THE_LOG.items() <= target.metadata().configuration.items():
        target.alter.set_table_properties(KEEP_THE_LOG)


def _merge(table: str, plan: Plan, run: Run) -> None:
    """Write small files anew as fewer in one commit that changes no row."""
    contract = tables.contract(plan.table)
    blobs = [field.name for field in contract.schema if isinstance(field.dataType, T.BinaryType)]
    as_they_are = ColumnProperties(dictionary_enabled=False, statistics_enabled="NONE")
    done = delta.open_table(table).optimize.compact(
        [(column, "in", list(plan.small)) for column in contract.partition_by] or None,
        target_size=FILE_BYTES,
        max_concurrent_tasks=1,  # each takes memory
        writer_properties=WriterProperties(
            compression="ZSTD", column_properties=dict.fromkeys(blobs, as_they_are)
        ),
        commit_properties=CommitProperties({"run_id": run.run_id}, max_commit_retries=20),
    )
    run.counts["merged"] += done["numFilesRemoved"]
    run.counts["into"] += done["numFilesAdded"]
    if done["numFilesAdded"]:
        run.versions_written[plan.table] = delta.open_table(table).version()
