"""Append-only record of a run's steps, one JSON object a line; what everything else mirrors."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..storage import atomic_file, named
from .system import peak_memory_mb

logger = logging.getLogger(__name__)


class Journal:
    """The file ``metrics.jsonl`` of a run folder.

    Args:
        path: of the file; made at the first entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, stage: str, step: int, kind: str, values: dict[str, Any]) -> None:
        """Append one entry with the time of day; it reaches the disk before this returns.

        Where a crash or a full disk cut the last line short, the entry begins a line of its own.

        Args:
            stage: that the entry belongs to.
            step: optimizer steps done in it.
            kind: ``train``, ``valid``, ``test``, ``system`` or ``status``.
            values: anything that JSON can hold.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        now = round(time.time(), 3)
        line = json.dumps({"stage": stage, "step": step, "kind": kind, "time": now, **values})
        with named(self.path), self.path.open("a+b") as handle:
            if handle.seek(0, os.SEEK_END):
                handle.seek(-1, os.SEEK_END)
                line = line if handle.read(1) == b"\n" else "\n" + line
            handle.write(f"{line}\n".encode())
            handle.flush()
            os.fsync(handle.fileno())

    @contextmanager
    def stage(self, name: str, step: Callable[[], int] = lambda: 0) -> Iterator[None]:
        """Note that a stage runs while the block does, and how it ended: its seconds and its peak memory.

        Args:
            name: of the stage.
            step: tells the optimizer steps done in it.
        """
        started = time.perf_counter()
        self.write(name, step(), "status", {"status": "running"})
        try:
            yield
        except BaseException:
            with suppress(OSError):  # a full disk must not hide why the stage failed
                self.write(name, step(), "status", {"status": "failed"})
            raise
        self.finished(name, time.perf_counter() - started, step())

    def finished(self, name: str, seconds: float, step: int = 0) -> None:
        """Note that a stage ended well after so many seconds."""
        spent = {"seconds": round(seconds, 3), "peak_memory_mb": peak_memory_mb()}
        self.write(name, step, "status", {"status": "finished", **spent})

    def entries(self, *, quiet: bool = False) -> Iterator[dict[str, Any]]:
        """Yield the entries in order.

        A line that a crash or a full disk cut short is passed over with a warning: it is a loss for the
        record, but none for the training that goes on.

        Args:
            quiet: pass over without a warning, for who reads again and again while lines are written.
        """
        if not self.path.is_file():
            return
        for number, line in enumerate(self.path.read_bytes().split(b"\n"), start=1):
            entry = _parse(line)
            if entry is not None:
                yield entry
            elif line.strip() and not quiet:
                logger.warning("%s, line %d: not an entry of a journal, passed over", self.path, number)

    def rewind(self, stage: str, step: int, earlier: tuple[str, ...]) -> None:
        """Drop what was written after ``step`` of ``stage``; whole ``earlier`` stages stay."""
        kept = [
            entry
            for entry in self.entries()
            if entry["stage"] in earlier or (entry["stage"] == stage and entry["step"] <= step)
        ]
        with atomic_file(self.path) as handle:
            handle.writelines(json.dumps(entry) + "\n" for entry in kept)


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the entry on a line, or None if there is none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(entry, dict) and isinstance(entry.get("step"), int)
    return entry if whole and all(isinstance(entry.get(key), str) for key in ("stage", "kind")) else None
