"""The files of a prepared data set, which ``prepare`` writes and the audit and RecBole read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .errors import DataError

MANIFEST_FILE, AUDIT_FILE = "manifest.json", "audit.json"
# Columns of the atomic files: items; interactions, whose order is that of time; and rows with a history and
# candidates of their own.
ITEM_COLUMNS = ("item_id:token", "title:token")
SEQUENCE_COLUMNS = ("user_id:token", "item_id:token", "timestamp:float")
SPLIT_COLUMNS = ("user_id:token", "item_id_list:token_seq", "item_id:token", "candidate_id_list:token_seq")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> int:
    """Write an atomic file and return its number of rows; no cell may hold a tab or a line break."""
    count = 0
    with path.open("w", encoding="utf-8", newline="") as handle:
        handle.write("\t".join(columns) + "\n")
        for cells in rows:
            handle.write("\t".join(cells) + "\n")
            count += 1
    return count


def read_table(path: Path, columns: Sequence[str]) -> Iterator[list[str]]:
    """Yield the cells of each row of an atomic file.

    Raises:
        DataError: it cannot be read, or has other columns.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as handle:
            got = handle.readline().removesuffix("\n").split("\t")
            if got != list(columns):
                raise DataError(f"{path}: wanted the columns {list(columns)}, got {got}")
            for line in handle:
                yield line.removesuffix("\n").split("\t")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
