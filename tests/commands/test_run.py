"""``run_recbole`` as a command: what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recbole_dynamicpo.cli import run_recbole


def test_a_quiet_run_says_its_result_alone(
    toy_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    settings = {**toy_settings, "checkpoint_dir": "saved", "state": "INFO", "show_progress": True}
    for name in ("state", "show_progress"):
        del settings[name]
    assert (
        run_recbole(
            [
                "--quiet",
                "--model=DynamicPO",
                "--dataset=toy",
                *(f"--{key}={value}" for key, value in settings.items()),
            ]
        )
        == 0
    )
    said, errors = capfd.readouterr()
    lines = said.splitlines()
    assert lines[0].startswith("among the candidates")
    assert "HR@1" in lines[1]
    assert any("after DynamicPO" in line for line in lines)
    assert sum("*" in line for line in lines) >= 1
    assert errors == ""
