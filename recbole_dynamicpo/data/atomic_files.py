"""Atomic files: how every one is read, and the check that RecBole will read an .inter file rightly."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..errors import DataError

_TYPES = ("token", "token_seq", "float", "float_seq")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_BROKEN = re.compile(r"[\r\udc80-\udcff]")  # the last are bytes that are no text
# pandas, with which RecBole reads, takes these for nothing at all, and RecBole leaves such rows out.
_NOTHING = {
    *("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"),
    *("N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
}
UTF8 = "utf-8-sig"  # with a byte order mark or without

MANIFEST_FILE, AUDIT_FILE = "manifest.json", "audit.json"
# Columns of the atomic files: items; interactions, whose order is that of time; and rows with a history and
# candidates of their own.
ITEM_COLUMNS = ("item_id:token", "title:token")
SEQUENCE_COLUMNS = ("user_id:token", "item_id:token", "timestamp:float")
RATING_COLUMN = "rating:float"  # of interactions, where their source has ratings
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


def read_rows(path: Path, *, separator: str = "\t", encoding: str = UTF8) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells of the header and of every row, one line in memory at a time.

    Lines end at line feeds, perhaps behind a carriage return; empty ones are passed over. Cells are what
    stands between separators, and nothing in them is interpreted.

    Args:
        path: the file.
        separator: between cells.
        encoding: of the text.

    Raises:
        DataError: it cannot be read; a line that is no text, holds a stray carriage return, or has
            more or fewer cells than the header.
    """
    wanted = 0
    try:
        with path.open(encoding=encoding, errors="surrogateescape", newline="\n") as handle:
            for number, line in enumerate(handle, start=1):
                row = line.removesuffix("\n").removesuffix("\r")
                if not row and number > 1:
                    continue
                if _BROKEN.search(row):
                    _refuse_broken(f"{path}, line {number}", row, encoding)
                cells = row.split(separator)
                wanted = wanted or len(cells)
                if len(cells) != wanted:
                    raise DataError(
                        f"{path}, line {number}: wanted {wanted} cells as in the header, got {len(cells)}; a "
                        "cell cannot hold the field separator"
                    )
                yield number, cells
    except UnicodeError as error:
        raise DataError(f"{path}: not {encoding} ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _refuse_broken(where: str, row: str, encoding: str) -> None:
    plain = encoding.removesuffix("-sig")
    try:
        row.encode(plain, "surrogateescape").decode(plain)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not {plain} ({error.reason} at byte {error.start})") from error
    raise DataError(f"{where}: a line break inside a row")


def read_table(path: Path, columns: Sequence[str], *, more: Sequence[str] = ()) -> Iterator[list[str]]:
    """Yield the cells of each row of an atomic file that ``write_table`` wrote.

    Args:
        path: the file.
        columns: that it has.
        more: that it may have behind them.

    Raises:
        DataError: it cannot be read, or has other columns.
    """
    rows = read_rows(path)
    _, got = next(rows, (1, []))
    if got not in (list(columns), [*columns, *more]):
        raise DataError(f"{path}: wanted the columns {list(columns)}, got {got}")
    for _, cells in rows:
        yield cells


def read_columns(path: Path, *, separator: str = "\t", encoding: str = UTF8) -> dict[str, str]:
    """Return the columns of an atomic file and their types, in order.

    Raises:
        DataError: it cannot be read, or its first line is no header.
    """
    _, cells = next(read_rows(path, separator=separator, encoding=encoding), (1, [""]))
    return _columns(path, cells)


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
    rows = read_rows(path, separator=separator, encoding=encoding)
    columns = _columns(path, next(rows, (1, [""]))[1])
    names = list(columns)
    for name in [*ids, *([time] if time else [])]:
        wanted = "float" if name == time else "token"
        if columns.get(name, wanted) != wanted:
            raise DataError(f"{path}, line 1: wanted {name}:{wanted}, got {name}:{columns[name]}")
    bare = [place for place, name in enumerate(names) if name in ids]
    filled = [*bare, *(place for place, name in enumerate(names) if columns[name] == "token_seq")]
    numbers = [
        (place, name)
        for place, name in enumerate(names)
        if columns[name] == "float" and (loaded is None or name in loaded)
    ]
    number = 1
    for number, cells in rows:
        if any("\0" in cell for cell in cells):
            raise DataError(f"{path}, line {number}: a NUL byte inside a row")
        for place, cell in enumerate(cells):
            if cell.startswith('"') and (place in bare or cell.count('"') % 2):
                raise DataError(
                    f"{path}, line {number}: the cell {cell[:40]!r} begins with a quote, which would be "
                    "read as one"
                )
        for place in filled:
            if cells[place] in _NOTHING:
                raise DataError(
                    f"{path}, line {number}: RecBole would read {cells[place]!r} as no {names[place]} at "
                    "all and leave it out; wanted another id"
                )
        for place, name in numbers:
            if not (cells[place].isascii() and cells[place].isdigit() and len(cells[place]) < 30):
                _check_number(f"{path}, line {number}", name, cells[place], needed=name == time)
    if number == 1:
        raise DataError(f"{path}: has a header and no rows")


def _columns(path: Path, cells: Sequence[str]) -> dict[str, str]:
    """Return the columns of a header and their types."""
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


def _check_number(where: str, name: str, cell: str, *, needed: bool) -> None:
    if not cell and not needed:
        return  # RecBole fills it
    if not _NUMBER.fullmatch(cell) or not math.isfinite(float(cell)):
        raise DataError(f"{where}: wanted a finite number as {name}, got {cell[:40]!r}")
