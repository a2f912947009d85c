"""Files that are either whole or absent: written beside their place, then renamed; locks on folders."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from .errors import LockedError, SettingsError

logger = logging.getLogger(__name__)

# Seconds between two messages of a process that waits.
_REMINDER = 60.0

_PARTIAL = ".tmp"  # how the names of files and folders end that are being written


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let an error of the system inside the block say which file it is about; a failed read or write does
    not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextmanager
def atomic_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that appears at ``path`` only when the block ends without an error.

    Args:
        path: final place; its folder is made.
        mode: ``"w"`` (UTF-8 text, newlines kept as written) or ``"wb"``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_PARTIAL, dir=path.parent)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with named(path), os.fdopen(descriptor, mode, **text) as handle:  # type: ignore[call-overload]
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(name, 0o644)  # mkstemp makes files private; data sets are meant to be shared
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces ``path`` only when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_PARTIAL, dir=path.parent))
    try:
        with named(path):
            yield work
            for file in work.rglob("*"):
                if file.is_file():
                    with file.open("rb") as handle:
                        os.fsync(handle.fileno())
        os.chmod(work, 0o755)
        _swap(work, path)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _swap(work: Path, path: Path) -> None:
    """Put ``work`` at ``path``. A folder cannot be replaced in one step, so the old one moves aside."""
    old = path.with_name(f".{path.name}.old")
    if path.exists():
        if old.exists():
            shutil.rmtree(old)
        os.replace(path, old)
    os.replace(work, path)
    shutil.rmtree(old, ignore_errors=True)


def check_can_be_made(folder: Path) -> None:
    """See whether a folder can be made or, where it is there, takes files; nothing is left behind.

    Several processes may look at once.

    Raises:
        SettingsError: neither; says why.
    """
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if _is_there(path))
        with tempfile.TemporaryDirectory(dir=there):
            pass
    except OSError as error:
        what = "written to" if os.path.isdir(folder) else "made"  # of any name, however long
        raise SettingsError(f"{folder}: the folder cannot be {what} ({error.strerror})") from error


def _is_there(path: Path) -> bool:
    """Return whether something lies at a path, be it a broken link; a name that is too long is an error."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def restore_swapped(path: Path) -> None:
    """Bring back the folder that a crash between the two renames of ``atomic_folder`` left aside."""
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        os.replace(old, path)


def remove_partial(path: Path) -> None:
    """Remove what killed processes left of a file or folder ``path``, which no other may be writing."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{_PARTIAL}"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def set_aside(path: Path) -> Path:
    """Move a damaged file or folder to ``<name>.damaged-<n>`` beside it, and return that place."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.damaged-{number}")):
        number += 1
    os.replace(path, aside)
    return aside


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as readable JSON, whole or not at all."""
    with atomic_file(path) as handle:
        json.dump(value, handle, indent=2, ensure_ascii=False, sort_keys=True)
        handle.write("\n")


def load_json(path: Path) -> Any:
    """Return the JSON value in a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8, not JSON, nested too deeply, or holds half of a surrogate pair.
    """
    with named(path):
        text = path.read_text(encoding="utf-8")
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


def is_number(value: Any) -> bool:
    """Say whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with named(path), path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return name -> SHA-256 for files below ``folder``."""
    return {name: sha256_file(folder / name) for name in names}


def difference(folder: Path, files: Mapping[str, str]) -> str:
    """Say what is not as ``sha256_files`` found it, or return an empty text."""
    for name, wanted in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256_file(folder / name) != wanted:
            return f"{name} has changed"
    return ""


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value, the same for equal values in any key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def locked(folder: Path, *, wait: bool, within: float = math.inf) -> Iterator[None]:
    """Hold ``folder`` alone inside the block; the system lets go of it when the process dies.

    Args:
        folder: or any name in a folder; ``.<name>.lock`` and ``.<name>.holder`` lie beside it, and where
            they lie is made, and taken away again if the block ends with an error and left nothing there.
        wait: until it is free, with a message now and then; otherwise refuse.
        within: most seconds to wait.

    Raises:
        LockedError: another process holds it, and ``wait`` is false or was too long; names that process.
    """
    folder = folder if folder.name else folder.absolute()  # "." has neither name nor parent
    made = [place for place in (folder.parent, *folder.parent.parents) if not place.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _held(folder, wait, within):
            yield
    except BaseException:
        with suppress(OSError):  # something lies there
            for place in made:
                place.rmdir()
        raise


@contextmanager
def _held(folder: Path, wait: bool, within: float) -> Iterator[None]:
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    holder = folder.with_name(f".{folder.name}.holder")
    end = time.monotonic() + (within if wait else 0.0)
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            left = end - time.monotonic()
            if left <= 0:
                raise LockedError(f"{folder}: in use by {_describe(holder)}") from None
            logger.warning("%s: waiting for %s", folder, _describe(holder))
        try:
            lock.acquire(timeout=min(_REMINDER, left))
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
