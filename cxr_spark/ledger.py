"""The ledger of a curate run, source by rule: files listed, minus each rule in turn, are images."""

from collections.abc import Mapping
from typing import NamedTuple

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from cxr_spark.reasons import REASONS
from cxr_spark.run import Run
from cxr_spark.splits import SPLITS

WITHOUT_PATIENT = "without_patient"
# Lines of the ledger in their order; those of the splits divide the images once more.
RULES = ("listed", *REASONS, "images", *SPLITS)


class Line(NamedTuple):
    """A line of the ledger: a rule, and the files that it takes from each source and in all."""

    rule: str
    files: dict[str, int]
    total: int


def accounts(images_raw: DataFrame, images: DataFrame, rejects: DataFrame) -> DataFrame:
    """A row a source for the audit: files listed, accounted for, and shares of what is left out."""
    kept = images.groupBy("source").agg(F.count("*").alias("kept"))
    refused = rejects.groupBy("source").agg(F.count("*").alias("rejected"))
    unreadable = F.avg(F.col("reason").isNotNull().cast("double")).alias("unreadable_share")
    listed = images_raw.groupBy("source").agg(F.count("*").alias("listed"), unreadable)
    both = listed.join(kept, on="source", how="left").join(refused, on="source", how="left")
    counted = both.fillna(0, ["kept", "rejected"])
    return counted.select(
        "source",
        "listed",
        (F.col("kept") + F.col("rejected")).alias("accounted"),
        "unreadable_share",
        (F.col("rejected") / F.col("listed")).alias("rejected_share"),
    )


def count(images_raw: DataFrame, images: DataFrame, rejects: DataFrame, run: Run) -> None:
    """Put the ledger into the counts of a run, as `source.rule`."""
    listed = images_raw.groupBy("source").count().orderBy("source").collect()
    refused = rejects.groupBy("source", "reason").count().orderBy("source", "reason").collect()
    without = F.count_if(F.col("patient_id").isNull()).alias("without")
    by_split = images.groupBy("source", "split").agg(F.count("*").alias("files"), without)
    kept = by_split.orderBy("source", "split").collect()
    for row in listed:
        run.counts[f"{row.source}.listed"] = row["count"]
        run.counts[f"{row.source}.images"] = sum(r.files for r in kept if r.source == row.source)
    for row in refused:
        run.counts[f"{row.source}.{row.reason}"] = row["count"]
    for row in kept:
        run.counts[f"{row.source}.{row.split}"] = row.files
        name = f"{row.source}.{WITHOUT_PATIENT}"
        run.counts[name] = run.counts.get(name, 0) + row.without
    run.counts["images"] = sum(row.files for row in kept)
    run.counts["rejects"] = sum(row["count"] for row in refused)


def of_run(counts: Mapping[str, float]) -> dict[str, int]:
    """What `count` put into the counts of an earlier run."""
    totals = ("images", "rejects")
    return {name: int(n) for name, n in counts.items() if "." in name or name in totals}


def lines(counts: Mapping[str, float]) -> list[Line]:
    """The ledger of a run's counts: listed, the reasons in order of precedence, images, splits."""
    names = sources(counts)
    found = {rule: {n: int(counts.get(f"{n}.{rule}", 0)) for n in names} for rule in RULES}
    return [
        Line(rule, files, sum(files.values()))
        for rule, files in found.items()
        if any(files.values())
    ]


def patients_unknown(counts: Mapping[str, float]) -> list[str]:
    """The sources none of whose images has a patient id."""
    return [
        name
        for name in sources(counts)
        if counts.get(f"{name}.images")
        and counts[f"{name}.images"] == counts[f"{name}.{WITHOUT_PATIENT}"]
    ]


def sources(counts: Mapping[str, float]) -> list[str]:
    """The sources that a run listed, or kept from runs before it."""
    return [name.removesuffix(".listed") for name in counts if name.endswith(".listed")]


def say(run: Run) -> None:
    """Print the ledger as a table, and what can't be known of the sources."""
    table = [("", *sources(run.counts), "total")]
    for line in lines(run.counts):
        sign = "- " if line.rule in REASONS else "= " if line.rule == "images" else "  "
        numbers = (f"{number:,}" for number in (*line.files.values(), line.total))
        table.append((sign + line.rule, *numbers))
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        run.say("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    unknown = patients_unknown(run.counts)
    run.outputs["patients_unknown"] = unknown
    if unknown:
        run.say(
            f"no patient ids in {', '.join(unknown)}: that no patient is in two splits can't be "
            "verified there, beyond copies and near-duplicates"
        )
