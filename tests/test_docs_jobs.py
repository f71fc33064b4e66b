"""Each job has its page, which shows its options as they are."""

import re
from pathlib import Path

import pytest

from scripts.refresh_docs import DOCS, PAGES, help_of, shown

JOBS = Path(__file__).resolve().parent.parent / "jobs"


def test_every_job_has_a_page() -> None:
    assert {path.stem for path in JOBS.glob("[!_]*.py")} == PAGES.keys()


@pytest.mark.parametrize("job", PAGES)
def test_a_page_shows_the_options_as_they_are(job: str) -> None:
    page = (DOCS / PAGES[job]).read_text("utf-8")
    assert shown(page, job) == help_of(job), "run `make docs`"


def test_the_pages_lead_to_each_other_and_to_files_that_are_there() -> None:
    for page in DOCS.glob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), f"{page.name} leads to {link}"


def test_the_readme_names_every_page() -> None:
    readme = (DOCS.parent / "README.md").read_text("utf-8")
    assert [page.name for page in DOCS.glob("*.md") if f"docs/{page.name}" not in readme] == []
