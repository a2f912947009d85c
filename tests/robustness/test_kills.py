"""A process that is killed, stopped or interrupted anywhere loses nothing: what goes on ends the same.

``pytest`` kills 3 processes, ``pytest -m robustness`` 10, and ``ROBUSTNESS_KILLS=50`` as many as it says.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import at_length
from .jobs import run_folder
from .resumed import Undisturbed, phases, result, whole_files
from .warm import Warm

# Which job is killed in which of its phases, in turn.
PLACES = [
    ("dense", "preference"), ("stages", "preference"), ("prepare", "data"), ("run", "evaluation"),
    ("dense", "sft"), ("dense", "checkpoint"), ("run", "checkpoint"), ("stages", "reference"),
    ("run", "sft"), ("register", "registration"), ("stages", "checkpoint"),
    ("run", "preference"), ("dense", "reference"), ("dense", "evaluation"),
    ("stages", "evaluation"), ("stages", "sft"), ("run", "reference"),
]  # fmt: skip
Tally = dict[str, Counter[str]]


def killed_and_resumed(
    warm: Warm, name: str, at: int, again: int, home: Path, tally: Tally
) -> Callable[[], None]:
    """Begin a job that is killed at a point; return what waits for it, goes on until the end, and checks.

    Args:
        warm: the process that forks.
        name: of the job.
        at: point of the first kill.
        again: point of a second one, in the process that goes on; 0: none.
        home: of the job.
        tally: where kills are counted.
    """
    counts = tally.setdefault(f"kill -9: {name}", Counter())
    pid = warm.start(name, home, kind="kill", at=at)

    def finish() -> None:
        done = warm.wait(pid, home)
        assert done.status == -signal.SIGKILL, done.stderr
        kills = 1
        whole_files(home)
        if again:
            done = warm.do(name, home, kind="kill", at=again)
            kills += done.status == -signal.SIGKILL
            whole_files(home)
        if done.status:
            done = warm.do(name, home)
        assert done.status == 0, done.stderr
        counts["went on, nothing lost"] += kills

    return finish


def chosen_kills(count: int, undisturbed: Undisturbed) -> list[tuple[str, str, int, int]]:
    """Return job, phase, point of the first kill, and of a second one (0: none) of each case."""
    found = []
    for number in range(count):
        name, phase = PLACES[number % len(PLACES)]
        points, _ = undisturbed(name)
        draw = random.Random(f"kill {number} {name} {phase}")
        candidates = [index for index, its in enumerate(phases(name, points), start=1) if its == phase]
        assert candidates, f"no point of {name} lies in {phase}"
        again = draw.randrange(1, len(points)) if number % 3 == 2 else 0
        found.append((name, phase, draw.choice(candidates), again))
    return found


def test_killed_anywhere_and_resumed_equals_undisturbed(
    warm: Warm, undisturbed: Undisturbed, tmp_path: Path, pytestconfig: pytest.Config, tally: Tally
) -> None:
    given = os.environ.get("ROBUSTNESS_KILLS")
    count = int(given) if given else (10 if at_length(pytestconfig) else 3)
    cases = chosen_kills(count, undisturbed)
    for start in range(0, count, 2):  # two at once, for two processors
        both = []
        for number, (name, _, at, again) in enumerate(cases[start : start + 2], start):
            both.append(killed_and_resumed(warm, name, at, again, tmp_path / str(number), tally))
        for number, finish in enumerate(both, start):
            name, phase, at, again = cases[number]
            finish()
            assert result(name, tmp_path / str(number)) == undisturbed(name)[1], (name, phase, at, again)


def stopped_and_resumed(
    warm: Warm, undisturbed: Undisturbed, home: Path, kind: str, phase: str
) -> Callable[[], None]:
    """Begin a run that gets a signal in a phase; return what waits for it, checks, and goes on."""
    points, expected = undisturbed("run")
    candidates = [index for index, its in enumerate(phases("run", points), start=1) if its == phase]
    later = candidates[len(candidates) // 4 :]  # the first checkpoint is there
    pid = warm.start("run", home, kind=kind, at=random.Random(f"{kind} {phase}").choice(later))

    def finish() -> None:
        done = warm.wait(pid, home)
        assert done.status == {"term": 143, "int": 130}[kind], done.stderr
        folder = run_folder(home)
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith({"term": "stopped by SIGTERM", "int": "interrupted in stage "}[kind])
        assert f"; go on with: run_recbole --model=DynamicPO --resume={folder} --data_path=" in last
        whole_files(home)
        done = warm.do("run", home)
        assert done.status == 0, done.stderr
        assert [path for path in folder.parent.iterdir() if path.is_dir()] == [folder]
        assert result("run", home) == expected, (kind, phase)

    return finish


def test_asked_to_stop_and_resumed_equals_undisturbed(
    warm: Warm, undisturbed: Undisturbed, tmp_path: Path, pytestconfig: pytest.Config, tally: Tally
) -> None:
    places = ("reference", "sft", "preference", "checkpoint", "evaluation")
    cases = [(kind, phase) for kind in ("term", "int") for phase in places]
    if not at_length(pytestconfig):
        cases = cases[::4]
    for start in range(0, len(cases), 2):  # two at once, for two processors
        pair = cases[start : start + 2]
        both = [stopped_and_resumed(warm, undisturbed, tmp_path / "-".join(case), *case) for case in pair]
        for finish, (kind, _) in zip(both, pair, strict=True):
            finish()
            tally.setdefault(f"SIG{kind.upper()}: run", Counter())["went on, nothing lost"] += 1
