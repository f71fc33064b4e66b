"""What is typed at the prompt, as statements."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import types as T

from cxr_spark import sql_prompt
from cxr_spark.sql_errors import InvalidQuery


def typing(*lines: str | type[BaseException]) -> Callable[[str], str]:
    """Stands in for input: these lines, then the end of the input."""
    left = iter(lines)

    def read_line(prompt: str) -> str:
        line = next(left, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return read_line


def statements(*lines: str | type[BaseException]) -> list[str]:
    return list(sql_prompt.statements(typing(*lines), print))


def test_a_statement_ends_with_a_semicolon_and_may_take_several_lines() -> None:
    assert statements("SELECT 1", "", "  , 2 ;", "SELECT 3;") == ["SELECT 1\n, 2 ;", "SELECT 3;"]


def test_what_has_no_end_is_not_run() -> None:
    assert statements("SELECT 1;", "SELECT 2") == ["SELECT 1;"]


def test_backslash_d_lists_the_views_or_the_columns_of_one() -> None:
    assert statements(r"\d", r"\d images") == ["SHOW TABLES", "DESCRIBE images"]


def test_backslash_q_ends_and_ctrl_c_drops_what_was_typed() -> None:
    typed = ("SELECT 1", KeyboardInterrupt, "SELECT 2;", r"\q", "SELECT 3;")
    assert statements(*typed) == ["SELECT 2;"]


def test_an_unknown_command_shows_the_help() -> None:
    said: list[str] = []
    assert list(sql_prompt.statements(typing(r"\h"), said.append)) == []
    assert said == [sql_prompt.HELP]


class OneView:
    """Stands in for sql.Views."""

    def names(self) -> tuple[str, ...]:
        return ("images",)

    def describe(self, name: str) -> tuple[T.StructType, str]:
        return T.StructType().add("image_id", "string").add("label", "string"), "An image."


@pytest.mark.parametrize(
    ("typed", "words"),
    [("im", ["image_id", "images"]), ("LAB", ["label"]), ("hav", ["HAVING"]), ("x", [])],
)
def test_tab_completes_views_columns_and_words_of_sql(typed: str, words: list[str]) -> None:
    assert sql_prompt.completions(OneView())(typed) == words


def test_an_error_is_told_and_the_prompt_comes_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answered, said = [], []

    def answer(text: str) -> None:
        if text == "bad;":
            raise InvalidQuery("not like this")
        if text == "long;":
            raise KeyboardInterrupt
        answered.append(text)

    lines = typing("bad;", "long;", "good;")
    monkeypatch.setattr("builtins.input", lambda *prompt: lines(""))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    sql_prompt.converse(answer, OneView(), said.append)
    assert answered == ["good;"]
    assert said == [sql_prompt.HELP, "not like this", "interrupted"]


def test_a_folder_that_cannot_hold_the_history_costs_only_the_history(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cxr_spark").write_text("in the way")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    answered, said = [], []
    lines = typing("SELECT 1;")
    monkeypatch.setattr("builtins.input", lambda *prompt: lines(""))
    sql_prompt.converse(answered.append, OneView(), said.append)
    assert answered == ["SELECT 1;"]
    assert said[1].startswith("no history is kept: ")
