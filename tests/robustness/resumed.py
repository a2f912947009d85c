"""What a job that was disturbed is compared with: the same job, done once without a fault."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from recbole_dynamicpo.evaluation.ranks import read_ranks
from recbole_dynamicpo.training.checkpoint import CHECKPOINT, load_progress

from . import jobs
from .warm import Warm


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """The process that forks a child for each job."""
    process = Warm(tmp_path_factory.mktemp("world"))
    yield process
    process.close()


class Undisturbed:
    """Each job done once without a fault: its points and what came of it."""

    def __init__(self, warm: Warm) -> None:
        self.warm = warm
        self.known: dict[str, tuple[list[str], dict[str, Any]]] = {}

    def __call__(self, name: str) -> tuple[list[str], dict[str, Any]]:
        if name not in self.known:
            home = self.warm.world / f"undisturbed-{name}"
            if name == "register":
                self.warm.prepare("import_mlflow")
                done = self.warm.do("make_store", self.warm.world / "finished")
                assert done.status == 0, done.stderr
            done = self.warm.do(name, home)
            assert done.status == 0, done.stderr
            self.known[name] = done.points, result(name, home)
        return self.known[name]


@pytest.fixture(scope="session")
def undisturbed(warm: Warm) -> Undisturbed:
    """Points and result of each job."""
    return Undisturbed(warm)


def result(name: str, home: Path) -> dict[str, Any]:
    """Return what came of a job."""
    found: dict[str, Any] = getattr(jobs, f"outcome_of_{name}")(home)
    return found


def phases(name: str, points: list[str]) -> list[str]:
    """Return the phase that each point of a job lies in."""
    if name in ("prepare", "register"):
        return [{"prepare": "data", "register": "registration"}[name]] * len(points)
    now, found = "start", []
    for point in points:
        word, _, rest = point.partition(" ")
        if word == "step":
            now = rest
        elif point == "reference part" and now == "sft":
            now = "reference"
        elif point == "batch evaluation":
            now = "evaluation"
        found.append("checkpoint" if f"{CHECKPOINT}." in point or rest.endswith(CHECKPOINT) else now)
    return found


def whole_files(home: Path) -> int:
    """Check that every file with a name of its own is whole; return how many there are."""
    seen = 0
    for path in sorted((home / "saved").rglob("*")):
        place = path.relative_to(home)
        if not path.is_file() or any(part.startswith(".") for part in place.parts):
            continue
        seen += 1
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".parquet":
            read_ranks(path)
        elif path.suffix == ".jsonl":  # only its last line may be cut
            for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
                json.loads(line)
        if path.name == "state.json":
            load_progress(path.parent)
    for shard in (home / "cache").rglob("[!.]*.json"):
        json.loads(shard.read_text(encoding="utf-8"))
    return seen
