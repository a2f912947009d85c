"""The folder of a run: how it is named, and whether a later process may go on in it."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..settings import Settings
from ..storage import load_json, write_json

IDENTITY_FILE = "run.json"

# Settings that may differ between a run and its resumed part: none of them changes the trajectory.
FREE_ON_RESUME = {
    *("resume", "checkpoint_every", "compare_stages", "eval_rows", "popular_candidates"),
    *("mlflow_tracking_uri", "register", "require_improvement", "data_source", "max_memory", "threads"),
}


def new_run_folder(parent: Path, name: str) -> Path:
    """Make and return ``parent/name``, with a number behind it if another run took the name."""
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise AssertionError("unreachable")


def identity(settings: Settings, **more: Any) -> dict[str, Any]:
    """Return, as JSON values, what decides the trajectory of a run."""
    kept = {k: v for k, v in dataclasses.asdict(settings).items() if k not in FREE_ON_RESUME}
    kept.update(more)
    result: dict[str, Any] = json.loads(json.dumps(kept))
    return result


def write_identity(folder: Path, now: dict[str, Any]) -> None:
    """Record the identity of a new run."""
    write_json(folder / IDENTITY_FILE, now)


def check_identity(folder: Path, now: dict[str, Any]) -> None:
    """Compare a run's record with the present settings.

    Raises:
        CheckpointError: the record is unreadable, or something differs; names each difference.
    """
    path = folder / IDENTITY_FILE
    try:
        then = load_json(path)
        if not isinstance(then, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    different = [
        f"{key}: then {then.get(key)!r}, now {now.get(key)!r}"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key)
    ]
    if different:
        raise CheckpointError(
            f"{folder}: cannot be resumed with other settings or data:\n  " + "\n  ".join(different)
        )
