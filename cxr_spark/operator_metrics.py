"""What operators watch: the end of a run as a file of gauges that Prometheus' node_exporter reads.

Each series has the file's own name as a label, so that those of two scheduled jobs on a machine,
which node_exporter shows on one page, never coincide.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from cxr_spark.run import Run
from cxr_spark.whole_files import replaced

SUFFIX = ".prom"  # node_exporter reads no other
COMPLETE = {"finished", "drift"}
LAST_COMPLETE = "cxr_spark_last_complete_timestamp_seconds"


class MetricsFileError(ValueError):
    """The metrics can't be written where they were asked for."""


class Gauge(NamedTuple):
    """A metric: its name, what it means, and a value for each set of labels."""

    name: str
    meaning: str
    values: list[tuple[dict[str, str], float]]


def target(path: str | Path) -> Path:
    """The absolute path of a metrics file, checked before any work is done.

    Raises:
        MetricsFileError: node_exporter wouldn't read it, or its folder isn't there.
    """
    place = Path(path).absolute()
    if place.suffix != SUFFIX:
        raise MetricsFileError(
            f"--metrics-file {path}: the name must end in {SUFFIX}, as node_exporter reads no other"
        )
    if not place.parent.is_dir():
        raise MetricsFileError(f"--metrics-file {path}: there is no folder {place.parent}")
    return place


def write(path: Path, run: Run, exit_codes: Mapping[str, int], finished_at: datetime) -> None:
    """Replace the file by the gauges of a run that has ended, well or not; whole or not at all.

    The time of the last complete run is carried over from the old file when this one failed.

    Args:
        path: ends in `.prom`.
        run: with its final status.
        exit_codes: of every status that a run may end with.
        finished_at: with a time zone.
    """
    is_complete = run.status in COMPLETE and not run.counts.get("left")
    complete_at = finished_at.timestamp() if is_complete else _last_complete(path)
    labels = {"command": run.job, "file": path.stem}
    text = "".join(_lines(_gauges(run, labels, exit_codes, finished_at, complete_at)))
    with replaced(path) as file:  # node_exporter doesn't read what is beside it, by its suffix
        file.write(text.encode())


def _gauges(
    run: Run,
    labels: dict[str, str],
    exit_codes: Mapping[str, int],
    finished_at: datetime,
    complete_at: float | None,
) -> Iterator[Gauge]:
    seconds = (finished_at - run.started_at).total_seconds()
    statuses = [(labels | {"status": s}, float(s == run.status)) for s in exit_codes]
    counts = [(labels | {"count": name}, float(n)) for name, n in sorted(run.counts.items())]
    yield Gauge("cxr_spark_run_status", "1 for the status that the last run ended with.", statuses)
    yield Gauge(
        "cxr_spark_run_exit_code",
        "Exit code of the last run.",
        [(labels, float(exit_codes[run.status]))],
    )
    yield Gauge("cxr_spark_run_seconds", "How long the last run took.", [(labels, seconds)])
    yield Gauge(
        "cxr_spark_run_timestamp_seconds",
        "When the last run ended.",
        [(labels, finished_at.timestamp())],
    )
    if complete_at is not None:
        yield Gauge(
            LAST_COMPLETE,
            "When a run last did all that there was to do: finished, or drift with nothing left.",
            [(labels, complete_at)],
        )
    if counts:
        yield Gauge("cxr_spark_run_count", "What the last run counted, as in its summary.", counts)


def _lines(gauges: Iterator[Gauge]) -> Iterator[str]:
    for gauge in gauges:
        yield f"# HELP {gauge.name} {gauge.meaning}\n# TYPE {gauge.name} gauge\n"
        for labels, value in gauge.values:
            pairs = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
            yield f"{gauge.name}{{{pairs}}} {value!r}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _last_complete(path: Path) -> float | None:
    """What the file that is there says of it; a file of somebody else says nothing."""
    try:
        found = re.search(rf"^{LAST_COMPLETE}\{{.*\}} ([\d.e+]+)$", path.read_text("utf-8"), re.M)
    except (OSError, UnicodeDecodeError):
        return None
    return float(found[1]) if found else None
