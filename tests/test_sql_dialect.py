"""What standard clients write beside queries, and the patterns of JDBC."""

import pytest

from cxr_spark import sql_dialect, sql_metadata


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("SELECT * FROM default.images", "SELECT * FROM images"),
        ("SELECT * FROM `default`.`images` i", "SELECT * FROM `images` i"),
        ("SELECT Default . images.label FROM DEFAULT.images", "SELECT images.label FROM images"),
        ("DESCRIBE default.images", "DESCRIBE images"),
        ("show tables in `default`;", "SHOW TABLES"),
        ("SHOW VIEWS", "SHOW TABLES"),
    ],
)
def test_the_schema_before_a_name_is_left_out(text: str, plain: str) -> None:
    assert sql_dialect.plain(text) == plain


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 'default.images'",
        'SELECT "default.images", "it\'s \\" default.images"',
        "SELECT r'\\', 'default.images'",
        "SELECT `a default.images`",
        "SELECT 1 -- default.images",
        "SELECT /* default.images */ 1",
        "SELECT * FROM a.default.images",
        "SELECT * FROM not_default.images",
        "SELECT default FROM images",
        "SHOW TABLES IN global_temp",
    ],
)
def test_what_is_no_name_of_a_view_stays_as_it_is(text: str) -> None:
    assert sql_dialect.plain(text) == text


def test_use_and_show_databases_know_the_one_schema() -> None:
    assert sql_dialect.at_hand("USE `default`") is sql_dialect.NOTHING
    assert sql_dialect.at_hand("show databases;").rows == [("default",)]
    assert sql_dialect.at_hand("SHOW SCHEMAS LIKE 'other'").rows == []
    for text in ("USE global_temp", "USE default; SELECT 1", "SHOW DATABASES IN x", "SELECT 1"):
        assert sql_dialect.at_hand(text) is None


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (None, True),
        ("", True),
        ("%", True),
        ("*", True),
        ("images%", True),
        ("IMAGES_RAW", True),
        ("images_", False),
        ("images\\_raw", True),
        ("images\\%", False),
        (".*", False),
        ("raw", False),
    ],
)
def test_patterns_of_jdbc_match_whole_names_in_any_case(pattern: str | None, found: bool) -> None:
    assert sql_metadata.matches("images_raw", pattern) is found
