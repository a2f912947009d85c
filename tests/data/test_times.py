"""Times of a column: what is taken, what is refused, and that a date is the second it means."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_dynamicpo.data.times import TimeColumn


@pytest.mark.parametrize(
    ("cell", "seconds"),
    [
        ("1970-01-01", "0"),
        ("1970-01-02", "86400"),
        ("2024-01-03", "1704240000"),
        ("2024-01-03T10:00", "1704276000"),
        ("2024-01-03T10:00:00", "1704276000"),
        ("2024-01-03 10:00:00", "1704276000"),
        ("2024-01-03T10:00:00Z", "1704276000"),
        ("2024-01-03T10:00:00+01:00", "1704272400"),
        ("2024-01-03T10:00:00-0130", "1704281400"),
        ("2024-01-03 10:00:00.250000+00", "1704276000.25"),
        ("2024-01-03T10:00:00,123456789Z", "1704276000.123456789"),
        ("1969-12-31T23:59:59.5Z", "-0.5"),
        ("0001-01-01T00:00:00+01:00", "-62135600400"),
        ("1e3", "1e3"),
        ("1600000000.00000001", "1600000000.00000001"),
        ("20240103", "20240103"),
    ],
)
def test_a_time_in_seconds_by_hand(cell: str, seconds: str) -> None:
    assert TimeColumn().seconds(cell) == seconds


NEITHER = [
    *("", " ", "soon", "nan", "inf", "1e999", "1_0", "٣", "03.01.2024", "01/03/2024", "2024-01", "2024-1-3"),
    *("2024-02-30", "0000-01-01", "2024-01-03 ", "2024-W01-3", "2024-01-03T", "2024-01-03Z", "2024-01-03T10"),
    *("2024-01-03T25:00", "2024-01-03T10:00.5", "2024-01-03T10:00:60", "2024-01-03T10:00:00.1234567890"),
    *("2024-01-03T10:00:00 CET", "2024-01-03T10:00+99:00", "2024-01-03T10:00:00+01:00:30"),
]


@pytest.mark.parametrize("cell", NEITHER)
def test_what_is_neither_number_nor_date_is_refused(cell: str) -> None:
    either = "time must be a finite number such as seconds since 1970, or a date such as 2024-01-03 or .*"
    with pytest.raises(ValueError, match=either):
        TimeColumn().seconds(cell)


def test_a_column_holds_one_kind() -> None:
    """What cannot be read does not say which kind the column is of."""
    numbers, dates = TimeColumn(), TimeColumn()
    for column in (numbers, dates):
        with pytest.raises(ValueError, match="got 'soon'"):
            column.seconds("soon")
    assert (numbers.seconds("7"), dates.seconds("2024-01-03")) == ("7", "1704240000")
    with pytest.raises(ValueError, match=r"a finite number, as in the rows before, got '2024-01-03'"):
        numbers.seconds("2024-01-03")
    with pytest.raises(ValueError, match=r"a date such as .*, as in the rows before, got '7'"):
        dates.seconds("7")
    with pytest.raises(ValueError, match=r"a date such as .*, as in the rows before, got '2024-13-01'"):
        dates.seconds("2024-13-01")


@given(
    st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29)), st.integers(-1439, 1439), st.sampled_from("T ")
)
def test_every_date_that_is_written_is_read_back(moment: datetime, minutes: int, between: str) -> None:
    zoned = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    passed = zoned - datetime(1970, 1, 1, tzinfo=UTC)
    exact = Decimal(passed // timedelta(microseconds=1)).scaleb(-6)
    assert Decimal(TimeColumn().seconds(zoned.isoformat(between))) == exact
