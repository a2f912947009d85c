"""From published rows of titles to lines of item ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from .published import BadRows, HistorySplitter, read_rows, title_problem


class Converter:
    """Turns published rows into lines of benchmark files; items are numbered in order of appearance.

    All files are read once at the start, because a history can only be split when all titles are known.

    Args:
        files: the published files.
        bad: told of every row that cannot be used; it raises or counts.
        progress: show progress bars, where there is a terminal.

    Attributes:
        items: title -> item id.
        ambiguous: histories so far that could be split in several ways.
        examples: the first ten of them.
    """

    def __init__(self, files: Iterable[Path], bad: BadRows, progress: bool) -> None:
        self.bad, self.progress = bad, progress
        self.items: dict[str, str] = {}
        for path in files:
            for row in read_rows(path, bad, progress=progress):
                for title in row.candidates:
                    self._item(title)
        self.splitter = HistorySplitter(self.items)
        self.ambiguous = 0
        self.examples: list[str] = []

    def lines(self, path: Path, role: str) -> Iterator[tuple[str, str]]:
        """Yield (user, rest of the line) for each usable row of a file."""
        number, expected = 0, [""]
        for row in read_rows(path, self.bad, progress=self.progress):
            split = self.splitter.split(row.history)
            problem = next(filter(None, map(title_problem, split.titles)), None)
            if problem:
                self.bad.report(path, row.number, f"historyList: {problem}")
                continue
            if split.ambiguous:
                self.ambiguous += 1
                if len(self.examples) < 10:
                    self.examples.append(f"{path.name}, row {row.number}: {row.history!r}")
            history = [self._item(title) for title in split.titles]
            if len(history) < 2 or history not in (expected, expected[1:]):
                number += 1
            target = self.items[row.target]
            expected = [*history, target]
            candidates = " ".join(self.items[title] for title in row.candidates)
            yield f"{role}-{number:06d}", f"{' '.join(history)}\t{target}\t{candidates}"

    def _item(self, title: str) -> str:
        return self.items.setdefault(title, str(len(self.items) + 1))
