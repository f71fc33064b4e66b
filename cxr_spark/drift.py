"""The drift guard: the files that a run scored, against those that the same model scored before.

It sees what the model says, not the pictures: an archive that looks quite different and is read
with the usual confidence and the usual class shares passes unseen.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from cxr_spark import delta
from cxr_spark.drift_figures import BINS, LIMITS, MIN_IMAGES, Figure, Histograms, compare
from cxr_spark.labels import CLASSES
from cxr_spark.run import Run, Stopped
from cxr_spark.tables import Warehouse

REFERENCE_DAYS = 30.0
MOST_DAYS = 36_500.0
# Runs that ended so have been judged, and those that counted what they judged.
ENDS = ("finished", "drift")
JUDGED = "judged"


class DriftOptionError(ValueError):
    """A limit that can't be understood, or a reference that isn't there."""


class Drifted(RuntimeError):
    """What was scored differs from the reference; it has been committed."""

    status = "drift"


@dataclass(frozen=True)
class Guard:
    """What a run is compared with, and how far it may be from it.

    Attributes:
        reference_days: the reference are the files that the same model version scored in so many
            days before the run; curated images don't count.
        reference_run: in place of these, what this run scored, files or curated images.
        limits: how far a figure may move, by its name.
    """

    reference_days: float = REFERENCE_DAYS
    reference_run: str | None = None
    limits: dict[str, float] = field(default_factory=lambda: dict(LIMITS))


class Drift(NamedTuple):
    """What the guard found; no figures where there is too little to compare."""

    images: int
    reference_images: int
    figures: list[Figure]

    @property
    def beyond(self) -> list[str]:
        """The names of the figures that are beyond their limits."""
        return [figure.name for figure in self.figures if figure.beyond]

    @property
    def words(self) -> list[str]:
        """Lines for people."""
        sizes = f"{self.images:,} images, {self.reference_images:,} of the reference"
        if not self.figures:
            return [f"drift is not judged: {sizes}, and {MIN_IMAGES} are needed of each"]
        verdict = "drift" if self.beyond else "no drift"
        figures = [f"{'! ' if f.beyond else '  '}{f.words}" for f in self.figures]
        return [f"{verdict}: {sizes}", *figures]

    def to_json(self) -> dict[str, object]:
        """For the summary."""
        figures = {f.name: f._asdict() | {"beyond": f.beyond} for f in self.figures}
        return self._asdict() | {"figures": figures, "beyond": self.beyond}


def add_options(options: argparse._ActionsContainer) -> None:
    """Add the guard's options to a job that scores files."""
    options.add_argument(
        "--drift-days",
        type=float,
        default=REFERENCE_DAYS,
        metavar="DAYS",
        help="compare with the files scored in so many days before (%(default)g)",
    )
    options.add_argument(
        "--drift-reference", metavar="RUN_ID", help="with this run, in their place"
    )
    named = ", ".join(f"{name} {limit:g}" for name, limit in LIMITS.items())
    options.add_argument(
        "--drift-limit",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help=f"how far a figure may move before the run ends with exit code 4 ({named})",
    )


def guard_of(options: argparse.Namespace, warehouse: Warehouse) -> Guard:
    """The guard that the options ask for, to be made before any work is done.

    Raises:
        DriftOptionError: a limit that can't be understood, a number of days that can't be one, or
            an unknown run.
    """
    if not 0 < options.drift_days <= MOST_DAYS:
        raise DriftOptionError(
            f"--drift-days {options.drift_days:g}: more than 0 and up to {MOST_DAYS:.0f} are needed"
        )
    reference = options.drift_reference
    if reference is not None:
        ids = warehouse.read_arrow("runs", ["run_id"]) if warehouse.exists("runs") else {}
        if not ids or reference not in ids["run_id"].to_pylist():
            raise DriftOptionError(f"--drift-reference {reference}: no such run in this warehouse")
    return Guard(options.drift_days, reference, parse_limits(options.drift_limit))


def parse_limits(texts: Sequence[str]) -> dict[str, float]:
    """The limits, some of them given as `NAME=NUMBER`.

    Raises:
        DriftOptionError: another name, or a number that is none of 0 or more.
    """
    limits = dict(LIMITS)
    for text in texts:
        name, _, number = text.partition("=")
        try:
            limit = float(number)
        except ValueError:
            limit = math.nan
        if name not in LIMITS or not limit >= 0:
            named = ", ".join(LIMITS)
            raise DriftOptionError(
                f"--drift-limit {text}: expected NAME=NUMBER, with NAME one of {named}"
            )
        limits[name] = limit
    return limits


@contextmanager
def watching(
    spark: SparkSession,
    warehouse: Warehouse,
    run: Run,
    model_versions: Sequence[str],
    guard: Guard | None = None,
) -> Iterator[None]:
    """Watch what is scored within it, also where --max-runtime ends that.

    After SIGTERM, which asks for a quick end, the next run judges the rows with its own; likewise
    after a failure.

    Raises:
        Drifted: as of `watch`.
    """
    try:
        yield
    except Stopped as stopped:
        if not run.has_sigterm:
            run.say(str(stopped))
            watch(spark, warehouse, run, model_versions, guard)
        raise
    watch(spark, warehouse, run, model_versions, guard)


def watch(
    spark: SparkSession,
    warehouse: Warehouse,
    run: Run,
    model_versions: Sequence[str],
    guard: Guard | None = None,
) -> None:
    """Check what a run scored with each model version, tell of it, and end it if one has drifted.

    To be called last, when everything is committed. Of a run that scored no files nothing is said.
    Rows of runs before it that ended without being judged are judged with its own.

    Raises:
        Drifted: a figure is beyond its limit.
    """
    if not run.counts.get("scored"):
        return
    drifts: dict[str, Drift] = {}
    for version in model_versions:
        drift = check(spark, warehouse, run.run_id, version, run.started_at, guard)
        if not drift.images:
            continue
        drifts[version] = drift
        run.counts[JUDGED] = max(run.counts.get(JUDGED, 0), drift.images)
        for line in drift.words:
            run.say(f"{version}: {line}" if len(model_versions) > 1 else line)
        for figure in drift.figures:
            name = f"drift.{figure.name}"
            run.counts[name] = round(max(run.counts.get(name, 0.0), figure.moved), 4)
    run.outputs["drift"] = {version: drift.to_json() for version, drift in drifts.items()}
    beyond = {version: drift.beyond for version, drift in drifts.items() if drift.beyond}
    if beyond:
        found = "; ".join(f"{', '.join(names)} of {version}" for version, names in beyond.items())
        raise Drifted(
            f"beyond the limits: {found}. What was scored is committed; look at the images before "
            "the predictions are used"
        )


def check(
    spark: SparkSession,
    warehouse: Warehouse,
    run_id: str,
    model_version: str,
    started_at: datetime,
    guard: Guard | None = None,
) -> Drift:
    """Compare the files scored since the guard looked at this model version last.

    They are those of this run and of runs that ended before they were judged.

    Args:
        run_id: this run.
        started_at: when the run began; the days of the reference are counted back from here.
    """
    guard = guard or Guard()
    if not warehouse.exists("predictions"):
        return Drift(0, 0, [])
    rows = warehouse.read(spark, "predictions").where(F.col("model_version") == model_version)
    is_file = F.col("images_version").isNull()
    is_now = is_file & (
        (F.col("run_id") == run_id)
        | (F.unix_micros("scored_at") > _judged_until(rows.where(is_file), warehouse))
    )
    is_reference = is_file & (
        F.col("scored_at") >= F.lit(started_at - timedelta(days=guard.reference_days))
    )
    if guard.reference_run is not None:
        is_reference = F.col("run_id") == guard.reference_run
        is_now &= ~is_reference
    side = F.when(is_now, "now").when(is_reference, "reference")
    sides = histograms(rows.withColumn("side", side).where("side IS NOT NULL"))
    now, reference = sides["now"], sides["reference"]
    return Drift(now.images, reference.images, compare(now, reference, guard.limits))


def _judged_until(rows: DataFrame, warehouse: Warehouse) -> int:
    """When the last row was scored that a run has judged, microseconds since 1970; 0: none was."""
    judged = []
    if warehouse.exists("runs"):
        runs = delta.read_rows(warehouse.path("runs"), ["run_id", "status", "counts"])
        judged = [
            row["run_id"]
            for row in runs
            if row["status"] in ENDS or JUDGED in (row["counts"] or {})
        ]
    last = rows.where(F.col("run_id").isin(judged)).agg(F.max(F.unix_micros("scored_at"))).head()
    return (last and last[0]) or 0


def histograms(rows: DataFrame) -> dict[str, Histograms]:
    """Count predictions in one pass; nothing but counts comes to the driver.

    Args:
        rows: of predictions, with their `side`: now or reference.
    """
    is_scored = F.col("error").isNull()
    classes = F.array(*[F.lit(name) for name in CLASSES])
    bins = {
        "classes": F.when(is_scored, F.array_position(classes, F.col("predicted_label")) - 1),
        "confidence": F.when(is_scored, _bin("confidence", 1.0)),
        "entropy": F.when(is_scored, _bin("entropy", math.log(len(CLASSES)))),
        "errors": F.when(is_scored, 0).otherwise(1),
    }
    cells = [F.struct(F.lit(n).alias("kind"), b.cast("int").alias("bin")) for n, b in bins.items()]
    counted = rows.select("side", F.explode(F.array(*cells)).alias("cell")).groupBy("side", "cell")
    found = {
        side: {kind: np.zeros(size, np.int64) for kind, size in BINS.items()}
        for side in ("now", "reference")
    }
    for row in counted.count().where("cell.bin IS NOT NULL").collect():
        found[row.side][row.cell.kind][row.cell.bin] = row["count"]
    return {side: Histograms(**counts) for side, counts in found.items()}


def _bin(column: str, top: float) -> Column:
    bins = BINS[column]
    place = F.floor(F.col(column) * (bins / top))
    return F.greatest(F.lit(0), F.least(place, F.lit(bins - 1)))
