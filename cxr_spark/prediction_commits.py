"""Commits to predictions that double no row and lose none, whoever else writes at the time.

A lock keeps two runs of one model version apart; a lock can be stolen, or be on another machine. So
each commit also makes sure that nobody has written rows of these model versions unseen.
"""

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pyspark.sql import SparkSession

from cxr_spark import commits, delta, staging, tables
from cxr_spark.staging import Staged
from cxr_spark.tables import Warehouse

ATTEMPTS = 20
LONGEST_PAUSE_SECONDS = 1.0
# What tells a row from another: a file that was only touched gets a row of its new time.
ROW_KEY = ("image_id", "content_sha256", "model_version", "size_bytes", "modified_at")


class Writer:
    """Appends a run's rows to predictions.

    Attributes:
        seen: the version that the run's plans are made on; None: no table yet.
    """

    def __init__(
        self,
        spark: SparkSession,
        warehouse: Warehouse,
        model_versions: Sequence[str],
        run_id: str,
        *,
        may_repeat: bool = False,
    ) -> None:
        """Look at the table as it is; `may_repeat` lets rows in whose key is there already."""
        self.spark, self.warehouse, self.run_id = spark, warehouse, run_id
        self.model_versions, self.may_repeat = frozenset(model_versions), may_repeat
        self.path, self.contract = warehouse.path("predictions"), tables.contract("predictions")
        self.seen = warehouse.version("predictions")
        self._files = self._files_of_ours(self.seen)

    def prepare(self) -> None:
        """Give the table the columns that are new since it was made."""
        if self.seen is not None:
            commits.add_columns(self.path, self.contract, run_id=self.run_id)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> int | None:
        """Append the rows in one commit; the version, or None where all were there already.

        Raises:
            ConcurrentWrite: other writers were faster each time.
        """
        staged = staging.stage_rows(rows, self.path, self.contract)
        attempt = 0
        while True:
            try:
                return self._append(staged)
            except commits.ConcurrentWrite:
                attempt += 1
                if attempt == ATTEMPTS:
                    raise
            time.sleep(random.uniform(0, LONGEST_PAUSE_SECONDS * attempt / ATTEMPTS))

    def _append(self, staged: Staged) -> int | None:
        at = self.warehouse.version("predictions")
        if self.may_repeat:
            return commits.commit(staged, run_id=self.run_id)
        if self._files_of_ours(at) == self._files:  # all that is there was seen, or is this run's
            version = commits.commit(staged, run_id=self.run_id, expected=-1 if at is None else at)
            self._files |= {file.path for file in staged.files}
            return version
        written = delta.read_staged(self.spark, staged)
        by_row = replace(self.contract, key=ROW_KEY)
        return commits.append_new(self.spark, written, self.path, by_row, run_id=self.run_id)

    def _files_of_ours(self, at: int | None) -> frozenset[str]:
        files = [] if at is None else self.warehouse.files("predictions", at)
        ours = (file for file in files if file.partition["model_version"] in self.model_versions)
        return frozenset(file.path for file in ours)
