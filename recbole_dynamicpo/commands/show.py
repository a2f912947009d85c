"""``recbole-dynamicpo show``: the tables that a run left, and where each contestant ranks well."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .arguments import add_command


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(commands, "show", _run, "show the tables of a run")
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument(
        "--segments",
        action="store_true",
        help="also by popularity of the target and by length of the history",
    )


def _run(options: argparse.Namespace) -> None:
    print("\n".join(_lines(options.run, options.segments)))


def _lines(run: Path, parts: bool) -> Iterator[str]:
    from ..errors import DataError
    from ..evaluation.report import REPORT_FILE, VIEWS, read_report, table_lines
    from ..evaluation.segments import segment_lines

    report = read_report(run)
    try:
        for among, view in VIEWS.items():
            if view.key not in report:
                continue
            yield f"among {view.among}"
            yield from table_lines(report[view.key], view)
            if parts:
                yield from segment_lines(report["segments"][among], view)
        yield "time: " + ", ".join(f"{name} {spent:.0f} s" for name, spent in report["seconds"].items())
        yield from report["notes"]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{run / REPORT_FILE}: not a readable report ({error!r})") from error
