"""Plain interaction sequences (user, item, time and perhaps title and rating) to RecBole's atomic files.

The rows may come in any order. They are written sorted by user and exact time, because RecBole holds time
stamps in 32 bits, where neighbouring ones become equal: its stable sort then keeps the order of the file.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import DataError, nearest
from .atomic_files import ITEM_COLUMNS, RATING_COLUMN, SEQUENCE_COLUMNS, write_table
from .bad_rows import HALVES, BadRows, Problem, readable, title_problem
from .times import NUMBER, TimeColumn, decimal_text

SUFFIXES = (".csv", ".tsv", ".parquet")
_NAMES = {
    "user": ("user", "user_id"),
    "item": ("item", "item_id"),
    "time": ("time", "timestamp"),
    "title": ("title",),
    "rating": ("rating",),
}
_AT_WILL = ("title", "rating")
_SHOWN = 5  # items with several titles that are named
# What pandas takes for a missing value when RecBole loads an id column, and RecBole's own padding token.
_MISSING = frozenset([
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A",
    "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "[PAD]",
])  # fmt: skip


@dataclass
class Sequences:
    """What a file held.

    Attributes:
        interactions: (user, item, time) as texts, and behind them the rating, where there are ratings.
        titles: by item.
        rated: whether there are ratings.
        left_out: columns of the file that nothing was taken from.
    """

    interactions: list[tuple[str, ...]] = field(default_factory=list)
    titles: dict[str, str] = field(default_factory=dict)
    rated: bool = False
    left_out: list[str] = field(default_factory=list)


def read_sequences(path: Path, bad: BadRows, *, progress: bool = False) -> Sequences:
    """Read and check a CSV, TSV (no quoting) or Parquet file: user, item, time, perhaps title and rating.

    Args:
        path: the file; its suffix says which of the three it is. Text files are UTF-8 with a header.
        bad: told of every row that cannot be used; it raises or counts. The header is not counted as a row.
        progress: show a bar that counts rows, where there is a terminal.

    Returns:
        Interactions sorted by user (in order of appearance) and time. Ids and numbers are the text of the
        file; dates and Parquet time stamps become seconds since 1970 with all their digits. Titles are
        without the white space around them, and an item has the first of those that differ in white space
        alone. Without a title column an item is called by its id.

    Raises:
        DataError: naming file and row.
    """
    found, rows = Sequences(), _rows(path)
    header = next(rows, None)
    if header is None:
        raise DataError(f"{path}: the file is empty; wanted a header with user, item and time")
    if any(map(HALVES.search, header)):
        raise DataError(f"{path}: the file is not UTF-8, as its header shows: save it as UTF-8")
    places = _columns(path, header)
    found.rated = "rating" in places
    found.left_out = [name for index, name in enumerate(header) if index not in places.values()]
    bar = tqdm(rows, desc=path.name, unit=" rows", disable=None if progress else True)
    _take_rows(found, _Table(places, len(header)), enumerate(bar, start=1), path, bad)
    if not found.interactions:
        raise DataError(f"{path}: no usable row, {bad.count(path)} dropped; wanted at least one")
    place = {user: index for index, user in enumerate(dict.fromkeys(row[0] for row in found.interactions))}
    found.interactions.sort(key=lambda row: (place[row[0]], Decimal(row[2])))
    return found


def write_sequences(found: Sequences, folder: Path, name: str) -> None:
    """Write ``<name>.inter`` (user_id, item_id, timestamp[, rating]) and ``<name>.item`` (item_id, title)."""
    columns = (*SEQUENCE_COLUMNS, RATING_COLUMN) if found.rated else SEQUENCE_COLUMNS
    write_table(folder / f"{name}.inter", columns, found.interactions)
    write_table(folder / f"{name}.item", ITEM_COLUMNS, found.titles.items())


@dataclass
class _Table:
    """Reads rows that have a header's cells.

    Attributes:
        places: of the columns that are taken, by name.
        width: cells of a row.
        times: of the time column so far.
        taken: places of user, item, time and, where there is one, rating.
    """

    places: dict[str, int]
    width: int
    times: TimeColumn = field(default_factory=TimeColumn)
    taken: list[int] = field(init=False)

    def __post_init__(self) -> None:
        wanted = ("user", "item", "time", "rating")
        self.taken = [self.places[name] for name in wanted if name in self.places]

    def read(self, row: list[str]) -> tuple[tuple[str, ...], str] | Problem:
        """Return a row's interaction and title, or why it cannot be used."""
        if len(row) != self.width:
            text = f"wanted {self.width} cells as in the header, got {len(row)}"
            return Problem("another number of cells than the header", text)
        user, item, time, *rating = (row[place] for place in self.taken)
        title = row[self.places["title"]].strip() if "title" in self.places else item
        if broken := next((cell for cell in (user, item, time, *rating, title) if HALVES.search(cell)), None):
            text = f"the file is not UTF-8: got {readable(broken)!r}"
            return Problem("not UTF-8", text, advice="save it as UTF-8")
        if problem := _id_problem("user", user) or _id_problem("item", item):
            return problem
        if rating and not (NUMBER.fullmatch(rating[0]) and math.isfinite(float(rating[0]))):
            text = f"rating must be a finite number, got {rating[0]!r}"
            return Problem("a rating is no finite number", text)
        try:
            seconds = self.times.seconds(time)
        except ValueError as error:
            return Problem("a time cannot be read", str(error))
        return title_problem(title) or ((user, item, seconds, *rating), title)


def _take_rows(
    found: Sequences, table: _Table, rows: Iterable[tuple[int, list[str]]], path: Path, bad: BadRows
) -> None:
    """Put what numbered rows hold into ``found``, in their order.

    Raises:
        DataError: a row that cannot be used; or, when all are read, items that have several titles.
    """
    several: dict[str, str] = {}  # item -> where it has another title
    for number, row in rows:
        read = table.read(row)
        if isinstance(read, Problem):
            bad.report(path, number, read)
            continue
        interaction, title = read
        item = interaction[1]
        if other := _another_title(item, title, found.titles):
            several.setdefault(item, f"row {number}: {other}")
            if bad.skip:
                bad.report(path, number, Problem("another title than the item had before", other))
            continue
        found.interactions.append(interaction)
        found.titles.setdefault(item, title)
    if several and not bad.skip:
        _refuse_titles(path, list(several.values()))


def _another_title(item: str, title: str, titles: dict[str, str]) -> str | None:
    """Say that an item had another title before, in more than its white space; or return None."""
    known = titles.get(item, title)
    if known == title or known.split() == title.split():
        return None
    return f"item {item!r} has the title {title!r} here and {known!r} before"


def _refuse_titles(path: Path, several: list[str]) -> None:
    shown = [*several[:_SHOWN], *(["..."] if len(several) > _SHOWN else [])]
    raise DataError(
        f"{path}: {len(several)} item{'s have' if len(several) > 1 else ' has'} more than one title; wanted "
        "one an item (--skip-bad-rows keeps the first and drops and counts rows with another):"
        + "".join(f"\n  {line}" for line in shown)
    )


def _id_problem(name: str, value: str) -> Problem | None:
    """Say why RecBole would not read an id back as it is, or return None."""
    if not value or value in _MISSING:
        what = "is what RecBole reads as missing"
        return Problem(f"{name} id {what}", f"{name} id {value!r} {what}; wanted another id")
    if value != value.strip() or any(mark in value for mark in '\t\n\r"'):
        what = "has a quote, tab, line break or space around it"
        return Problem(f"{name} id {what}", f"{name} id {value!r} {what}, which atomic files cannot hold")
    return None


def _columns(path: Path, header: list[str]) -> dict[str, int]:
    """Return the places of user, item, time and, where they are, title and rating in the header."""
    plain = [name.strip().lower().split(":")[0] for name in header]  # RecBole's headers end in :token
    places = {}
    for wanted, names in _NAMES.items():
        found = [index for index, name in enumerate(plain) if name in names]
        if len(found) > 1:
            raise DataError(f"{path}: wanted one column for {wanted}, got {[header[i] for i in found]}")
        if found:
            places[wanted] = found[0]
        elif wanted not in _AT_WILL:
            raise DataError(f"{path}: wanted a column named {wanted}, got {header}{nearest(wanted, plain)}")
    return places


def _rows(path: Path) -> Iterator[list[str]]:
    """Yield the header and then the rows of a file as text."""
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: wanted a file that ends in {', '.join(SUFFIXES)}")
    try:
        yield from _parquet_rows(path) if path.suffix == ".parquet" else _text_rows(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _text_rows(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
        if path.suffix == ".tsv":
            reader = csv.reader(handle, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
        else:
            reader = csv.reader(handle, strict=True)
        try:
            yield from (row for row in reader if row)
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: cannot be read as CSV: {error}") from error


def _parquet_rows(path: Path) -> Iterator[list[str]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield list(file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=8192):
                columns = [_texts(column) for column in batch.columns]
                yield from map(list, zip(*columns, strict=True))
    except (pyarrow.ArrowException, ValueError) as error:  # ValueError: a text is not UTF-8
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error


def _texts(column: Any) -> list[str]:
    """Return a Parquet column as text: missing values empty, time stamps in seconds with all their digits."""
    import pyarrow

    if pyarrow.types.is_timestamp(column.type):
        digits = {"s": 0, "ms": 3, "us": 6, "ns": 9}[column.type.unit]
        values = column.cast(pyarrow.int64()).to_pylist()
        return ["" if value is None else decimal_text(Decimal(value).scaleb(-digits)) for value in values]
    if pyarrow.types.is_binary(column.type) or pyarrow.types.is_large_binary(column.type):
        column = column.cast(pyarrow.string())  # older writers leave text unmarked
    return ["" if value is None else str(value) for value in column.to_pylist()]
