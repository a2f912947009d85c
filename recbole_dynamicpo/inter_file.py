"""Check an atomic ``.inter`` file before RecBole reads it.

RecBole leaves the reading to pandas, which fills short rows, takes the first cell of long ones for a row
name, lets a quote swallow the lines that follow, and names no line when a number is none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from .errors import DataError

_TYPES = ("token", "token_seq", "float", "float_seq")
_NUMBER = re.compile(rb"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_QUOTE = b'"'
_SPECIAL = re.compile(rb'["\r\0]')


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
