"""Which versions of a table must stay readable, and which of its files no such version names.

A version stays while it is young, and for as long as a row names it: the last finished curate run,
a model trained on it, a figure computed from it. Files that no such version names may go, unless
they are younger than the retention or than a job that is still at work.
"""

import contextlib
import fcntl
import json
import os
import re
import stat
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import pyarrow as pa

from cxr_spark import delta
from cxr_spark.tables import PUBLISHED, TABLES, Warehouse

# What `staging` names a folder under a table, and both Spark and delta-rs a data file.
OUR_FOLDER = re.compile(r"j-[0-9a-f]{32}")
DATA_FILE = re.compile(r"part-.+\.parquet")
COMMIT = re.compile(r"(\d{20})\.json")
CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\..*parquet")


class DamagedTable(ValueError):
    """A folder where a table should be holds none that can be followed; nothing was removed."""


class StoredFile(NamedTuple):
    """A file or, of 0 bytes, a folder below a table; its time in seconds of the epoch."""

    path: str
    size_bytes: int
    modified_at: float


class Span(NamedTuple):
    """From which version to which a table has a data file, both included."""

    path: str
    first: int
    last: int


class History(NamedTuple):
    """A table's log.

    Attributes:
        written_at: when each version that can be opened was committed, seconds of the epoch.
        spans: of every file that one of them names.
        checkpoint: the version of the newest checkpoint; -1: there is none.
    """

    written_at: dict[int, float]
    spans: list[Span]
    checkpoint: int

    @property
    def newest(self) -> int:
        """The newest version."""
        return max(self.written_at)

    def young(self, cutoff: float) -> list[int]:
        """Versions that were the newest one at the cutoff or after it."""
        return [
            version
            for version in self.written_at
            if version == self.newest or self.written_at[version + 1] > cutoff
        ]

    def named_by(self, versions: Iterable[int]) -> set[str]:
        """Paths of the files of some versions."""
        wanted = [*sorted(versions), self.newest + 1]
        return {
            span.path for span in self.spans if wanted[bisect_left(wanted, span.first)] <= span.last
        }

    def with_any(self, paths: set[str]) -> set[int]:
        """Versions that name one of the files."""
        spans = [span for span in self.spans if span.path in paths]
        return {version for span in spans for version in range(span.first, span.last + 1)}


def history(table: str) -> History:
    """Follow a table's log from the oldest version that can be opened.

    Raises:
        DamagedTable: the log doesn't lead to the files that the newest version has, or these
            aren't there.
        DeltaError: as `delta.open_table`.
    """
    log = Path(table) / "_delta_log"
    names = os.listdir(log)
    commits = {int(match[1]) for name in names if (match := COMMIT.fullmatch(name))}
    checkpoints = [int(match[1]) for name in names if (match := CHECKPOINT.fullmatch(name))]
    if not commits:
        raise DamagedTable(f"{table}: its Delta log is empty")
    newest = max(commits)
    first = next(version for version in range(newest, -1, -1) if version - 1 not in commits)
    if first > 0:  # the log has been cut: only a checkpoint tells what was there
        first = max(first, min((c for c in checkpoints if c >= first - 1), default=first))
    alive = dict.fromkeys(_files_of(table, first), first)
    spans = []
    for version in range(first + 1, newest + 1):
        for action, path in _actions(log / f"{version:020}.json", table):
            if action == "add":
                alive.setdefault(path, version)
            elif path in alive:
                spans.append(Span(path, alive.pop(path), version - 1))
    if alive.keys() != _files_of(table, newest):
        raise DamagedTable(f"{table}: its Delta log doesn't lead to the files of version {newest}")
    spans += [Span(path, since, newest) for path, since in alive.items()]
    written_at = {
        version: (log / f"{version:020}.json").stat().st_mtime
        for version in range(first, newest + 1)
    }
    return History(written_at, spans, max(checkpoints, default=-1))


def _files_of(table: str, version: int) -> set[str]:
    """The files that a version names, whether they are there or not."""
    actions = pa.table(delta.open_table(table, version).get_add_actions())
    return {_place(table, path) for path in actions["path"].to_pylist()}


def _actions(commit: Path, table: str) -> Iterable[tuple[str, str]]:
    for line in commit.read_text("utf-8").splitlines():
        for action, content in json.loads(line).items():
            if action in ("add", "remove"):
                yield action, _place(table, content["path"])


def _place(table: str, logged: str) -> str:
    return f"{table}/{unquote(logged)}"


def stored(table: str) -> tuple[list[StoredFile], list[StoredFile]]:
    """The plain files below a table but its log, and our folders; links aren't followed."""
    files, folders = [], []
    for folder, subfolders, names in os.walk(table):
        if folder == table:
            subfolders[:] = [name for name in subfolders if name[0] not in "_."]
        elif _is_in_our_folder(folder, table):
            folders.append(StoredFile(folder, 0, os.lstat(folder).st_mtime))
        for path in (os.path.join(folder, name) for name in names):
            with contextlib.suppress(FileNotFoundError):  # a job at work has renamed it
                facts = os.lstat(path)
                if stat.S_ISREG(facts.st_mode):
                    files.append(StoredFile(path, facts.st_size, facts.st_mtime))
    return files, folders


def is_data(path: str, table: str) -> bool:
    """Whether a file is one of ours by its place, or a data file by its name."""
    return _is_in_our_folder(path, table) or DATA_FILE.fullmatch(Path(path).name) is not None


def _is_in_our_folder(path: str, table: str) -> bool:
    return OUR_FOLDER.fullmatch(Path(path).relative_to(table).parts[0]) is not None


def data_file_of(path: str) -> str:
    """The data file that Hadoop's checksum file belongs to; other paths stay as they are."""
    folder, name = os.path.split(path)
    is_checksum = name.startswith(".") and name.endswith(".crc")
    return os.path.join(folder, name[1:-4]) if is_checksum else path


def oldest_start(warehouse: Warehouse) -> float:
    """When the oldest of the jobs now at work took its lock, seconds of the epoch; or infinity.

    A job takes its lock, and writes its name into that file, before it writes anything else.
    """
    starts = [float("inf")]
    for lock in (warehouse.root / ".locks").glob("*"):
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                starts.append(os.fstat(file.fileno()).st_mtime)
    return min(starts)


def named_versions(warehouse: Warehouse, cutoff: float) -> dict[str, dict[int, str]]:
    """The versions of each table that rows of the warehouse name, and what for.

    What a curate run published stays for readers until the next one has finished and that is
    older than the cutoff; what a model was trained on and a figure computed from stays for good.
    """
    named: dict[str, dict[int, str]] = {name: {} for name in TABLES}

    def keep(versions: Mapping[str, int], why: str) -> None:
        for name in PUBLISHED:
            if name in versions:
                named[name].setdefault(versions[name], why)

    curated = warehouse.curate_runs()
    published = [run.versions for run in curated]
    replaced_at = [run.finished_at.timestamp() for run in curated[1:]] + [float("inf")]
    for versions, until in zip(published, replaced_at, strict=False):
        if until > cutoff:
            keep(versions, "published")
    for model in _rows(warehouse, "models", "model_version", "images_version"):
        images = model["images_version"]
        first = next((run for run in published if run.get("images") == images), {"images": images})
        keep(first, f"model {model['model_version']}")
    for figure in _rows(warehouse, "metrics", "predictions_version"):
        named["predictions"][figure["predictions_version"]] = "metrics"
    return named


def _rows(warehouse: Warehouse, table: str, *columns: str) -> list[dict[str, Any]]:
    return delta.read_rows(warehouse.path(table), columns) if warehouse.exists(table) else []
