"""A prompt for SQL in a terminal: typed lines to statements, each answered before the next."""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

from cxr_spark.sql_errors import QueryFailed

HELP = r"""End a query with ; (it may take several lines).
\d lists the views, \d NAME the columns of one, \q or Ctrl-D ends, Ctrl-C drops what was typed."""
FIRST = "sql> "
MORE = "...> "


def converse(answer: Callable[[str], None], say: Callable[[str], None]) -> None:
    """Answer what is typed until the user leaves; an error is told and the prompt comes back."""
    with suppress(ImportError):
        import readline  # noqa: F401  gives input() its line editing
    say(HELP)
    # Where stdout is a file, input() would write its prompt there.
    read_line = input if sys.stdout.isatty() else lambda _: input()
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
