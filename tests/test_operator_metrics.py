"""The metrics file: read as Prometheus reads it, whole at any moment, also of runs that failed."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cxr_spark import operator_metrics
from cxr_spark.job import EXIT_CODES

BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def run(status: str = "finished", **counts: float) -> SimpleNamespace:
    return SimpleNamespace(job="score", status=status, started_at=BEGAN, counts=counts)


def write(path: Path, of: SimpleNamespace, *, seconds: float = 90) -> Values:
    """Write the file of a run and read it: values by name and labels."""
    operator_metrics.write(path, of, EXIT_CODES, BEGAN + timedelta(seconds=seconds))
    families = list(text_string_to_metric_families(path.read_text("utf-8")))
    assert all(family.type == "gauge" and family.documentation for family in families)
    samples = [sample for family in families for sample in family.samples]
    values = {(s.name, frozenset(s.labels.items())): s.value for s in samples}
    assert len(values) == len(samples)
    return values


def value(values: Values, name: str, **labels: str) -> float | None:
    common = {"command": "score", "file": "night"}
    return values.get((f"cxr_spark_{name}", frozenset((common | labels).items())))


def test_counts_seconds_and_status_are_what_the_run_says(tmp_path: Path) -> None:
    values = write(tmp_path / "night.prom", run(scored=1234, images_per_second=0.1))
    assert value(values, "run_count", count="scored") == 1234
    assert value(values, "run_count", count="images_per_second") == 0.1
    assert value(values, "run_seconds") == 90
    assert value(values, "run_exit_code") == 0
    assert value(values, "run_timestamp_seconds") == BEGAN.timestamp() + 90
    statuses = {s: value(values, "run_status", status=s) for s in EXIT_CODES}
    assert statuses == {s: float(s == "finished") for s in EXIT_CODES}


def test_a_failed_run_keeps_the_time_of_the_last_complete_one(tmp_path: Path) -> None:
    path = tmp_path / "night.prom"
    name = "last_complete_timestamp_seconds"
    assert value(write(path, run("failed")), name) is None
    write(path, run("finished"), seconds=60.25)
    for status in ("failed", "busy", "stopped", "invalid"):
        values = write(path, run(status), seconds=5000)
        assert value(values, name) == BEGAN.timestamp() + 60.25
        assert value(values, "run_exit_code") == EXIT_CODES[status]
    # Judged when its time was over, with images left: not complete.
    values = write(path, run("drift", left=3), seconds=6000)
    assert value(values, name) == BEGAN.timestamp() + 60.25
    assert value(write(path, run("drift", left=0), seconds=7000), name) == BEGAN.timestamp() + 7000


def test_a_file_of_somebody_else_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "night.prom"
    path.write_bytes(b"\xff\x00 no metrics")
    assert value(write(path, run()), "run_seconds") == 90


def test_names_from_data_stay_inside_their_quotes(tmp_path: Path) -> None:
    name = 'a "b" \\ c\n# TYPE d gauge'
    values = write(tmp_path / "night.prom", run(**{name: 7}))
    assert value(values, "run_count", count=name) == 7


def test_two_files_in_a_folder_share_no_series(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.prom", run()), write(tmp_path / "b.prom", run())
    assert one.keys().isdisjoint(other)


def test_the_file_appears_whole_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "night.prom"
    write(path, run())
    before = path.read_bytes()
    seen: list[str] = []

    def full(unfinished: Path, *_: object) -> None:
        seen.append(unfinished.suffix)
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write(path, run("failed"))
    assert [file.name for file in tmp_path.iterdir()] == ["night.prom"]
    assert path.read_bytes() == before
    assert seen != [operator_metrics.SUFFIX]  # node_exporter reads no half-written file


def test_a_place_that_node_exporter_would_not_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(operator_metrics.MetricsFileError, match=r"end in \.prom"):
        operator_metrics.target(tmp_path / "night.txt")
    with pytest.raises(operator_metrics.MetricsFileError, match="there is no folder"):
        operator_metrics.target(tmp_path / "missing" / "night.prom")
    assert operator_metrics.target(tmp_path / "night.prom") == tmp_path / "night.prom"
