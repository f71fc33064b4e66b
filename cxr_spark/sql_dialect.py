"""Statements that standard clients send of themselves, in terms of the one schema that there is."""

import re

from pyspark.sql import types as T

from cxr_spark import sql_metadata
from cxr_spark.sql_metadata import SCHEMA, Known

NOTHING = Known(T.StructType(), [])
DATABASES = T.StructType([T.StructField("databaseName", T.StringType())])

_SCHEMA = f"(?:{SCHEMA}|`{SCHEMA}`)"
_USE = re.compile(rf"\s*use\s+{_SCHEMA}\s*;?\s*", re.IGNORECASE)
_SHOW_DATABASES = re.compile(
    r"\s*show\s+(?:databases|schemas)(?:\s+(?:like\s+)?'([^']*)')?\s*;?\s*", re.IGNORECASE
)
_SHOW_TABLES = re.compile(
    rf"\s*show\s+(?:tables|views)(?:\s+(?:in|from)\s+{_SCHEMA})?\s*;?\s*", re.IGNORECASE
)
# What stands in quotes or comments is skipped, by matching it first.
_QUALIFIER = re.compile(
    r"""(r'[^']*'|r"[^"]*"|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|--[^\n]*|/\*.*?\*/)"""
    rf"|(?<![\w.`]){_SCHEMA}\s*\.\s*(?=[\w`])"
    r"|(`(?:[^`]|``)*`)",
    re.IGNORECASE | re.DOTALL,
)


def at_hand(text: str) -> Known | None:
    """The answer to a statement that needs no Spark: USE default, SHOW DATABASES."""
    if _USE.fullmatch(text):
        return NOTHING
    asked = _SHOW_DATABASES.fullmatch(text)
    if asked:
        return Known(DATABASES, [(SCHEMA,)] if sql_metadata.matches(SCHEMA, asked[1]) else [])
    return None


def plain(text: str) -> str:
    """A statement without the name of the schema, which tools put before that of a view."""
    if _SHOW_TABLES.fullmatch(text):
        return "SHOW TABLES"
    return _QUALIFIER.sub(lambda found: found[1] or found[2] or "", text)
