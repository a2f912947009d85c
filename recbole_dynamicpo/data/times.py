"""Times of interactions as seconds since 1970 (UTC): from numbers, or from dates as ISO 8601 writes them."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
# The date, and behind it the time of day, its fraction and its zone, as far as they are there.
_DATE = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[T ]([0-9]{2}:[0-9]{2})(?:(:[0-9]{2})(?:[.,]([0-9]{1,9}))?)?(Z|[+-][0-9]{2}(?::?[0-9]{2})?)?)?"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBERS, _DATES = "a finite number", "a date such as 2024-01-03 or 2024-01-03T10:00:00+01:00"


class TimeColumn:
    """Reads the times of one column, all numbers or all dates: the first readable one says which."""

    def __init__(self) -> None:
        self._kind = ""

    def seconds(self, cell: str) -> str:
        """Return a time as the text of a decimal number: a number as it stands, a date in seconds since 1970.

        A date without a time of day is its midnight, one without a zone is in UTC.

        Raises:
            ValueError: it is neither, or not what the cells before it are.
        """
        found, kind = _finite(cell), _NUMBERS
        if found is None:
            found, kind = _seconds_of_date(cell), _DATES
        if found is None or kind != (self._kind or kind):
            either = f"{_NUMBERS} such as seconds since 1970, or {_DATES}"
            wanted = f"{self._kind}, as in the rows before" if self._kind else either
            raise ValueError(f"time must be {wanted}, got {cell!r}")
        self._kind = kind
        return found


def _finite(cell: str) -> str | None:
    return cell if NUMBER.fullmatch(cell) and math.isfinite(float(cell)) else None


def _seconds_of_date(cell: str) -> str | None:
    """Return a date in seconds since 1970 with all its digits, or None where it is none of the calendar."""
    match = _DATE.fullmatch(cell)
    if match is None:
        return None
    day, clock, second, fraction, zone = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{clock or '00:00'}{second or ''}{zone or 'Z'}")
    except ValueError:
        return None
    return decimal_text(Decimal((moment - _EPOCH) // timedelta(seconds=1)) + Decimal(f"0.{fraction or 0}"))


def decimal_text(value: Decimal) -> str:
    """Return a number's digits without zeros behind its decimal places."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
