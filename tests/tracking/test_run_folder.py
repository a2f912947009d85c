"""Where a run's folder is made, and what is said where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from recbole_dynamicpo.errors import CheckpointError, SettingsError
from recbole_dynamicpo.tracking.run_folder import check_identity, new_run_folder, write_identity


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    found = [new_run_folder(tmp_path / "saved", "a").name for _ in range(3)]
    assert found == ["a", "a-2", "a-3"]


def test_a_place_that_takes_no_folders_is_named() -> None:
    with pytest.raises(SettingsError, match=r"checkpoint_dir: got '/proc/none', where no folder can be made"):
        new_run_folder(Path("/proc/none"), "a")


def test_a_run_older_than_a_setting_is_gone_on_with_unless_it_is_used(tmp_path: Path) -> None:
    write_identity(tmp_path, {"seed": 7})
    check_identity(tmp_path, {"seed": 7, "compile_layers": False})
    with pytest.raises(CheckpointError, match=r"data:\n  compile_layers: then False, now True$"):
        check_identity(tmp_path, {"seed": 7, "compile_layers": True})
