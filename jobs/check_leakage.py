"""Check that no group, such as a patient, is in two splits of a Delta or Parquet table."""

import argparse

from cxr_spark import job, leakage
from cxr_spark.session import spark_session

EXAMPLES = """examples:
  check_leakage.py --table warehouse/images --split split --group group_id --image image_id
  check_leakage.py --table their_data.parquet --split fold --group "Patient ID"

Any table will do: a Delta table (its newest version), a Parquet file, or a folder of Parquet
files, partitioned (split=train/...) or not. Nothing is written.
A row without a group (null or blank) is a group of its own. A row without a split is in none and
can't leak; such rows are counted, and said. With --image, the images of a leaking group are named,
and an image that is itself in two splits is a leak too. Exit code 3 means: something leaks."""


def parser() -> argparse.ArgumentParser:
    """The options of the job."""
    options = job.parser("check_leakage", __doc__, EXAMPLES)
    options.add_argument(
        "--table", required=True, metavar="PATH", help="the table's file or folder"
    )
    options.add_argument(
        "--split", required=True, metavar="COLUMN", help="train, test, a fold, ..."
    )
    options.add_argument(
        "--group", required=True, metavar="COLUMN", help="a patient or another unit of one split"
    )
    options.add_argument("--image", metavar="COLUMN", help="ids of images: named, checked too")
    return options


def main(options: argparse.Namespace, run: job.Run) -> None:
    """Run the job."""
    # No log: an error is one message, not Java's trace.
    with spark_session("cxr_spark check_leakage", run.say, log_level="off") as spark:
        found = leakage.check(spark, options.table, options.split, options.group, options.image)
    run.counts.update(found.counts)
    run.outputs["leaking_groups"] = [leak._asdict() for leak in found.groups]
    run.outputs["leaking_images"] = [leak._asdict() for leak in found.images]
    if found.version is not None:
        run.versions_read["table"] = found.version
    for line in found.in_words():
        run.say(line)
    found.require_none()
    run.next_steps.append("nothing to do: nothing leaks")


if __name__ == "__main__":
    job.start("check_leakage", parser(), main, records=False)
