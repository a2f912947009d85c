"""The same seed on the same machine gives the same bits, whoever loads the data and after whatever stop."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest

from .resumed import Undisturbed, phases, result
from .warm import Warm

Tally = dict[str, Counter[str]]


@pytest.mark.parametrize("workers", [1, 2])
def test_data_workers_change_nothing(
    warm: Warm, undisturbed: Undisturbed, tmp_path: Path, tally: Tally, workers: int
) -> None:
    done = warm.do("run", tmp_path, worker=workers)  # undisturbed: none but the process itself
    assert done.status == 0, done.stderr
    assert result("run", tmp_path) == undisturbed("run")[1]
    tally.setdefault("determinism: data workers", Counter())["bitwise equal"] += 1


def test_killed_and_resumed_with_other_workers(
    warm: Warm, undisturbed: Undisturbed, tmp_path: Path, tally: Tally
) -> None:
    points, expected = undisturbed("run")
    at = phases("run", points).index("preference") + 40
    assert warm.do("run", tmp_path, kind="kill", at=at, worker=2).status == -signal.SIGKILL
    done = warm.do("run", tmp_path, worker=1)
    assert done.status == 0, done.stderr
    assert result("run", tmp_path) == expected
    tally.setdefault("determinism: data workers", Counter())["bitwise equal"] += 1


def test_stages_and_a_whole_run_agree(undisturbed: Undisturbed) -> None:
    assert undisturbed("run")[1] == undisturbed("stages")[1]


def test_torch_threads(warm: Warm, undisturbed: Undisturbed, tmp_path: Path, tally: Tally) -> None:
    """Twice with two threads: the same bits; with one or two: the same up to the order of sums."""
    found = []
    for name in ("a", "b"):
        done = warm.do("run", tmp_path / name, torch_threads=2)
        assert done.status == 0, done.stderr
        found.append(result("run", tmp_path / name))
    assert found[0] == found[1]
    expected = undisturbed("run")[1]
    for stage in ("sft", "preference"):
        assert found[0][f"{stage} losses"] == pytest.approx(expected[f"{stage} losses"], rel=1e-3, abs=1e-5)
    same = found[0] == expected
    tally.setdefault("determinism: 1 or 2 threads", Counter())["bitwise equal" if same else "close"] += 1
