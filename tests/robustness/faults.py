"""Faults at every place where a process writes, in a process of its own that nobody needs afterwards.

Whatever the process does in its home folder passes a point: it opens a file to write, writes into it for
the first time, flushes it to the disk, renames, makes or removes something; and so do training steps,
parts of the reference pass and evaluated batches. Points are counted; at one of them, something happens.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# RecBole's log and TensorBoard files: not ours, and no part of a result.
NOT_OURS = ("log", "log_tensorboard")
_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM, "int": signal.SIGINT}
_ERRORS = {"full": errno.ENOSPC, "read-only": errno.EROFS}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND
# What needs no room on the disk still works when it is full.
_FREES = ("remove",)
_WORK = ("step", "reference", "batch", "commit")


class Faults:
    """Counts the points of a process, and lets one of them go wrong.

    Args:
        home: of the process; what it does elsewhere is no point.
        kind: ``none``; ``kill``, ``stop``, ``term``, ``int``: a signal at that point, and ``kill`` cuts a
            write in the middle; ``full``, ``read-only``: from that point on nothing can be written.
        at: number of that point, from 1.
        seen: where to write what each point was, a line each.
    """

    def __init__(self, home: Path, kind: str, at: int, seen: Path) -> None:
        self.home, self.kind, self.at = home.resolve(), kind, at
        self.number = 0
        self.seen = os.open(seen, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)

    def install(self) -> None:
        """Watch this process from now on."""
        self._open, self._fsync = io.open, os.fsync
        io.open = builtins.open = self.open  # type: ignore[assignment]
        os.fsync = self.fsync
        self._watch_work()
        sys.addaudithook(self._audit)

    def point(self, what: str, cut: Callable[[], object] = lambda: None) -> None:
        """Pass a point; ``cut`` does the half of a write."""
        self.number += 1
        os.write(self.seen, f"{what}\n".encode("utf-8", "replace"))
        if self.kind in _SIGNALS and self.number == self.at:
            if self.kind == "kill":
                cut()
            os.kill(os.getpid(), _SIGNALS[self.kind])
        if self.kind in _ERRORS and self.number >= self.at and not what.startswith((*_FREES, *_WORK)):
            cut()
            code = _ERRORS[self.kind]
            # A write knows no name, the rest does.
            name = [] if what.startswith(("write", "fsync")) else [str(self.home / what.partition(" ")[2])]
            raise OSError(code, os.strerror(code), *name)

    def place(self, path: Any) -> str | None:
        """Return a path relative to the home folder; None if it lies elsewhere or is not ours."""
        try:
            text = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fspath(path)
            found = Path(os.fsdecode(text))
            found = (found if found.is_absolute() else Path.cwd() / found).relative_to(self.home)
        except (OSError, ValueError, TypeError):
            return None
        return None if found.parts[:1] and found.parts[0] in NOT_OURS else str(found)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        words = {"os.rename": "rename", "os.mkdir": "mkdir", "os.remove": "remove", "os.rmdir": "remove"}
        if event == "os.mkdir" and os.path.isdir(arguments[0]):  # says that it is there already
            return
        if event in words:
            word = words[event]
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
            if isinstance(arguments[0], int):  # a descriptor, whose opening was a point
                return
            word = "open"
        else:
            return
        place = self.place(arguments[0])
        if place is not None:
            self.point(f"{word} {place}")

    def open(self, file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        """Open a file; writing into it will be a point."""
        handle = self._open(file, mode, *arguments, **named)
        place = self.place(file) if set(mode) & set("wax+") else None
        return handle if place is None else Handle(handle, place, self)

    def fsync(self, descriptor: int) -> None:
        """Flush a file to the disk."""
        place = self.place(descriptor)
        if place is not None:
            self.point(f"fsync {place}")
        self._fsync(descriptor)

    def _watch_work(self) -> None:
        """Make points of training steps, parts of the reference pass and evaluated batches."""
        from recbole_dynamicpo.training import trainer
        from recbole_dynamicpo.training.model import DynamicPO

        step, scores, ours = trainer.take_step, DynamicPO.candidate_logps, trainer.DynamicPOTrainer
        ranked, validate, validating = ours.among_candidates, ours._validate, []

        def take_step(model: Any, *rest: Any) -> Any:
            self.point(f"step {model.stage}")
            return step(model, *rest)

        def candidate_logps(model: Any, interaction: Any) -> Any:
            if model.voice == "reference" and model.stage == "preference":
                self.point("reference part")
            return scores(model, interaction)

        def among_candidates(this: Any, *rest: Any) -> Any:
            self.point(f"batch {'validation' if validating else 'evaluation'}")
            return ranked(this, *rest)

        def validate_(this: Any, *rest: Any) -> Any:
            validating.append(True)
            try:
                return validate(this, *rest)
            finally:
                validating.clear()

        def commit(session: Any) -> None:
            self.point("commit")
            write(session)
            self.point("committed")

        if "sqlalchemy.orm" in sys.modules:  # MLflow's store
            session = sys.modules["sqlalchemy.orm"].Session
            write = session.commit
            session.commit = commit
        trainer.take_step = take_step
        DynamicPO.candidate_logps = candidate_logps
        ours.among_candidates, ours._validate = among_candidates, validate_  # type: ignore[method-assign]


class Handle:
    """An open file whose first write is a point."""

    def __init__(self, inner: Any, place: str, faults: Faults) -> None:
        self._inner, self._place, self._faults, self._written = inner, place, faults, False

    def write(self, data: Any) -> Any:
        """Write, after the point was passed."""
        if not self._written:
            self._written = True

            def cut() -> None:
                self._inner.write(data[: len(data) // 2])
                self._inner.flush()

            self._faults.point(f"write {self._place}", cut)
        return self._inner.write(data)

    def writelines(self, lines: Any) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._inner.__exit__(*exception)

    def __iter__(self) -> Any:
        return iter(self._inner)
