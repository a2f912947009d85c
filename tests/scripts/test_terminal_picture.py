"""The picture of a terminal: what was written over is gone, and nothing is fetched to look at it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import terminal_picture

SCRIPT = Path(terminal_picture.__file__)


def test_lines_that_were_written_over_are_gone() -> None:
    session = "Script started on now\n\rsft:  0%\rsft: 50%\rsft: 100%\r\n\x1b[31mred\x1b[0m\r\nScript done\n"
    assert terminal_picture.shown(session) == ["sft: 100%", "\x1b[31mred\x1b[0m", ""]


def test_the_picture_holds_the_last_lines_and_fetches_nothing(tmp_path: Path) -> None:
    session, picture = tmp_path / "session", tmp_path / "run.svg"
    session.write_text("first\nsecond & <third>\nlast\n\n", encoding="utf-8")
    words = [str(session), str(picture), "--last", "2", "--title", "a run"]
    subprocess.run([sys.executable, str(SCRIPT), *words], check=True, timeout=120)
    text = picture.read_text(encoding="utf-8").replace("&#160;", " ")
    assert "second &amp; &lt;third&gt;" in text
    assert "last" in text
    assert "first" not in text
    assert "url(http" not in text
