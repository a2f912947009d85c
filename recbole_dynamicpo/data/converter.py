"""From published files, which name titles, to RecBole's benchmark files, which name item ids."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..errors import DataError
from .atomic_files import ITEM_COLUMNS, SPLIT_COLUMNS, write_table
from .bad_rows import BadRows, title_problem
from .history_splitter import HistorySplitter
from .published import read_rows

_SPLIT_OF = {"train": "train", "val": "valid", "test": "test"}  # published name -> RecBole's
Row = tuple[str, str, str, str]  # cells of a benchmark file: user, history, target, candidates


class Converter:
    """Turns published rows into rows of benchmark files; items are numbered in order of appearance.

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

    def rows(self, path: Path, role: str) -> Iterator[Row]:
        """Yield the cells of each usable row of a file."""
        number, expected = 0, [""]
        for row in read_rows(path, self.bad, progress=self.progress):
            split = self.splitter.split(row.history)
            problem = next(filter(None, map(title_problem, split.titles)), None)
            if problem:
                self.bad.report(path, row.number, replace(problem, text=f"historyList: {problem.text}"))
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
            yield f"{role}-{number:06d}", " ".join(history), target, candidates

    def _item(self, title: str) -> str:
        return self.items.setdefault(title, str(len(self.items) + 1))


def write_published(
    files: dict[str, Path], folder: Path, name: str, seed: int, bad: BadRows, *, progress: bool = False
) -> dict[str, Any]:
    """Write ``<name>.item`` and the benchmark files ``<name>.<split>.inter`` and return what is in them.

    Args:
        files: the published files by their role: ``train``, ``val`` and perhaps ``test``, or ``all``, whose
            users are dealt 80/10/10.
        folder: where to write.
        name: of the data set.
        seed: of the dealing.
        bad: told of every row that cannot be used; it raises or counts.
        progress: show progress bars, where there is a terminal.

    Raises:
        DataError: naming file and row; or no usable row is left for a file.
    """
    converter = Converter(files.values(), bad, progress)
    halves = "val" in files and "test" not in files
    dealt_by = None
    counts: dict[str, int] = {}

    def write(split: str, rows: Iterable[Row]) -> None:
        path = folder / f"{name}.{split}.inter"
        counts[split] = write_table(path, SPLIT_COLUMNS, rows)
        if not counts[split]:
            raise DataError(f"no usable row is left for {path.name}; wanted at least one")

    for role, path in files.items():
        rows = converter.rows(path, role)
        if role == "all" or (role == "val" and halves):
            found = list(rows)
            shares = {"valid": 0.5, "test": 0.5} if halves else {"train": 0.8, "valid": 0.1, "test": 0.1}
            dealt, dealt_by = deal([user for user, *_ in found], shares, seed)
            for split in shares:
                write(split, (row for row, its_split in zip(found, dealt, strict=True) if its_split == split))
        else:
            write(_SPLIT_OF[role], rows)
    items = ((item, title) for title, item in converter.items.items())
    write_table(folder / f"{name}.item", ITEM_COLUMNS, items)
    return {
        "rows": counts,
        "items": len(converter.items),
        "items_only_in_histories": len(converter.items) - len(converter.splitter.known),
        "test_from_validation": halves,
        "dealt_by": dealt_by,
        "ambiguous_histories": converter.ambiguous,
        "ambiguous_examples": converter.examples,
    }


def deal(users: Sequence[str], shares: dict[str, float], seed: int) -> tuple[list[str], str]:
    """Deal rows to splits at random, all rows of a user to the same one.

    Otherwise the target of a test row would stand in the history of a training row of the same user.

    Args:
        users: the user of each row.
        shares: of the rows, by split; they sum to 1.
        seed: of the order of users.

    Returns:
        The split of each row, and "users"; or "rows" if there were too few users for whole ones.

    Raises:
        DataError: if there are too few rows to give each split one.
    """
    for by, groups in (("users", list(users)), ("rows", [str(row) for row in range(len(users))])):
        sizes = Counter(groups)
        order = list(sizes)
        random.Random(seed).shuffle(order)
        bounds = [len(users) * total for total in accumulate(shares.values())]
        dealt, before = {}, 0
        for group in order:
            middle = before + sizes[group] / 2
            dealt[group] = next(split for split, end in zip(shares, bounds, strict=True) if middle < end)
            before += sizes[group]
        if set(dealt.values()) == set(shares):
            return [dealt[group] for group in groups], by
    raise DataError(f"{len(users)} rows are too few to be dealt to {', '.join(shares)}; wanted at least 10")
