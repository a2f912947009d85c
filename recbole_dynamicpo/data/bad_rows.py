"""Rows that cannot be used: refused at once, or counted and set aside; what is wrong with a title."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError

HALVES = re.compile(r"[\ud800-\udfff]")  # of surrogate pairs; alone they are no text, or stand for such bytes


@dataclass(frozen=True)
class Problem:
    """Why a row cannot be used.

    Attributes:
        reason: the same for all rows of its kind.
        text: what this row has and what was wanted.
        advice: what to do about it.
    """

    reason: str
    text: str
    advice: str = "--skip-bad-rows drops and counts such rows"


@dataclass
class BadRows:
    """What to do with a row that cannot be used: stop with its place, or drop and count it.

    A row may be reported in each of several passes over its file; it counts once.

    Attributes:
        skip: drop and count.
        dropped: path -> numbers of the rows that were dropped.
        examples: the first ten, with their places.
        reasons: reason -> ``rows``, how many were dropped for it, and ``first``, an example.
    """

    skip: bool = False
    dropped: dict[Path, set[int]] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    reasons: dict[str, dict[str, Any]] = field(default_factory=dict)

    def report(self, path: Path, number: int, problem: Problem) -> None:
        """Record row ``number`` of ``path``.

        Raises:
            DataError: unless bad rows are to be skipped.
        """
        message = f"{path}, row {number}: {problem.text}"
        if not self.skip:
            raise DataError(f"{message} ({problem.advice})")
        numbers = self.dropped.setdefault(path, set())
        if number in numbers:
            return
        numbers.add(number)
        self.reasons.setdefault(problem.reason, {"rows": 0, "first": message})["rows"] += 1
        if len(self.examples) < 10:
            self.examples.append(message)

    def count(self, path: Path) -> int:
        """Return how many rows of ``path`` were dropped."""
        return len(self.dropped.get(path, ()))


def title_problem(title: str) -> Problem | None:
    """Say why an atomic file cannot hold a title, or return None; quotes, NA and odd Unicode are fine."""
    if not title.strip():
        return Problem("a title is empty", f"a title is empty, got {title!r}")
    if any(mark in title for mark in "\t\n\r"):
        what = "a title has a tab or line break"
        return Problem(what, f"{what}, which atomic files cannot hold: {title!r}")
    try:
        title.encode("utf-8")
    except UnicodeEncodeError:
        return Problem("a title is not valid UTF-8", f"a title is not valid UTF-8: {readable(title)!r}")
    return None


def readable(text: str) -> str:
    """Return a text with the sign for damage in place of what is no Unicode."""
    return HALVES.sub("\N{REPLACEMENT CHARACTER}", text)
