"""The type of a parameter's value, by its form."""

from datetime import date

import pytest

from cxr_spark.sql_errors import InvalidQuery
from cxr_spark.sql_parameters import value_of


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("false", False),
        ("True", "True"),
        ("0", 0),
        ("-12", -12),
        ("007", "007"),  # an identifier, whose zeros count
        ("+1", "+1"),
        ("123456789012345678", 123456789012345678),
        ("1234567890123456789", "1234567890123456789"),  # more than fits
        ("0.5", 0.5),
        ("-1e-3", -0.001),
        ("1.", "1."),
        (".5", ".5"),
        ("1.5d", "1.5d"),
        ("nan", "nan"),
        ("٣", "٣"),
        ("2026-01-31", date(2026, 1, 31)),
        ("2026-1-31", "2026-1-31"),
        ("'2026-01-31'", "2026-01-31"),
        ("'7'", "7"),
        ("''", ""),
        ("'", "'"),
        ("", ""),
        ("No Finding", "No Finding"),
        ("x' OR '1' = '1", "x' OR '1' = '1"),
    ],
)
def test_the_form_of_a_value_gives_its_type(text: str, value: object) -> None:
    given = value_of(text)
    assert (type(given), given) == (type(value), value)


def test_a_date_that_no_calendar_has_is_refused_and_not_taken_for_text() -> None:
    with pytest.raises(InvalidQuery, match="2026-02-30 is no date; as a string it is"):
        value_of("2026-02-30")
