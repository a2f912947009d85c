"""Item ids and their titles, read straight from the atomic .item file.

RecBole's own reader treats quotes and words like "NA" specially and would bring every item of the
file into the experiment, so titles are read here, as ``atomic_files`` reads: one line an item, columns
split at the field separator, nothing else interpreted.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

from ..errors import DataError
from ..storage import load_json
from .atomic_files import UTF8, read_columns, read_rows

logger = logging.getLogger(__name__)

# Tried in this order where `item_title_field` is not set.
TITLE_FIELDS = ("movie_title", "title", "name")


@dataclass(frozen=True)
class Catalogue:
    """Items that can be recommended.

    Attributes:
        ids: item ids as the data set writes them.
        titles: their titles, in the same order.
        popularity: training interactions of each, in the same order.
    """

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    popularity: tuple[int, ...]
    _by_id: dict[str, int] = field(init=False, repr=False, compare=False)
    _by_title: dict[str, list[int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_title: dict[str, list[int]] = {}
        for index, title in enumerate(self.titles):
            by_title.setdefault(title, []).append(index)
        object.__setattr__(self, "_by_id", {item: index for index, item in enumerate(self.ids)})
        object.__setattr__(self, "_by_title", by_title)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def distinct_titles(self) -> tuple[str, ...]:
        """Return the titles without repeats, by first appearance."""
        return tuple(self._by_title)

    def title_counts(self) -> list[int]:
        """Return the training interactions of each distinct title: those of its items, added up."""
        return [sum(self.popularity[index] for index in items) for items in self._by_title.values()]

    def title(self, item: str) -> str | None:
        """Return the title of an item id, or None for an unknown id."""
        index = self._by_id.get(item)
        return None if index is None else self.titles[index]

    def named(self, entry: str | int) -> str | None:
        """Return the title that is meant by a title or an item id.

        Ids are texts, as the data set writes them: ``00001`` is another id than ``1``. A whole number is the
        id that is written so.

        Args:
            entry: a text is the title if there is an item of that title, else the id if there is one, else a
                title that the catalogue lacks.

        Returns:
            The title; None for a whole number that is no id.
        """
        if isinstance(entry, str) and entry in self._by_title:
            return entry
        return self.title(str(entry)) or (entry if isinstance(entry, str) else None)

    def items(self, title: str) -> tuple[str, ...]:
        """Return the ids of all items that bear ``title``."""
        return tuple(self.ids[index] for index in self._by_title.get(title, ()))

    def popular(self, count: int, without: Sequence[str] = ()) -> list[str]:
        """Return up to ``count`` distinct titles by falling popularity, none of ``without``."""
        skip = set(without)
        wanted = (title for title in self._by_popularity if title not in skip)
        return list(islice(wanted, min(count, len(self))))

    @cached_property
    def _by_popularity(self) -> tuple[str, ...]:
        """Distinct titles by falling popularity; sorted once, since a server asks at every request."""
        order = sorted(range(len(self)), key=lambda index: (-self.popularity[index], index))
        return tuple(dict.fromkeys(self.titles[index] for index in order))

    def save(self, path: Path) -> None:
        """Write the catalogue as one compact JSON file."""
        columns = {"ids": self.ids, "titles": self.titles, "popularity": self.popularity}
        path.write_text(json.dumps(columns, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Catalogue:
        """Read what ``save`` wrote.

        Raises:
            DataError: the file is missing or not a catalogue.
        """
        try:
            columns = load_json(path)
            kinds = {"ids": str, "titles": str, "popularity": int}
            for name, kind in kinds.items():
                cells = columns[name]
                if not isinstance(cells, list) or not all(type(cell) is kind for cell in cells):
                    raise ValueError(f"wanted {name} as a list of {kind.__name__}")
            catalogue = cls(*(tuple(columns[name]) for name in kinds))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not a readable catalogue ({error!r})") from error
        if not len(catalogue.ids) == len(catalogue.titles) == len(catalogue.popularity):
            raise DataError(f"{path}: columns of different length")
        return catalogue


def read_titles(
    path: Path, *, id_field: str, title_field: str | None, separator: str = "\t", encoding: str = UTF8
) -> dict[str, str]:
    """Return item id -> title.

    Args:
        path: the .item file; its first line names the columns as ``name:type``.
        id_field: name of the id column.
        title_field: name of the title column; None takes the first of ``TITLE_FIELDS`` present.
        separator: between columns.
        encoding: of the text.

    Raises:
        DataError: no such file, no such column, a row that cannot be read, two titles of one item.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; wanted an .item file with a title column")
    columns = read_columns(path, separator=separator, encoding=encoding)
    id_column, title_column = _places(path, list(columns), id_field, title_field)
    titles: dict[str, str] = {}
    for number, cells in islice(read_rows(path, separator=separator, encoding=encoding), 1, None):
        if titles.setdefault(cells[id_column], cells[title_column]) != cells[title_column]:
            raise DataError(f"{path}, line {number}: item '{cells[id_column]}' has two titles")
    return titles


def _places(path: Path, columns: list[str], id_field: str, title_field: str | None) -> tuple[int, int]:
    wanted = (title_field,) if title_field else TITLE_FIELDS
    found = [name for name in wanted if name in columns]
    if id_field not in columns or not found:
        raise DataError(
            f"{path}: has the columns {', '.join(columns)}; wanted '{id_field}' and a title column "
            f"({' or '.join(wanted)}; setting item_title_field)"
        )
    return columns.index(id_field), columns.index(found[0])


def build_catalogue(
    titles: Mapping[str, str], tokens: Sequence[str], popularity: Sequence[int], source: Path
) -> Catalogue:
    """Return the catalogue of the items ``tokens``.

    An item without a title (no line, or an empty cell) is called by its id, with a warning.

    Raises:
        DataError: not one item has a title.
    """
    missing = [token for token in tokens if not titles.get(token, "").strip()]
    if len(missing) == len(tokens):
        raise DataError(f"{source}: none of the {len(tokens)} items of the data set has a title there")
    if missing:
        logger.warning(
            "%s: %d of %d items have no title and are called by their id, first item '%s'",
            source, len(missing), len(tokens), missing[0],
        )  # fmt: skip
    without = set(missing)
    named = tuple(token if token in without else titles[token] for token in tokens)
    repeated = sum(count - 1 for count in Counter(named).values())
    if repeated:
        logger.info("%s: %d titles stand for more than one item", source, repeated)
    return Catalogue(tuple(tokens), named, tuple(popularity))


def contained_titles(titles: Iterable[str]) -> dict[str, set[str]]:
    """Return, for each title that has other titles inside it, the set of those.

    A title is looked for only where its first four letters stand, as a slice of a length that titles with
    these letters have: so time grows with the length of all titles together and not with their pairs.
    """
    unique = set(titles)
    lengths: dict[str, set[int]] = {}
    for title in unique:
        lengths.setdefault(title[:4], set()).add(len(title))
    found: dict[str, set[str]] = {}
    for text in unique:
        for start in range(len(text)):
            for width in range(1, min(4, len(text) - start) + 1):
                for length in lengths.get(text[start : start + width], ()):
                    piece = text[start : start + length]
                    if piece in unique and piece != text:
                        found.setdefault(text, set()).add(piece)
    return found
