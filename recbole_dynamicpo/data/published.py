"""Reading the published data: a JSON list of {historyList, itemList, trueSelection}, one object per prompt.

``historyList`` is one string in which ``::`` joins the titles, ``itemList`` the candidates in prompt order,
``trueSelection`` the candidate that was chosen. The text of a file is held whole (the largest published one
has 23 MB), its rows are decoded one at a time, so that an error names the row.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from tqdm import tqdm

from ..errors import DataError, short
from .bad_rows import BadRows, Problem, title_problem

_CHUNK = 1 << 20  # bytes read at a time
_LARGEST = 1 << 29  # bytes of a file, unpacked; bounds what an archive without end can make us hold
_BLANKS = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class PublishedRow:
    """One checked row; ``number`` counts the list's elements from 1, ``history`` is not split yet."""

    number: int
    history: str
    candidates: tuple[str, ...]
    target: str


def read_rows(path: Path, bad: BadRows, *, progress: bool = False) -> Iterator[PublishedRow]:
    """Yield the usable rows of a published file (.json, or the same gzipped) in file order.

    Args:
        path: the file.
        bad: told of every row that cannot be used; it raises or counts.
        progress: show a bar that counts what was decoded, where there is a terminal.

    Raises:
        DataError: naming file and row, if the file is no JSON list, is cut off, or holds no usable row.
    """
    usable = 0
    for number, value in enumerate(_elements(path, progress), start=1):
        problem = _row_problem(value)
        if problem:
            bad.report(path, number, problem)
            continue
        usable += 1
        yield PublishedRow(number, value["historyList"], tuple(value["itemList"]), value["trueSelection"])
    if not usable:
        raise DataError(f"{path}: no usable row, {bad.count(path)} dropped; wanted at least one")


def _row_problem(value: Any) -> Problem | None:
    """Say why an element of the list is no usable row, or return None."""
    if not isinstance(value, dict):
        wanted = "wanted an object with historyList, itemList and trueSelection"
        return Problem("no object", f"{wanted}, got {short(value)}")
    for key in ("historyList", "itemList", "trueSelection"):
        if key not in value:
            return Problem(f"{key} is missing", f"{key} is missing; the row has {short(sorted(value))}")
    history, candidates, target = value["historyList"], value["itemList"], value["trueSelection"]
    if not isinstance(history, str):
        wanted = "historyList must be one string of titles joined with '::'"
        return Problem("historyList is no string", f"{wanted}, got {short(history)}")
    if not isinstance(candidates, list) or not all(isinstance(title, str) for title in candidates):
        wanted = "itemList must be a list of titles"
        return Problem("itemList is no list of titles", f"{wanted}, got {short(candidates)}")
    if len(candidates) < 2:
        wanted = "itemList must have at least 2 candidates"
        return Problem("itemList is too short", f"{wanted}, got {len(candidates)}")
    if len(set(candidates)) < len(candidates):
        twice = next(title for title in candidates if candidates.count(title) > 1)
        text = f"itemList names {twice!r} more than once; candidates must be distinct"
        return Problem("itemList names a title more than once", text)
    if not isinstance(target, str) or target not in candidates:
        text = f"trueSelection must be one of itemList, got {short(target)}"
        return Problem("trueSelection is not in itemList", text)
    titles = (*candidates, history) if history else candidates
    return next((problem for problem in map(title_problem, titles) if problem), None)


def _elements(path: Path, progress: bool) -> Iterator[Any]:
    """Yield the elements of the JSON list in ``path``; a damaged file gives those before the damage first."""
    text, damage = _read(path)
    rows, problem = 0, None
    hidden = None if progress else True  # None: only where there is a terminal
    with tqdm(total=len(text), desc=path.name, unit=" characters", unit_scale=True, disable=hidden) as bar:
        try:
            for value, end in _decode(text, path):
                yield value
                rows += 1
                bar.update(end - bar.n)
        except DataError as error:
            problem = error
    if damage:
        raise DataError(f"{path}: cannot be read after row {rows}: {damage}") from damage
    if problem:
        raise problem


def _read(path: Path) -> tuple[str, Exception | None]:
    """Return a file's text, unpacking gzip by its signature, and what kept the rest of it from being read.

    Bytes that are no UTF-8 become surrogates, so that a damaged byte is found in the row that holds it.
    """
    pieces: list[bytes] = []
    size, damage = 0, None
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw) if packed else raw)
            while chunk := stream.read(_CHUNK):
                size += len(chunk)
                if size > _LARGEST:
                    raise DataError(f"{path}: wanted at most {_LARGEST} bytes (unpacked), got more")
                pieces.append(chunk)
    except (OSError, EOFError, zlib.error) as error:
        damage = error
    return b"".join(pieces).decode("utf-8-sig", "surrogateescape"), damage


def _decode(text: str, path: Path) -> Iterator[tuple[Any, int]]:
    """Yield the elements of a JSON list, each with the place where it ends."""
    decoder = json.JSONDecoder(strict=False)  # lets a raw tab through, to be reported with its row
    place = _skip_blanks(text, 0)
    mark = text[place : place + 1]
    if mark != "[":
        got = {"": "an empty file", "{": "'{', as in JSON lines"}.get(mark, ascii(mark))
        raise DataError(f"{path}: wanted a JSON list of rows, which starts with '[', got {got}")
    row, place = 0, _skip_blanks(text, place + 1)
    more = text[place : place + 1] != "]"
    while more:
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, row {row + 1}: not valid JSON, or cut off ({error})") from error
        row += 1
        yield value, place
        place = _skip_blanks(text, place)
        mark = text[place : place + 1]
        if mark not in ("]", ","):
            raise DataError(f"{path}: after row {row} wanted ',' or ']', got {mark!r}")
        more = mark == ","
        place = _skip_blanks(text, place + more)
    if _skip_blanks(text, place + 1) < len(text):
        raise DataError(f"{path}: there is more text after the list's end (row {row})")


def _skip_blanks(text: str, place: int) -> int:
    """Return the first place from ``place`` on that holds no JSON white space."""
    return _BLANKS.match(text, place).end()  # type: ignore[union-attr]  # also matches nothing
