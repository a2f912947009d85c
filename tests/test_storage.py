"""Files and folders that are whole or absent, whatever happens in between."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import recbole_dynamicpo
from recbole_dynamicpo import storage
from recbole_dynamicpo.errors import LockedError, SettingsError
from recbole_dynamicpo.storage import (
    atomic_file,
    atomic_folder,
    check_can_be_made,
    locked,
    named,
    remove_partial,
    restore_swapped,
    sha256_file,
    sha256_json,
    write_json,
)


class Interrupt(BaseException):
    """Stands for Ctrl-C: no Exception."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(folder: Path, text: str) -> None:
    """Replace the folder by one with a single file in it."""
    with atomic_folder(folder) as work:
        (work / "a.txt").write_text(text, encoding="utf-8")


def break_file(path: Path, error: type[BaseException]) -> None:
    """Fail in the middle of writing a file."""
    with atomic_file(path) as handle:
        handle.write("new")
        raise error


def break_folder(path: Path, error: type[BaseException]) -> None:
    """Fail in the middle of writing a folder."""
    with atomic_folder(path) as work:
        (work / "b.txt").write_text("half", encoding="utf-8")
        raise error


@pytest.mark.parametrize(("mode", "content"), [("w", "é\r\nb\n"), ("wb", b"\x00\xff\r\n")])
def test_a_file_appears_whole(tmp_path: Path, mode: str, content: Any) -> None:
    """Its folder is made, its line ends are kept, and others may read it."""
    path = tmp_path / "deep" / "er" / "x.txt"
    with atomic_file(path, mode) as handle:
        handle.write(content)
        assert not path.exists()
    assert path.read_bytes() == (content if mode == "wb" else content.encode())
    assert names(path.parent) == ["x.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Interrupt])
@pytest.mark.parametrize("existing", [True, False])
def test_an_error_inside_leaves_the_old_file(
    tmp_path: Path, error: type[BaseException], existing: bool
) -> None:
    path = tmp_path / "x.txt"
    if existing:
        path.write_text("old", encoding="utf-8")
    with pytest.raises(error):
        break_file(path, error)
    assert names(tmp_path) == (["x.txt"] if existing else [])
    assert not existing or path.read_text(encoding="utf-8") == "old"


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system refuses at the last flush is an error inside, too."""
    path = tmp_path / "x.txt"
    path.write_text("old", encoding="utf-8")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), atomic_file(path) as handle:
        handle.write("new")
    assert path.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["x.txt"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """Files of the old one that the new one lacks are gone."""
    path = tmp_path / "f"
    with atomic_folder(path) as work:
        (work / "sub").mkdir()
        (work / "sub" / "old.txt").write_text("old", encoding="utf-8")
        assert not path.exists()
    fill(path, "new")
    assert names(path) == ["a.txt"]
    assert names(tmp_path) == ["f"]
    assert path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Interrupt])
@pytest.mark.parametrize("existing", [True, False])
def test_an_error_inside_leaves_the_old_folder(
    tmp_path: Path, error: type[BaseException], existing: bool
) -> None:
    path = tmp_path / "f"
    if existing:
        fill(path, "old")
    with pytest.raises(error):
        break_folder(path, error)
    assert names(tmp_path) == (["f"] if existing else [])
    assert not existing or (path / "a.txt").read_text(encoding="utf-8") == "old"


def stop_before_rename(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything end at the ``number``-th rename from now on."""
    original, calls = os.replace, []

    def replace(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) >= number:
            raise Interrupt
        original(source, target)

    monkeypatch.setattr(storage.os, "replace", replace)


def test_a_stop_between_the_two_renames_is_healed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    fill(path, "old")
    with monkeypatch.context() as patch:
        stop_before_rename(2, patch)
        with pytest.raises(Interrupt):
            fill(path, "new")
    assert not path.exists()
    restore_swapped(path)
    assert (path / "a.txt").read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["f"]


def test_a_real_kill_between_the_two_renames_is_healed(tmp_path: Path) -> None:
    """Nothing is cleaned up then: the half-written folder stays beside, under a name nobody reads."""
    path = tmp_path / "f"
    fill(path, "old")
    script = (
        "import os, pathlib, sys\n"
        "from recbole_dynamicpo import storage\n"
        "rename, calls = os.replace, []\n"
        "def replace(source, target):\n"
        "    calls.append(source)\n"
        "    os._exit(9) if len(calls) == 2 else rename(source, target)\n"
        "storage.os.replace = replace\n"
        "with storage.atomic_folder(pathlib.Path(sys.argv[1])) as work:\n"
        "    (work / 'a.txt').write_text('new')\n"
    )
    home = str(Path(recbole_dynamicpo.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": home}
    done = subprocess.run([sys.executable, "-c", script, str(path)], env=environment, timeout=60)
    assert done.returncode == 9
    assert not path.exists()
    restore_swapped(path)
    assert (path / "a.txt").read_text(encoding="utf-8") == "old"
    fill(path, "newer")
    assert (path / "a.txt").read_text(encoding="utf-8") == "newer"
    assert ".f.old" not in names(tmp_path)


def test_the_next_write_heals_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    fill(path, "old")
    with monkeypatch.context() as patch:
        stop_before_rename(2, patch)
        with pytest.raises(Interrupt):
            fill(path, "new")
    fill(path, "newer")
    assert (path / "a.txt").read_text(encoding="utf-8") == "newer"
    assert names(tmp_path) == ["f"]


def test_restoring_never_overwrites(tmp_path: Path) -> None:
    """Killed after the second rename: the new folder is in place, the old one still beside it."""
    path = tmp_path / "f"
    fill(path, "new")
    (tmp_path / ".f.old").mkdir()
    (tmp_path / ".f.old" / "a.txt").write_text("old", encoding="utf-8")
    restore_swapped(path)
    assert (path / "a.txt").read_text(encoding="utf-8") == "new"
    fill(path, "newer")
    assert names(tmp_path) == ["f"]
    restore_swapped(tmp_path / "never there")
    assert names(tmp_path) == ["f"]


def test_who_waits_too_long_for_a_lock_is_told_who_holds_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "made" / "run"
    holder = rf"run: in use by process {os.getpid()} on"
    with locked(place, wait=False):
        with pytest.raises(LockedError, match=holder), locked(place, wait=False):
            pass
        assert not caplog.messages
        with pytest.raises(LockedError, match=holder), locked(place, wait=True, within=0.01):
            pass
        assert [message.split("waiting for ")[1].split(" on ")[0] for message in caplog.messages] == [
            f"process {os.getpid()}"
        ]
    with locked(place, wait=True, within=0.0):
        assert names(place.parent) == [".run.holder", ".run.lock"]
    assert names(place.parent) == []


def test_an_error_leaves_no_folder_that_was_made_for_a_lock(tmp_path: Path) -> None:
    def spoil(kept: Path) -> None:
        kept.write_text("of somebody else")
        raise ValueError("bad")

    there = tmp_path / "there"
    there.mkdir()
    for place in (there / "data", tmp_path / "a" / "b" / "data"):
        with pytest.raises(ValueError, match="bad"), locked(place, wait=False):
            raise ValueError("bad")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    with pytest.raises(ValueError, match="bad"), locked(tmp_path / "a" / "b" / "data", wait=False):
        spoil(tmp_path / "a" / "kept")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]
    with locked(tmp_path / "made" / "data", wait=False):
        pass
    assert (tmp_path / "made").is_dir()


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, True], "a": {"é 七": "x\ny"}}
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "é 七" in text
    assert text.index('"a"') < text.index('"b"')
    assert text.endswith("}\n")


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "a": 1\n}\n'
    assert names(tmp_path) == ["x.json"]


def test_checksums(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()
    assert sha256_json({"a": 1, "b": "é"}) == sha256_json({"b": "é", "a": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": 2})
    assert sha256_json([1, 2]) != sha256_json([2, 1])


def test_a_failed_write_names_its_file(tmp_path: Path) -> None:
    """The system says which file it could not open, but not which one it could not write."""
    path = tmp_path / "x.txt"
    with pytest.raises(OSError, match="No space left") as caught, named(path):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as caught, named(path):
        Path("/nonexistent").read_text(encoding="utf-8")
    assert caught.value.filename == "/nonexistent"


def test_what_a_killed_process_left_of_a_folder_is_removed(tmp_path: Path) -> None:
    whole, other = tmp_path / "a[b]", tmp_path / ".a.x.tmp"
    left = tmp_path / ".a[b].12345678.tmp"
    for folder in (whole, other, left):
        folder.mkdir()
        (folder / "file").write_text("x", encoding="utf-8")
    remove_partial(whole)
    assert names(tmp_path) == [".a.x.tmp", "a[b]"]


def test_whether_a_folder_can_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    check_can_be_made(tmp_path / "deep" / "er")
    assert names(tmp_path) == []
    fill(tmp_path / "there", "kept")
    check_can_be_made(tmp_path / "there")
    assert names(tmp_path / "there") == ["a.txt"]
    with pytest.raises(SettingsError, match=r"the folder cannot be made \(Not a directory\)"):
        check_can_be_made(tmp_path / "there" / "a.txt" / "b")
    with pytest.raises(SettingsError, match=r"a.txt: the folder cannot be made \(Not a directory\)"):
        check_can_be_made(tmp_path / "there" / "a.txt")
    with pytest.raises(
        SettingsError, match=r"^/proc/xx: the folder cannot be made \(No such file or directory\)"
    ):
        check_can_be_made(Path("/proc/xx"))


def test_a_folder_that_takes_no_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**_: object) -> None:  # who may do all is refused nothing
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refused)
    with pytest.raises(SettingsError, match=r"the folder cannot be written to \(Permission denied\)"):
        check_can_be_made(tmp_path)


def test_this_folder_can_be_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path, ".", has no name; what lies beside it is called by its own."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with locked(Path(), wait=False), pytest.raises(LockedError, match="in use by"), locked(here, wait=False):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_name_that_is_too_long_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nnn: the folder cannot be made \(File name too long\)"):
        check_can_be_made(tmp_path / ("n" * 300))
