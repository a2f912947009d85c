"""Atomic files: those of a prepared data set, and the check that RecBole will read an .inter file rightly."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..errors import DataError

_TYPES = ("token", "token_seq", "float", "float_seq")
_NUMBER = re.compile(rb"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_QUOTE = b'"'
_SPECIAL = re.compile(rb'["\r\0]')

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


def check_inter_file(
    path: Path,
    *,
    separator: str,
    encoding: str,
    ids: Sequence[str],
    time: str | None,
    loaded: Sequence[str] | None,
) -> None:
    """Check the header and every row, one line in memory at a time.

    Args:
        path: the file.
        separator: between cells.
        encoding: of the text.
        ids: columns that must be of type token and without quotes.
        time: column that must hold a number in every row.
        loaded: columns that RecBole is to load; None: all.

    Raises:
        DataError: naming the line.
    """
    mark = separator.encode(encoding)
    with path.open("rb") as handle:
        columns = _columns(path, handle.readline().rstrip(b"\r\n"), separator, encoding)
        names = list(columns)
        for name in [*ids, *([time] if time else [])]:
            wanted = "float" if name == time else "token"
            if columns.get(name, wanted) != wanted:
                raise DataError(f"{path}, line 1: wanted {name}:{wanted}, got {name}:{columns[name]}")
        bare = [place for place, name in enumerate(names) if name in ids]
        numbers = [
            (place, name)
            for place, name in enumerate(names)
            if columns[name] == "float" and (loaded is None or name in loaded)
        ]
        for number, line in enumerate(handle, start=2):
            row = line.removesuffix(b"\n").removesuffix(b"\r")
            if not row:
                continue
            cells = row.split(mark)
            if len(cells) != len(names):
                raise DataError(
                    f"{path}, line {number}: wanted {len(names)} cells as in the header, got {len(cells)}"
                )
            if not row.isascii() or _SPECIAL.search(row):
                _check_text(f"{path}, line {number}", row, cells, bare, encoding)
            for place, name in numbers:
                if not (cells[place].isdigit() and len(cells[place]) < 30):
                    _check_number(f"{path}, line {number}", name, cells[place], needed=name == time)


def _columns(path: Path, head: bytes, separator: str, encoding: str) -> dict[str, str]:
    """Return the columns of the header and their types."""
    try:
        cells = head.decode(encoding).split(separator)
    except (UnicodeDecodeError, LookupError) as error:
        raise DataError(f"{path}, line 1: cannot be read as {encoding}: {error}") from error
    columns: dict[str, str] = {}
    for cell in cells:
        name, colon, kind = cell.partition(":")
        if not name or not colon or kind not in _TYPES:
            raise DataError(
                f"{path}, line 1: got the column {cell!r}, wanted a name, ':' and one of {_TYPES}"
            )
        if name in columns:
            raise DataError(f"{path}, line 1: the column {name!r} occurs twice")
        columns[name] = kind
    return columns


def _check_text(where: str, row: bytes, cells: list[bytes], bare: list[int], encoding: str) -> None:
    """Refuse what pandas would read as something else than these cells."""
    if b"\r" in row or b"\0" in row:
        raise DataError(f"{where}: a line break or NUL byte inside a row")
    if _QUOTE in row:
        for place, cell in enumerate(cells):
            if cell.startswith(_QUOTE) and (place in bare or cell.count(_QUOTE) % 2):
                raise DataError(
                    f"{where}: the cell {cell[:40]!r} begins with a quote, which would be read as one"
                )
    if not row.isascii():
        try:
            row.decode(encoding)
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not {encoding} ({error.reason} at byte {error.start})") from error


def _check_number(where: str, name: str, cell: bytes, *, needed: bool) -> None:
    if not cell and not needed:
        return  # RecBole fills it
    if not _NUMBER.fullmatch(cell) or not math.isfinite(float(cell)):
        raise DataError(f"{where}: wanted a finite number as {name}, got {cell[:40]!r}")
