"""Two processes at one folder: the second is refused or waits, and nothing is done twice or damaged."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from recbole_dynamicpo.tracking.journal import Journal

from .jobs import STEPS, run_folder
from .resumed import Undisturbed, phases, result
from .warm import PATIENCE, Warm

Tally = dict[str, Counter[str]]


def until(true: Callable[[], bool], what: str) -> None:
    """Wait until something is true.

    Raises:
        AssertionError: it does not become true.
    """
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, f"still waiting for: {what}"
        time.sleep(0.05)


def halted(warm: Warm, name: str, home: Path, at: int) -> int:
    """Begin a job that halts at a point, and return its process id once it has."""
    pid = warm.start(name, home, kind="stop", at=at)
    stat = Path(f"/proc/{pid}/stat")
    until(lambda: stat.read_text(encoding="ascii").rpartition(")")[2].split()[0] == "T", f"{name} to halt")
    return pid


def says(file: Path, text: str) -> bool:
    """Tell whether a text stands in a file; a process that has just begun may not have made it yet."""
    return file.is_file() and text in file.read_text(encoding="utf-8")


def first(name: str, phase: str, points: list[str]) -> int:
    """Return the first point in a phase."""
    return phases(name, points).index(phase) + 1


def test_the_second_is_refused_a_run_folder(
    warm: Warm, undisturbed: Undisturbed, tmp_path: Path, tally: Tally
) -> None:
    points, expected = undisturbed("run")
    at = first("run", "preference", points)
    assert warm.do("run", tmp_path, kind="kill", at=at).status == -signal.SIGKILL
    folder = run_folder(tmp_path)
    assert not (folder / "preference").exists()
    pid = halted(warm, "run", tmp_path, len(points) // 8)
    second = warm.do("run", tmp_path)
    assert second.status == 2
    last = second.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: {folder}: in use by process {pid} on "), last
    os.kill(pid, signal.SIGCONT)
    assert warm.wait(pid, tmp_path).status == 0
    assert result("run", tmp_path) == expected
    tally.setdefault("two processes: a run folder", Counter())["the second refused"] += 1


def test_the_second_waits_for_a_stage(
    warm: Warm, undisturbed: Undisturbed, tmp_path: Path, tally: Tally
) -> None:
    points, expected = undisturbed("stages")
    for number, phase in enumerate(("sft", "evaluation")):
        home = tmp_path / str(number)
        pid = halted(warm, "stages", home, first("stages", phase, points))
        other = warm.start("stages", home)
        waits = f"waiting for process {pid} on"
        until(partial(says, home / f"{other}.stderr", waits), waits)
        os.kill(pid, signal.SIGCONT)
        assert warm.wait(pid, home).status == 0
        done = warm.wait(other, home)
        assert done.status == 0, done.stderr
        assert result("stages", home) == expected
        told = [json.loads((home / f"{p}.stdout").read_text(encoding="utf-8")) for p in (pid, other)]
        assert [stage["folder"] for stage in told[0]] == [stage["folder"] for stage in told[1]]
        assert [stage["outputs"] for stage in told[0]] == [stage["outputs"] for stage in told[1]]
        computed = [[stage["cached"] for stage in results].count(False) for results in told]
        assert sum(computed) == len(told[0])  # each stage once, by whichever came first
        entries = [e for r in told[0] for e in Journal(Path(r["folder"]) / "metrics.jsonl").entries()]
        assert [entry["kind"] for entry in entries].count("train") == STEPS
        tally.setdefault("two processes: a stage folder", Counter())["the second waited"] += 1


@pytest.mark.parametrize(("name", "folder"), [("prepare", "lastfm"), ("fetch", "ml-1m")])
def test_the_second_waits_for_data(
    warm: Warm, undisturbed: Undisturbed, tmp_path: Path, tally: Tally, name: str, folder: str
) -> None:
    points, expected = undisturbed(name)
    for number, at in enumerate((len(points) // 2, len(points) - 2)):
        home = tmp_path / str(number)
        pid = halted(warm, name, home, at)
        other = warm.start(name, home)
        waits = f"waiting for process {pid} on"
        until(partial(says, home / f"{other}.stderr", waits), waits)
        os.kill(pid, signal.SIGCONT)
        assert [warm.wait(p, home).status for p in (pid, other)] == [0, 0]
        assert result(name, home) == expected
        assert [path.name for path in (home / "data").iterdir()] == [folder]
        tally.setdefault("two processes: a data folder", Counter())["the second waited"] += 1
