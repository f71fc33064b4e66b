"""What the pages in docs/ show of a job's words, beside what it says."""

import re

from scripts.refresh_docs import DOCS, PAGES


def shown(job: str) -> list[str]:
    """The lines that the job's page shows of it, as `bare` has them."""
    page = (DOCS / PAGES[job]).read_text("utf-8")
    return bare(page, job)


def bare(text: str, job: str) -> list[str]:
    """The job's lines in a text, with # for each word that has a number or a path in it, and
    without the figures at their ends."""
    lines = re.findall(rf"^\[{job}\](.*)$", text, re.MULTILINE)
    masked = (
        " ".join("#" if re.search(r"[\d/]", word) else word for word in line.split())
        for line in lines
    )
    return [re.sub(r"( #| to| too few| undefined)+$", "", line) for line in masked]
