"""The HTML report of a curate run: what was listed, what was kept, and what it looks like."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pyspark.sql import SparkSession

from cxr_spark import curation_facts, html_pages, ledger
from cxr_spark.curation_facts import GREY_BINS, SIZE_STEPS, Facts
from cxr_spark.labels import CLASSES
from cxr_spark.reasons import REASONS
from cxr_spark.run import Run
from cxr_spark.splits import SPLITS
from cxr_spark.tables import PUBLISHED, Warehouse

POLICY = ("label_policy", "selected", "caps", "split_policy", "ratios", "preprocessing")
# Of the size panels: 2^5.5 to 2^12.5 px; what is beyond counts in the outermost bar.
SIZE_RANGE = range(11, 25)


class Panel(NamedTuple):
    """A histogram of one source: bars as (x, height) in percent, and its words."""

    source: str
    files: int
    bars: list[tuple[float, float]]
    bar_width: float
    ticks: list[tuple[float, str]]
    most: str


def write(spark: SparkSession, warehouse: Warehouse, run: Run, path: Path) -> None:
    """Write the report of what a run is about to publish; whole or not at all."""
    versions = {name: run.versions_written[name] for name in PUBLISHED}
    facts = curation_facts.gather(spark, warehouse, versions, run.resolved["preprocessing"])
    html_pages.write(path, render(facts, run, made_at=datetime.now(UTC)))


def render(facts: Facts, run: Run, *, made_at: datetime) -> str:
    """The whole page."""
    lines = ledger.lines(run.counts)
    thumbnails = {content: html_pages.thumbnail(p) for content, p in facts.pixels.items()}
    return (
        html_pages.environment()
        .get_template("curation_report.html")
        .render(
            facts=facts,
            run=run,
            made_at=made_at,
            ledger=lines,
            sources=list(lines[0].files) if lines else [],
            patients_unknown=ledger.patients_unknown(run.counts),
            reasons=REASONS,
            policy={name: run.resolved[name] for name in POLICY if name in run.resolved},
            splits=SPLITS,
            heat=_heat(facts.cells),
            class_splits=_class_splits(facts.cells),
            sizes=[_size_panel(source, bins) for source, bins in facts.sizes.items()],
            greys=[_grey_panel(source, bins) for source, bins in facts.greys.items()],
            thumbnails=thumbnails,
        )
    )


def _heat(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Class by source: (images, share of the class) cells."""
    sources = sorted({cell["source"] for cell in cells})
    rows = []
    for label in CLASSES:
        counts = [_sum(cells, label=label, source=source) for source in sources]
        total = sum(counts)
        shares = [count / total if total else 0.0 for count in counts]
        rows.append(
            {"label": label, "cells": list(zip(counts, shares, strict=True)), "total": total}
        )
    return {"sources": sources, "rows": rows}


def _class_splits(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each class, and of all: (images, share) by split."""
    rows = []
    for label in (*CLASSES, None):
        given = {} if label is None else {"label": label}
        counts = {split: _sum(cells, split=split, **given) for split in SPLITS}
        total = sum(counts.values())
        shares = {split: (n, n / total if total else 0.0) for split, n in counts.items()}
        rows.append({"label": label or "All", "splits": shares, "total": total})
    return rows


def _sum(cells: Sequence[Mapping[str, Any]], **given: str) -> int:
    fits = (cell for cell in cells if all(cell[name] == value for name, value in given.items()))
    return sum(int(cell["images"]) for cell in fits)


def _size_panel(source: str, bins: Mapping[int, int]) -> Panel:
    """Files by their shorter side, on a scale of doublings."""
    counts = dict.fromkeys(SIZE_RANGE, 0)
    for place, count in bins.items():
        counts[min(max(place, SIZE_RANGE[0]), SIZE_RANGE[-1])] += count
    ticks = [
        (100 * (SIZE_STEPS * power - SIZE_RANGE[0]) / len(SIZE_RANGE), f"{2**power}")
        for power in (6, 8, 10, 12)
    ]
    most = max(counts, key=lambda place: counts[place])
    words = f"most have a shorter side of {_side(most)} to {_side(most + 1)} px"
    return _panel(source, list(counts.values()), ticks, words)


def _side(place: int) -> str:
    return f"{2 ** (place / SIZE_STEPS):,.0f}"


def _grey_panel(source: str, bins: Mapping[int, int]) -> Panel:
    """Images by their mean grey."""
    counts = [bins.get(place, 0) for place in range(GREY_BINS)]
    step = 256 // GREY_BINS
    most = counts.index(max(counts))
    words = f"most have a mean grey of {step * most} to {step * (most + 1) - 1}"
    return _panel(source, counts, [(0.0, "0"), (50.0, "128"), (100.0, "255")], words)


def _panel(source: str, counts: Sequence[int], ticks: list[tuple[float, str]], most: str) -> Panel:
    width, highest = 100 / len(counts), max(*counts, 1)
    bars = [(place * width, 100 * n / highest) for place, n in enumerate(counts) if n]
    return Panel(source, sum(counts), bars, width, ticks, most)
