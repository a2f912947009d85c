"""One process at a time in a folder, and a word on who is in it."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import LockedError

logger = logging.getLogger(__name__)

# Seconds between two messages of a process that waits.
_REMINDER = 60.0


@contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold ``folder`` alone inside the block; the system lets go of it when the process dies.

    Args:
        folder: made if it is not there; ``.<name>.lock`` and ``.<name>.holder`` lie beside it.
        wait: until it is free, with a message now and then; otherwise refuse.

    Raises:
        LockedError: another process holds it, and ``wait`` is false; names that process.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    holder = folder.with_name(f".{folder.name}.holder")
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            if not wait:
                raise LockedError(f"{folder}: in use by {_describe(holder)}") from None
            logger.warning("%s: waiting for %s", folder, _describe(holder))
        try:
            lock.acquire(timeout=_REMINDER)
            break
        except Timeout:
            continue
    held = Path(lock.lock_file)
    try:
        me = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with suppress(OSError):  # a full disk refuses the next write, which says which file it is about
            holder.write_text(json.dumps(me), encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        held.unlink(missing_ok=True)  # whoever waits on it notices and takes a new one
        lock.release()


def _describe(holder: Path) -> str:
    try:
        found = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
