"""A disk that is full, read-only or in the way: one clear line, nothing half written, and then it goes on.

``pytest`` fills the disk at 3 writes, ``pytest -m robustness`` at 16, ``ROBUSTNESS_WRITES=0`` at every one.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import at_length
from .resumed import Undisturbed, result, whole_files
from .warm import Ended, Warm

JOBS = ("run", "stages", "prepare")
WRITES = ("open", "write", "fsync", "mkdir", "rename")
Tally = dict[str, Counter[str]]


def refused(done: Ended, reason: str, home: Path) -> None:
    """Check that a process ended with one line that names a place in its home and the reason."""
    assert done.status == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: "), last
    assert f" {home}/" in last, last
    assert reason in last, last


def filled_and_gone_on(warm: Warm, name: str, at: int, home: Path) -> Callable[[], None]:
    """Begin a job whose disk is full from a point on; return what waits, makes room, and goes on."""
    pid = warm.start(name, home, kind="full", at=at)

    def finish() -> None:
        refused(warm.wait(pid, home), "No space left on device", home)
        whole_files(home)
        done = warm.do(name, home)
        assert done.status == 0, done.stderr

    return finish


def test_a_full_disk_at_any_write(
    warm: Warm, undisturbed: Undisturbed, tmp_path: Path, pytestconfig: pytest.Config, tally: Tally
) -> None:
    writes = [
        (name, index)
        for name in JOBS
        for index, point in enumerate(undisturbed(name)[0], start=1)
        if point.startswith(WRITES)
    ]
    given = os.environ.get("ROBUSTNESS_WRITES")
    count = int(given) if given else (16 if at_length(pytestconfig) else 3)
    cases = sorted(random.Random(f"full {count}").sample(writes, count)) if count else writes
    for start in range(0, len(cases), 2):  # two at once, for two processors
        pair = list(enumerate(cases[start : start + 2], start))
        both = [filled_and_gone_on(warm, name, at, tmp_path / str(number)) for number, (name, at) in pair]
        for finish, (number, (name, at)) in zip(both, pair, strict=True):
            finish()
            assert result(name, tmp_path / str(number)) == undisturbed(name)[1], (name, at)
            tally.setdefault(f"no space left: {name}", Counter())["refused, then went on"] += 1
            shutil.rmtree(tmp_path / str(number))


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Mount a small file system; where that is not allowed the injected faults stand for it."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system; the injected faults stand for it")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_small_file_system(
    warm: Warm, undisturbed: Undisturbed, tmp_path: Path, tally: Tally, share: float
) -> None:
    expected = undisturbed("run")[1]
    saved = warm.world / "undisturbed-run" / "saved"
    pages = sum(-(-path.stat().st_size // 4096) for path in saved.rglob("*") if path.is_file())
    home = tmp_path / "home"
    with mounted(home / "saved", f"size={int(share * pages) * 4}k"):
        refused(warm.do("run", home), "No space left on device", home)
        whole_files(home)
        subprocess.run(["mount", "-o", "remount,size=64m", str(home / "saved")], check=True)
        done = warm.do("run", home)
        assert done.status == 0, done.stderr
        assert result("run", home) == expected
    tally.setdefault("no space left: a real file system", Counter())["refused, then went on"] += 1


@pytest.mark.parametrize("name", JOBS)
def test_a_read_only_folder(
    warm: Warm, undisturbed: Undisturbed, tmp_path: Path, tally: Tally, name: str
) -> None:
    expected = undisturbed(name)[1]
    done = warm.do(name, tmp_path, kind="read-only", at=1)
    refused(done, "Read-only file system", tmp_path)
    assert not [point for point in done.points if point.startswith("step")]
    assert warm.do(name, tmp_path).status == 0
    assert result(name, tmp_path) == expected
    tally.setdefault(f"read-only: {name}", Counter())["refused, then went on"] += 1


def test_a_really_read_only_folder(warm: Warm, tmp_path: Path, tally: Tally) -> None:
    with mounted(tmp_path / "saved", "size=64k,ro"):
        done = warm.do("run", tmp_path)
    refused(done, "Read-only file system", tmp_path)
    assert not [point for point in done.points if point.startswith("step")]
    tally.setdefault("read-only: a real file system", Counter())["refused"] += 1


@pytest.mark.parametrize(("name", "place"), [("run", "saved"), ("stages", "saved"), ("prepare", "data")])
def test_a_file_where_the_folder_should_be(
    warm: Warm, tmp_path: Path, tally: Tally, name: str, place: str
) -> None:
    (tmp_path / place).write_text("not a folder", encoding="utf-8")
    done = warm.do(name, tmp_path)
    assert done.status == 2, done.stderr
    assert f" {tmp_path / place}" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not [point for point in done.points if point.startswith("step")]
    assert (tmp_path / place).read_text(encoding="utf-8") == "not a folder"
    tally.setdefault(f"a file in the way: {name}", Counter())["refused"] += 1
