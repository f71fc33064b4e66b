"""Care for the tables: remove files that nothing needs, merge small ones, write checkpoints."""

import argparse
import shlex
import sys

from cxr_spark import job
from cxr_spark.maintenance import maintain
from cxr_spark.tables import Warehouse

EXAMPLES = """examples:
  maintain.py --warehouse warehouse --dry-run         say what would be done, change nothing
  maintain.py --warehouse warehouse --retain-hours 336
Versions that are published, that a model was trained on or a figure computed from stay, however
old. docs/maintenance.md tells by which rules."""


def parser() -> argparse.ArgumentParser:
    """The options of the job."""
    options = job.parser("maintain", __doc__, EXAMPLES)
    options.add_argument("--warehouse", required=True, help="folder of the Delta tables")
    options.add_argument(
        "--retain-hours",
        type=int,
        default=168,
        metavar="N",
        help="versions and files younger than that stay; longer than any training or query (168)",
    )
    options.add_argument("--dry-run", action="store_true", help="say what would be done")
    return options


def main(options: argparse.Namespace, run: job.Run) -> None:
    """Run the job."""
    warehouse = Warehouse(options.warehouse)
    maintain(warehouse, run, retain_hours=options.retain_hours, dry_run=options.dry_run)
    run.outputs["warehouse"] = str(warehouse.root)
    for_real = ["jobs/maintain.py", "--warehouse", str(warehouse.root)]
    for_real += ["--retain-hours", str(options.retain_hours)]
    again = "nothing to do; again in a day or a week"
    run.next_steps.append(shlex.join(for_real) if options.dry_run else again)


if __name__ == "__main__":
    job.start("maintain", parser(), main, records="--dry-run" not in sys.argv)
