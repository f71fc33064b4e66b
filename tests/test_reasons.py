"""Reasons of rejects: few words, stable, and all in the docs in the order in which they count."""

import re

from cxr_spark.reasons import COPY_REASONS, FILE_REASONS, LABEL_REASONS, REASONS
from tests.conftest import REPOSITORY


def test_the_docs_list_every_reason_in_the_order_of_precedence() -> None:
    text = (REPOSITORY / "docs" / "curation.md").read_text("utf-8")
    table = text.split("| reason | what it means |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE) == list(REASONS.items())


def test_no_reason_stands_for_two_things() -> None:
    assert len(REASONS) == len(FILE_REASONS) + len(LABEL_REASONS) + len(COPY_REASONS)
