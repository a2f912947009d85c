"""The last lines of a terminal session as a picture.

script -qc "run_recbole --model=DynamicPO" session
python scripts/terminal_picture.py session docs/run.svg --title "run_recbole --model=DynamicPO" --last 40
"""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

# rich would fetch its font from elsewhere whenever the picture is looked at.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
FORMAT = FORMAT.replace("Fira Code", "DejaVu Sans Mono, Menlo, Consolas")


def shown(session: str) -> list[str]:
    """Return the lines that a session left on its screen: of what was written over, the last."""
    lines = session.replace("\r\n", "\n").split("\n")
    kept = [next(filter(None, reversed(line.split("\r"))), "") for line in lines]
    return [re.sub(r"\x1b\[A", "", line) for line in kept if not line.startswith("Script ")]


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("session", type=Path, help="what `script` recorded")
    parser.add_argument("picture", type=Path, help="the SVG file to write")
    parser.add_argument("--title", default="", help="of the window")
    parser.add_argument("--last", type=int, default=40, help="lines that are shown (40)")
    parser.add_argument("--leave", type=int, default=0, help="lines at the end that are left out (0)")
    parser.add_argument("--width", type=int, default=120, help="columns (120)")
    options = parser.parse_args()
    lines = shown(options.session.read_text(encoding="utf-8")).copy()
    while lines and not lines[-1].strip():
        lines.pop()
    console = Console(record=True, width=options.width, file=io.StringIO(), force_terminal=True)
    for line in lines[: len(lines) - options.leave][-options.last :]:
        console.print(Text.from_ansi(line), crop=True, no_wrap=True, overflow="crop")
    console.save_svg(str(options.picture), title=options.title, code_format=FORMAT)


if __name__ == "__main__":
    main()
