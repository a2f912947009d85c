"""Append-only record of a run's steps, one JSON object a line; what everything else mirrors."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .storage import atomic_file


class Journal:
    """The file ``metrics.jsonl`` of a run folder.

    Args:
        path: of the file; made at the first entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, stage: str, step: int, kind: str, values: dict[str, Any]) -> None:
        """Append one entry; it reaches the disk before this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"stage": stage, "step": step, "kind": kind, **values})
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")
            handle.flush()
            os.fsync(handle.fileno())

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield the entries in order; a last line that a crash cut short is passed over."""
        if not self.path.is_file():
            return
        for line in self.path.read_text(encoding="utf-8").split("\n"):
            try:
                yield json.loads(line)
            except ValueError:
                continue

    def rewind(self, stage: str, step: int, earlier: tuple[str, ...]) -> None:
        """Drop what was written after ``step`` of ``stage``; whole ``earlier`` stages stay."""
        kept = [
            entry
            for entry in self.entries()
            if entry["stage"] in earlier or (entry["stage"] == stage and entry["step"] <= step)
        ]
        with atomic_file(self.path) as handle:
            handle.writelines(json.dumps(entry) + "\n" for entry in kept)
