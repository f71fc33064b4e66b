"""docs/sql.md: each of its questions is asked as it stands there, of the warehouse of all jobs."""

import json
import re

import chdb
import pytest
from pyspark.sql import SparkSession

from cxr_spark import sql
from cxr_spark.sql_parameters import value_of
from cxr_spark.sql_views import VIEWS
from cxr_spark.tables import Warehouse
from tests.conftest import REPOSITORY, Chain
from tests.test_sql import Notes

PAGE = (REPOSITORY / "docs" / "sql.md").read_text("utf-8")
QUESTION = re.compile(r"^### (\d+\. .*?)\n\n(.*?)```sql\n(.*?)```", re.MULTILINE | re.DOTALL)
PARAMETER = re.compile(r"`--param (\w+)=([^`]*)`")
QUESTIONS = {title: (words, query) for title, words, query in QUESTION.findall(PAGE)}
# The page says of these when they have no rows.
MAY_BE_EMPTY = {title for title, (words, _) in QUESTIONS.items() if words.startswith("Nothing ")}


@pytest.fixture(scope="module")
def views(spark: SparkSession, chain: Chain) -> sql.Views:
    return sql.Views(spark, Warehouse(chain.warehouse), {}, Notes())


def block(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return text


def test_there_are_twenty_questions() -> None:
    numbers = [int(title.partition(".")[0]) for title in QUESTIONS]
    assert numbers == list(range(1, 21))


@pytest.mark.parametrize("title", QUESTIONS)
def test_a_question_of_the_page_has_its_answer(views: sql.Views, title: str) -> None:
    words, query = QUESTIONS[title]
    parameters = {name: value_of(value) for name, value in PARAMETER.findall(words)}
    answer = views.query(query, parameters)
    assert answer.take(1) or title in MAY_BE_EMPTY


def test_the_page_names_the_derived_views_as_the_code_does() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.MULTILINE)
    assert dict(rows) == {name: view.description for name, view in VIEWS.items()}


def test_clickhouse_answers_its_query_as_our_views_do(
    views: sql.Views, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = block("clickhouse").replace("/data/warehouse", str(chain.warehouse))
    monkeypatch.chdir(chain.warehouse)
    lines = str(chdb.connect(":memory:").query(text, "JSONCompactEachRow")).splitlines()
    theirs = [json.loads(line) for line in lines]
    ours = views.query(
        "SELECT predicted_label, count(*) FROM predictions WHERE error IS NULL "
        "GROUP BY predicted_label"
    )
    assert {tuple(row[:2]) for row in theirs} == {tuple(row) for row in ours.collect()}
