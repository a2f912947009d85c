"""docs/commands.md, made of the parsers: python scripts/commands_page.py [--check]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recbole_dynamicpo.cli import make_parser
from recbole_dynamicpo.commands import run

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"

BAR = "\\|"  # within a table

HEAD = """# Commands

Made of the commands' own parsers by `scripts/commands_page.py`; `--help` says the same. Settings are those
of [settings.md](settings.md), given as `--key=value`. Exit status: 0 done; 2 bad input, which a line on the
error output names; 130 interrupted; 141 whoever read the output has gone; 143 stopped by SIGTERM.
"""


def page() -> str:
    """Return the whole page."""
    parts = [HEAD, *_command(run.make_parser(), takes_settings=True)]
    for parser in _subcommands(make_parser()).values():
        parts += _command(parser, takes_settings=parser.get_default("takes_settings"))
    return "\n".join(parts)


def _subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (found,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


def _command(parser: argparse.ArgumentParser, takes_settings: bool) -> Iterator[str]:
    """Yield a heading, what the command does, and a table of what it takes."""
    text = (parser.description or "").replace("--key=value", "`--key=value`")
    yield f"## {parser.prog}\n\n{text[:1].upper()}{text[1:]}\n"
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    if actions:
        yield "| argument | meaning |\n|---|---|"
        yield from map(_row, actions)
        if takes_settings:
            yield "| `--KEY=VALUE` | any setting |"
        yield ""


def _row(action: argparse.Action) -> str:
    names = ", ".join(f"`{_shown(name, action)}`" for name in action.option_strings) or f"`{action.dest}`"
    said = " ".join((action.help or "").split())
    notes = ["required"] if action.required and action.option_strings else []
    if action.choices is not None:
        notes.append("one of " + ", ".join(map(str, action.choices)))
    told = "default" in said or f"({action.default})" in said
    if action.default not in (None, "", False, -1) and not told:
        notes.append(f"default: {action.default}")
    text = said + (f" ({'; '.join(notes)})" if notes else "")
    return f"| {names} | {text.replace('|', BAR)} |"


def _shown(name: str, action: Any) -> str:
    """Return an option as it is typed."""
    value = "N" if action.type in (int, float) else action.dest.upper()
    return str(name) if action.nargs == 0 else f"{name} {value}"


def main() -> int:
    """Write the page, or say with --check whether it is as it would be written."""
    parser = argparse.ArgumentParser(description="Write docs/commands.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if it is not current")
    if parser.parse_args().check:
        current = PAGE.read_text(encoding="utf-8") == page()
        print(f"{PAGE.name}: {'current' if current else 'not current: python scripts/commands_page.py'}")
        return 0 if current else 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
