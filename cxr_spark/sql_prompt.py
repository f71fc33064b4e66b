"""A prompt for SQL in a terminal: typed lines to statements, each answered before the next."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from cxr_spark.sql_errors import QueryFailed

HELP = r"""End a query with ; (it may take several lines). Tab completes names.
\d lists the views, \d NAME the columns of one, \q or Ctrl-D ends, Ctrl-C drops what was typed."""
FIRST = "sql> "
MORE = "...> "
HISTORY_LINES = 1000
WORDS = """SELECT FROM WHERE GROUP BY HAVING ORDER LIMIT OFFSET JOIN LEFT ANTI SEMI ON USING UNION
    ALL EXCEPT INTERSECT WITH AS DISTINCT CASE WHEN THEN ELSE END AND OR NOT IN EXISTS BETWEEN LIKE
    IS NULL DESC ASC OVER PARTITION CAST DATE TIMESTAMP INTERVAL FILTER DESCRIBE SHOW TABLES
    count sum avg min max count_if round date_trunc"""


class Described(Protocol):
    """The part of `sql.Views` that completion uses."""

    def names(self) -> tuple[str, ...]: ...

    def describe(self, name: str) -> tuple[Any, str]: ...


def converse(answer: Callable[[str], None], views: Described, say: Callable[[str], None]) -> None:
    """Answer what is typed until the user leaves; an error is told and the prompt comes back."""
    say(HELP)
    # Where stdout is a file, input() would write its prompt there.
    read_line = input if sys.stdout.isatty() else lambda _: input()
    with _line_editing(views, say):
        for text in statements(read_line, say):
            try:
                answer(text)
            except (ValueError, QueryFailed, KeyboardInterrupt) as error:
                say(str(error) or "interrupted")


def statements(read_line: Callable[[str], str], say: Callable[[str], None]) -> Iterator[str]:
    r"""Statements until `\q` or the end of the input; `\d` becomes SHOW TABLES or DESCRIBE.

    Args:
        read_line: as `input`: takes a prompt, returns a line, raises EOFError at the end.
        say: shows help.
    """
    typed: list[str] = []
    while True:
        try:
            line = read_line(MORE if typed else FIRST).strip()
        except KeyboardInterrupt:
            typed = []
            continue
        except EOFError:
            return
        if typed or not line.startswith("\\"):
            typed += [line] * bool(line)
            if line.endswith(";"):
                yield "\n".join(typed)
                typed = []
            continue
        command, _, name = line.partition(" ")
        if command == "\\q":
            return
        if command == "\\d":
            yield f"DESCRIBE {name}" if name else "SHOW TABLES"
        else:
            say(HELP)


def completions(views: Described) -> Callable[[str], list[str]]:
    """What the beginning of a word can become: views, their columns, words of SQL.

    The columns are asked for at the first question.
    """

    @cache
    def candidates() -> list[str]:
        names = views.names()
        columns = {column for name in names for column in views.describe(name)[0].names}
        return sorted({*names, *columns, *WORDS.split()}, key=str.lower)

    def of(beginning: str) -> list[str]:
        return [word for word in candidates() if word.lower().startswith(beginning.lower())]

    return of


def history_file() -> Path:
    """Where the lines typed are kept, by the XDG base directories."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state, "cxr_spark", "query_history")


@contextmanager
def _line_editing(views: Described, say: Callable[[str], None]) -> Iterator[None]:
    """Give input() its editing, Tab, and a history that outlives the prompt."""
    try:
        import readline
    except ImportError:  # a Python built without it still has a prompt
        yield
        return
    matching = cache(completions(views))
    readline.set_completer(lambda text, place: next(iter(matching(text)[place:]), None))
    readline.set_completer_delims(" \t\n(),.;=<>'+-*/|")
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(HISTORY_LINES)
    path = history_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # a query may hold what a patient is known by
        readline.read_history_file(path)
    except OSError as error:
        say(f"no history is kept: {error}")
    try:
        yield
    finally:
        with suppress(OSError):
            readline.write_history_file(path)
