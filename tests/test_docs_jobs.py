"""Each job has its page, which shows its options as they are."""

import re
from pathlib import Path

import pytest

from scripts.refresh_docs import DOCS, PAGES, help_of, shown
from tests import words
from tests.conftest import Chain, run_job

JOBS = Path(__file__).resolve().parent.parent / "jobs"


def test_every_job_has_a_page() -> None:
    assert {path.stem for path in JOBS.glob("[!_]*.py")} == PAGES.keys()


@pytest.mark.parametrize("job", PAGES)
def test_a_page_shows_the_options_as_they_are(job: str) -> None:
    page = (DOCS / PAGES[job]).read_text("utf-8")
    assert shown(page, job) == help_of(job), "run `make docs`"


@pytest.mark.parametrize("job", ["sample", "train", "score", "evaluate"])
def test_a_page_shows_words_as_the_job_says_them(chain: Chain, job: str) -> None:
    on_page, said = words.shown(job), words.bare(chain.said[job], job)
    assert [line for line in on_page if line not in said] == []
    assert on_page[-1] == said[-1]


def test_the_page_of_maintenance_shows_words_as_it_says_them(chain: Chain) -> None:
    done = run_job("maintain", "--warehouse", chain.warehouse, "--dry-run")
    said = words.bare(done.stderr, "maintain")
    assert [line for line in words.shown("maintain") if line not in said] == []
    assert words.shown("maintain")[-1] == said[-1]


def test_the_pages_lead_to_each_other_and_to_files_that_are_there() -> None:
    for page in DOCS.glob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), f"{page.name} leads to {link}"


def test_the_readme_names_every_page() -> None:
    readme = (DOCS.parent / "README.md").read_text("utf-8")
    assert [page.name for page in DOCS.glob("*.md") if f"docs/{page.name}" not in readme] == []
