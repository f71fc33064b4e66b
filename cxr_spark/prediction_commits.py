"""Commits to predictions that double no row and lose none, whoever else writes at the time.

A lock keeps two runs of one model version apart; a lock can be stolen, or be on another machine. So
each commit also makes sure that nobody has written rows of these model versions unseen.
"""

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cxr_spark import commits, staging, tables
from cxr_spark.scored import Scored
from cxr_spark.staging import Staged
from cxr_spark.tables import Warehouse

ATTEMPTS = 20
LONGEST_PAUSE_SECONDS = 1.0
# What a row says of an image, but for the answer: a file that was only touched gets a row of its
# new time, and one that is again as it was before the last row gets one more.
SAYS = ("image_id", "content_sha256", "size_bytes", "modified_at")

Rows = Sequence[Mapping[str, Any]]


class Writer:
    """Appends a run's rows to predictions.

    Attributes:
        seen: the version that the run's plans are made on; None: no table yet.
    """

    def __init__(
        self,
        warehouse: Warehouse,
        model_versions: Sequence[str],
        run_id: str,
        *,
        may_repeat: bool = False,
    ) -> None:
        """Look at the table as it is; `may_repeat` lets rows in that say what is there already."""
        self.warehouse, self.run_id = warehouse, run_id
        self.model_versions, self.may_repeat = frozenset(model_versions), may_repeat
        self.path, self.contract = warehouse.path("predictions"), tables.contract("predictions")
        self.seen = warehouse.version("predictions")
        self._files = self._files_of_ours(self.seen)

    def prepare(self) -> None:
        """Give the table the columns that are new since it was made."""
        if self.seen is not None:
            commits.add_columns(self.path, self.contract, run_id=self.run_id)

    def append(self, rows: Rows) -> int | None:
        """Append the rows in one commit; the version, or None where all were there already.

        Raises:
            ConcurrentWrite: other writers were faster each time.
        """
        staged: Staged | None = None
        attempt = 0
        while True:
            at = self.warehouse.version("predictions")
            lacking = self._lacking(rows, at)
            if not lacking:
                return None
            if staged is None or len(lacking) < staged.num_rows:
                staged = staging.stage_rows(lacking, self.path, self.contract)
            try:
                return self._commit(staged, at)
            except commits.ConcurrentWrite:
                attempt += 1
                if attempt == ATTEMPTS:
                    raise
            time.sleep(random.uniform(0, LONGEST_PAUSE_SECONDS * attempt / ATTEMPTS))

    def _commit(self, staged: Staged, at: int | None) -> int:
        if self.may_repeat:
            return commits.commit(staged, run_id=self.run_id)
        version = commits.commit(staged, run_id=self.run_id, expected=-1 if at is None else at)
        self._files |= {file.path for file in staged.files}
        return version

    def _lacking(self, rows: Rows, at: int | None) -> Rows:
        """The rows that a run which plans on this version of the table would still write."""
        if self.may_repeat or self._files_of_ours(at) == self._files:
            return rows  # all that is there was seen, or is this run's
        said = set()
        for version in self.model_versions:
            newest = Scored.read(self.warehouse, version, at).newest.select(SAYS)
            said |= {(version, *row.values()) for row in newest.to_pylist()}
        return [row for row in rows if (row["model_version"], *(row[n] for n in SAYS)) not in said]

    def _files_of_ours(self, at: int | None) -> frozenset[str]:
        files = [] if at is None else self.warehouse.files("predictions", at)
        ours = (file for file in files if file.partition["model_version"] in self.model_versions)
        return frozenset(file.path for file in ours)
