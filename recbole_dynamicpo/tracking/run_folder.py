"""The folder of a run: how it is named, and whether a later process may go on in it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, SettingsError
from ..parallel import restarts
from ..storage import atomic_file, load_json, sha256_json, write_json

IDENTITY_FILE = "run.json"


def new_run_folder(parent: Path, name: str) -> Path:
    """Make and return ``parent/name``, with a number behind it if another run took the name.

    Raises:
        SettingsError: a folder cannot be made there.
    """
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except FileNotFoundError as error:  # a folder of the system that takes no others
            raise SettingsError(f"checkpoint_dir: got '{parent}', where no folder can be made") from error
    raise AssertionError("unreachable")


def begin_run(parent: Path, name: str) -> Path:
    """Return the folder of a run: a new one, or the one that the same torchrun began before it started again.

    Raises:
        SettingsError: a folder cannot be made there.
    """
    mark = _mark(parent)
    if mark is not None and restarts() and mark.is_file():
        begun = parent / mark.read_text(encoding="utf-8")
        if begun.is_dir():
            return begun
    folder = new_run_folder(parent, name)
    if mark is not None:
        with atomic_file(mark) as handle:
            handle.write(folder.name)
    return folder


def end_run(folder: Path) -> None:
    """Forget which torchrun began or went on with a run; what it starts again begins another."""
    for mark in folder.parent.glob(".*.launch"):
        if mark.read_text(encoding="utf-8") == folder.name:
            mark.unlink(missing_ok=True)


def _mark(parent: Path) -> Path | None:
    """Return the file that names the run of the torchrun that started this process."""
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    return parent / f".{sha256_json(launch)[:16]}.launch" if launch else None


def write_identity(folder: Path, now: Mapping[str, Any]) -> None:
    """Record what decides the training of a new run."""
    write_json(folder / IDENTITY_FILE, now)


def read_identity(folder: Path) -> dict[str, Any]:
    """Return what decided the training of the run in ``folder``.

    Raises:
        CheckpointError: the record is unreadable.
    """
    path = folder / IDENTITY_FILE
    try:
        then = load_json(path)
        if not isinstance(then, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    return then


def check_identity(folder: Path, now: Mapping[str, Any]) -> None:
    """Compare what decided a run's training with what would decide it now.

    Raises:
        CheckpointError: the record is unreadable, or something differs; names each difference.
    """
    then = read_identity(folder)
    if then == now:
        return
    # Only now: it needs pydantic, which benchmarks on a bare machine go without.
    from ..ingredients import differing, value_of

    different = [
        f"{key}: then {value_of(then, key)!r}, now {value_of(now, key)!r}" for key in differing(then, now)
    ]
    if different:
        raise CheckpointError(
            f"{folder}: cannot be resumed with other settings or data:\n  " + "\n  ".join(different)
        )
