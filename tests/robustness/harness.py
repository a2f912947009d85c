"""Feed damaged files to a reader and judge how each case ends."""

from __future__ import annotations

import logging
import random
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from recbole_dynamicpo.errors import DynamicPOError

from .mutate import mutate, mutate_json

# Of processor time, so that a busy machine is not taken for a hang; a healthy case takes milliseconds.
SECONDS = 5.0


class Hang(BaseException):
    """A case used up its processor time; no ``except Exception`` on its way stops it."""


@dataclass
class Target:
    """A file, the function that reads it, and what may come of it.

    Attributes:
        name: for the report.
        file: the one file that is damaged; ``read`` finds it there.
        read: reads it and returns a result; with our errors for what it cannot use.
        right: judges a result by the bytes that were read; the files' own checksums and structure tell.
        structure: damage JSON values too, not bytes alone.
        named: whether our error must name the file.
        slow: how many times fewer cases it gets.
    """

    name: str
    file: Path
    read: Callable[[], Any]
    right: Callable[[Any, bytes], bool]
    structure: bool = False
    named: bool = True
    slow: int = 1


@contextmanager
def bounded() -> Iterator[None]:
    """Raise ``Hang`` inside the block when it has used ``SECONDS`` of processor time."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep away the thousands of warnings that nobody reads."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def judge(target: Target, data: bytes) -> tuple[str, str]:
    """Return how reading ``data`` ended: (refused | read | WRONG..., what was seen)."""
    target.file.write_bytes(data)
    try:
        with bounded():
            result = target.read()
            return ("read", "") if target.right(result, data) else ("WRONG SUCCESS", repr(result)[:300])
    except DynamicPOError as error:
        if target.named and target.file.name not in str(error):
            return "WRONG MESSAGE", str(error)[:300]
        try:
            str(error).encode()
        except UnicodeEncodeError:
            return "UNPRINTABLE MESSAGE", ascii(str(error))[:300]
        return "refused", ""
    except Hang:
        return "HANG", "".join(traceback.format_exc().splitlines(keepends=True)[-8:])
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        ours = [f for f in traceback.extract_tb(error.__traceback__) if "recbole_dynamicpo" in f.filename]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
        where = f"{place} -> {Path(last.filename).name}:{last.lineno}"
        return "CRASH", f"{where} {type(error).__name__}: {error}"[:400]


def fuzz(target: Target, count: int, tally: dict[str, Counter[str]], seed: int = 0) -> list[str]:
    """Damage the target's file ``count`` times; return what went wrong, one entry for each kind."""
    whole = target.file.read_bytes()
    counts = tally.setdefault(target.name, Counter())
    assert judge(target, whole) == ("read", ""), (target.name, judge(target, whole))
    wrong: dict[str, str] = {}
    for number in range(-(-count // target.slow)):
        draw = random.Random(f"{target.name} {seed} {number}")
        data = (
            mutate_json(whole, draw)
            if target.structure and draw.random() < 0.6
            else mutate(whole, draw, whole)
        )
        with quiet():
            outcome, seen = judge(target, data)
        counts[outcome] += 1
        if outcome not in ("read", "refused"):
            kind = outcome + " ".join(seen.split(" ")[:4] if outcome == "CRASH" else "")
            wrong.setdefault(
                kind, f"{target.name}, case {seed}/{number}: {outcome} {seen}\n   {data[:200]!r}"
            )
    target.file.write_bytes(whole)
    return list(wrong.values())
