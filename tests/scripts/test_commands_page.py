"""docs/commands.md is what the parsers say now."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import commands_page


def test_the_page_is_current() -> None:
    assert commands_page.PAGE.read_text(encoding="utf-8") == commands_page.page()


def test_check_notices_a_page_of_yesterday(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands_page, "PAGE", tmp_path / "commands.md")
    monkeypatch.setattr(sys, "argv", ["commands_page.py"])
    assert commands_page.main() == 0
    monkeypatch.setattr(sys, "argv", ["commands_page.py", "--check"])
    assert commands_page.main() == 0
    text = commands_page.PAGE.read_text(encoding="utf-8")
    commands_page.PAGE.write_text(text.replace("| `--port PORT`", "| `--door PORT`"), encoding="utf-8")
    assert commands_page.main() == 1
    assert "python scripts/commands_page.py" in capsys.readouterr().out


def test_a_row_says_what_an_option_takes_and_its_default() -> None:
    text = commands_page.page()
    assert "| `--gpu-runs N` | training tasks at a time (default: 1) |" in text
    assert "| `--skip-bad-rows` | drop and count them instead of stopping |" in text
    assert "separated by \\|, or as a JSON list, which" in text
