"""Rows that cannot be used: refused at once, or counted and set aside; what is wrong with a title."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError


@dataclass
class BadRows:
    """What to do with a row that cannot be used: stop with its place, or drop and count it.

    A row may be reported in each of several passes over its file; it counts once.
    """

    skip: bool = False
    dropped: dict[Path, set[int]] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def report(self, path: Path, number: int, problem: str) -> None:
        """Record row ``number`` of ``path``.

        Raises:
            DataError: unless bad rows are to be skipped.
        """
        message = f"{path}, row {number}: {problem}"
        if not self.skip:
            raise DataError(f"{message} (--skip-bad-rows drops and counts such rows)")
        numbers = self.dropped.setdefault(path, set())
        if number not in numbers and len(self.examples) < 10:
            self.examples.append(message)
        numbers.add(number)

    def count(self, path: Path) -> int:
        """Return how many rows of ``path`` were dropped."""
        return len(self.dropped.get(path, ()))


def title_problem(title: str) -> str | None:
    """Say why an atomic file cannot hold a title, or return None; quotes, NA and odd Unicode are fine."""
    if not title.strip():
        return f"a title is empty, got {title!r}"
    if any(mark in title for mark in "\t\n\r"):
        return f"a title has a tab or line break, which atomic files cannot hold: {title!r}"
    try:
        title.encode("utf-8")
    except UnicodeEncodeError:
        return f"a title is not valid UTF-8: {title!a}"
    return None
