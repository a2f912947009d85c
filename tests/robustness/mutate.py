"""Damage to a valid file, drawn by a seed: what disks, editors and unfriendly people do to bytes."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable
from typing import Any

_NOT_UTF8 = (b"\xff", b"\xc3", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf")
_NUMBERS = (
    b"1e400",
    b"-1",
    b"0",
    b"9" * 5000,
    b"1e9",
    b"NaN",
    b"-Infinity",
    b"99999999999999999999",
    b"0.5",
    b"",
)
_WORDS = (
    b"null",
    b"[]",
    b"{}",
    b'"x"',
    b"true",
    b'""',
    b"\\ud800",
    b"*a",
    b"&a",
    b"!!python/name:os.system",
    b"{history}",
)
_NUMBER = re.compile(rb"-?[0-9]+(\.[0-9]+)?")
# Values of every JSON type, most of them wrong wherever they stand.
_STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 10**9, 10**30, 0.5, float("nan"), float("inf"), 1e308),
    *("", "x", " ", "\ud800", "\0", "../x", "a\tb", "\n", "\U0001f600", "9" * 400),
    *([], {}, [[]], [None], {"x": 1}, ["a", "b"], [1, 2], [["a", 1]]),
)


def mutate(data: bytes, draw: random.Random, other: bytes = b"") -> bytes:
    """Return ``data`` with one to four damages; ``other`` is a file of the same kind to splice with."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        data = draw.choice(_DAMAGES)(data, draw, other)
    return data


def mutate_json(data: bytes, draw: random.Random) -> bytes:
    """Return a JSON text with one to three of its values replaced, removed or put elsewhere."""
    value = json.loads(data)
    for _ in range(draw.choice((1, 1, 2, 3))):
        value = _change_somewhere(value, draw)
    return json.dumps(value, ensure_ascii=draw.random() < 0.7).encode("utf-8", "surrogatepass")


def _change_somewhere(value: Any, draw: random.Random) -> Any:
    """Return ``value`` with one node, at a random depth, changed."""
    value = copy.deepcopy(value)
    if not isinstance(value, dict | list) or not value or draw.random() < 0.05:
        return copy.deepcopy(draw.choice(_STRANGE))
    parent = value
    while True:
        key = draw.choice(list(parent)) if isinstance(parent, dict) else draw.randrange(len(parent))
        child = parent[key]
        if isinstance(child, dict | list) and child and draw.random() < 0.8:
            parent = child
            continue
        break
    action = draw.random()
    if action < 0.7:
        parent[key] = copy.deepcopy(draw.choice(_STRANGE))
    elif action < 0.85:
        del parent[key]
    elif isinstance(parent, list):
        parent.insert(key, copy.deepcopy(draw.choice(_STRANGE)))
    else:
        parent[draw.choice(("x", "", "1", "\ud800", "__class__"))] = parent[key]
    return value


def _span(data: bytes, draw: random.Random, longest: int = 64) -> tuple[int, int]:
    start = draw.randrange(len(data) + 1)
    return start, min(len(data), start + draw.randint(1, longest))


def _flip(data: bytes, draw: random.Random, other: bytes) -> bytes:
    if not data:
        return data
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :]


def _delete(data: bytes, draw: random.Random, other: bytes) -> bytes:
    start, end = _span(data, draw)
    return data[:start] + data[end:]


def _insert(data: bytes, draw: random.Random, other: bytes) -> bytes:
    start = draw.randrange(len(data) + 1)
    return data[:start] + draw.randbytes(draw.randint(1, 16)) + data[start:]


def _truncate(data: bytes, draw: random.Random, other: bytes) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _duplicate(data: bytes, draw: random.Random, other: bytes) -> bytes:
    start, end = _span(data, draw, 400)
    return data[:end] + data[start:end] + data[end:]


def _splice(data: bytes, draw: random.Random, other: bytes) -> bytes:
    other = other or data
    return data[: draw.randrange(len(data) + 1)] + other[draw.randrange(len(other) + 1) :]


def _nul(data: bytes, draw: random.Random, other: bytes) -> bytes:
    start, end = _span(data, draw)
    return data[:start] + b"\0" * (end - start) + data[end:]


def _not_utf8(data: bytes, draw: random.Random, other: bytes) -> bytes:
    start = draw.randrange(len(data) + 1)
    return data[:start] + draw.choice(_NOT_UTF8) + data[start:]


def _number(data: bytes, draw: random.Random, other: bytes) -> bytes:
    found = list(_NUMBER.finditer(data))
    if not found:
        return data
    match = draw.choice(found)
    return data[: match.start()] + draw.choice(_NUMBERS) + data[match.end() :]


def _word(data: bytes, draw: random.Random, other: bytes) -> bytes:
    start, end = _span(data, draw, 8)
    return data[:start] + draw.choice(_WORDS) + data[end:]


def _nest(data: bytes, draw: random.Random, other: bytes) -> bytes:
    start = draw.randrange(len(data) + 1)
    return (
        data[:start]
        + draw.choice((b"[", b'{"a":', b"- ", b"{a: ", b"(")) * draw.choice((50, 2000))
        + data[start:]
    )


def _lines(data: bytes, draw: random.Random, other: bytes) -> bytes:
    lines = data.split(b"\n")
    place = draw.randrange(len(lines))
    action = draw.randrange(3)
    if action == 0:
        del lines[place]
    elif action == 1:
        lines.insert(place, draw.choice(lines))
    else:
        draw.shuffle(lines)
    return b"\n".join(lines)


_DAMAGES: tuple[Callable[[bytes, random.Random, bytes], bytes], ...] = (
    *(
        _flip,
        _delete,
        _insert,
        _truncate,
        _duplicate,
        _splice,
        _nul,
        _not_utf8,
        _number,
        _word,
        _nest,
        _lines,
    ),
)
