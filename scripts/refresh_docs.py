"""Brings what docs/ shows of each job's --help up to date; `make docs` runs it, a test holds it."""

import importlib
import os
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = {
    "sample": "sample.md",
    "curate": "curation.md",
    "train": "train.md",
    "score": "score.md",
    "evaluate": "evaluate.md",
    "query": "sql.md",
    "serve_sql": "serve_sql.md",
    "maintain": "maintenance.md",
    "check_leakage": "check_leakage.md",
}
WIDTH = "100"


def help_of(job: str) -> str:
    """What `jobs/JOB.py --help` prints on a terminal of 100 columns."""
    os.environ["COLUMNS"] = WIDTH
    return importlib.import_module(f"cxr_spark.jobs.{job}").parser().format_help().strip()


def shown(page: str, job: str) -> str | None:
    """The block of a page that shows a job's help; None where it has none."""
    found = re.search(rf"^```\n(usage: {job}\.py .*?)\n```$", page, re.DOTALL | re.MULTILINE)
    return found[1] if found else None


def main() -> None:
    """Write the pages anew, with a last section where one is missing."""
    for job, name in PAGES.items():
        path = DOCS / name
        page = path.read_text("utf-8")
        before = shown(page, job)
        if before is None:
            page = page.rstrip() + f"\n\n## Options of jobs/{job}.py\n\n```\n{help_of(job)}\n```\n"
        else:
            page = page.replace(before, help_of(job))
        path.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
