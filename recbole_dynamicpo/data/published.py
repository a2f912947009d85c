"""Reading the published data: a JSON list of {historyList, itemList, trueSelection}, one object per prompt.

``historyList`` is one string in which ``::`` joins the titles, ``itemList`` the candidates in prompt order,
``trueSelection`` the candidate that was chosen. Files are streams: memory holds one row at a time.
"""

from __future__ import annotations

import codecs
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
from .bad_rows import BadRows, title_problem

_CHUNK = 1 << 20  # bytes read at a time
_LONGEST_ROW = 1 << 24  # characters; bounds what a file without end can make us hold
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
        progress: show a bar that counts the bytes read, where there is a terminal.

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


def _row_problem(value: Any) -> str | None:
    """Say why an element of the list is no usable row, or return None."""
    if not isinstance(value, dict):
        return f"wanted an object with historyList, itemList and trueSelection, got {short(value)}"
    for key in ("historyList", "itemList", "trueSelection"):
        if key not in value:
            return f"{key} is missing; the row has {short(sorted(value))}"
    history, candidates, target = value["historyList"], value["itemList"], value["trueSelection"]
    if not isinstance(history, str):
        return f"historyList must be one string of titles joined with '::', got {short(history)}"
    if not isinstance(candidates, list) or not all(isinstance(title, str) for title in candidates):
        return f"itemList must be a list of titles, got {short(candidates)}"
    if len(candidates) < 2:
        return f"itemList must have at least 2 candidates, got {len(candidates)}"
    if len(set(candidates)) < len(candidates):
        twice = next(title for title in candidates if candidates.count(title) > 1)
        return f"itemList names {twice!r} more than once; candidates must be distinct"
    if not isinstance(target, str) or target not in candidates:
        return f"trueSelection must be one of itemList, got {short(target)}"
    titles = (*candidates, history) if history else candidates
    return next((problem for problem in map(title_problem, titles) if problem), None)


def _elements(path: Path, progress: bool) -> Iterator[Any]:
    """Yield the elements of the JSON list in ``path``, decoding one at a time."""
    buffer = _Buffer(_texts(path, progress), path)
    if buffer.peek() == "\ufeff":  # a byte order mark
        buffer.place += 1
    first = buffer.peek()
    if first != "[":
        got = {"": "an empty file", "{": "'{', as in JSON lines"}.get(first, ascii(first))
        raise DataError(f"{path}: wanted a JSON list of rows, which starts with '[', got {got}")
    buffer.place += 1
    if buffer.peek() == "]":
        buffer.place += 1
    else:
        while True:
            yield buffer.element()
            mark = buffer.peek()
            buffer.place += 1
            if mark == "]":
                break
            if mark != ",":
                raise DataError(f"{path}: after row {buffer.rows} wanted ',' or ']', got {mark!r}")
    if buffer.peek():
        raise DataError(f"{path}: there is more text after the list's end (row {buffer.rows})")


class _Buffer:
    """The part of a JSON text between what has been decoded and what has been read."""

    def __init__(self, texts: Iterator[str], path: Path) -> None:
        self.texts, self.path = texts, path
        self.text, self.place, self.rows, self.ended = "", 0, 0, False
        self.decoder = json.JSONDecoder(strict=False)  # lets a raw tab through, to be reported with its row

    def read(self) -> None:
        """Drop what has been decoded and at least double the rest, so that long rows cost linear time."""
        pieces = [self.text[self.place :]]
        wanted = max(len(pieces[0]), 1)
        while wanted > 0 and not self.ended:
            try:
                piece = next(self.texts, None)
            except (OSError, EOFError, zlib.error) as error:
                raise DataError(f"{self.path}: cannot be read after row {self.rows}: {error}") from error
            self.ended = piece is None
            pieces.append(piece or "")
            wanted -= len(pieces[-1])
        self.text, self.place = "".join(pieces), 0

    def peek(self) -> str:
        """Skip white space and return the next character, or an empty string at the end."""
        blanks = 0
        while True:
            end = _BLANKS.match(self.text, self.place).end()  # type: ignore[union-attr]  # also matches nothing
            blanks, self.place = blanks + end - self.place, end
            if blanks > _LONGEST_ROW:
                raise DataError(f"{self.path}: after row {self.rows} more than {_LONGEST_ROW} blanks follow")
            if self.place < len(self.text) or self.ended:
                return self.text[self.place : self.place + 1]
            self.read()

    def element(self) -> Any:
        """Decode one element, reading on while it is not complete."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.place)
            except (ValueError, RecursionError) as error:
                if self.ended or len(self.text) - self.place > _LONGEST_ROW:
                    raise DataError(
                        f"{self.path}, row {self.rows + 1}: not valid JSON, or cut off ({error})"
                    ) from error
            else:
                if end < len(self.text) or self.ended:  # a number could go on in what is not read yet
                    self.place, self.rows = end, self.rows + 1
                    return value
            self.read()


def _texts(path: Path, progress: bool) -> Iterator[str]:
    """Yield a file's text in pieces, unpacking gzip by its signature.

    Bytes that are no UTF-8 become surrogates, so that a damaged byte is found in the row that holds it.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw) if packed else raw)
        size = path.stat().st_size
        hidden = None if progress else True  # None: only where there is a terminal
        with tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=hidden) as bar:
            while chunk := stream.read(_CHUNK):
                yield decoder.decode(chunk)
                bar.update(raw.tell() - bar.n)
            yield decoder.decode(b"", final=True)
