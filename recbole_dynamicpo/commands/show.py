"""``recbole-dynamicpo show``: what a run left, in the terminal or as one HTML page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .arguments import add_command


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(commands, "show", _run, "show the tables, curves and settings of a run")
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument(
        "--segments",
        action="store_true",
        help="also by popularity of the target and by length of the history",
    )
    parser.add_argument(
        "--all-settings",
        action="store_true",
        help="all settings, not only those that differ from the defaults",
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write all of it, with figures, as one HTML file that fetches nothing, and print nothing else",
    )


def _run(options: argparse.Namespace) -> None:
    from ..tracking.shown import read_run

    run = read_run(options.run)
    if options.html is not None:
        from ..tracking.page import write_page

        write_page(run, options.html)
        print(options.html)
        return
    print("\n".join(_lines(run, options.segments, options.all_settings)))


def _lines(run: Any, parts: bool, everything: bool) -> Iterator[str]:
    from ..errors import DataError
    from ..evaluation.report import REPORT_FILE
    from ..tracking.shown import BLOCKS, PLAIN, curve_lines, setting_lines

    report = run.report
    try:
        yield from _tables(report, parts)
        yield from curve_lines(run, BLOCKS if _writes(BLOCKS) else PLAIN)
        ours, theirs = run.settings()
        if everything:
            yield from ["settings:", *setting_lines({**ours, **theirs})]
        elif ours:
            yield from [
                "settings that differ from the defaults:",
                *(setting_lines(run.changed()) or ["none"]),
            ]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{run.folder / REPORT_FILE}: not a readable report ({error!r})") from error


def _tables(report: Mapping[str, Any], parts: bool) -> Iterator[str]:
    from ..evaluation.exposure import KEY, beyond_lines, beyond_segment_lines
    from ..evaluation.report import VIEWS, table_lines
    from ..evaluation.segments import segment_lines

    for among, view in VIEWS.items():
        if view.key not in report:
            continue
        yield f"among {view.among}"
        yield from table_lines(report[view.key], view)
        beyond = report.get(KEY, []) if among == "all" else []
        yield from beyond_lines(beyond)
        if parts:
            yield from segment_lines(report["segments"][among], view)
            yield from beyond_segment_lines(beyond)
    yield "time: " + ", ".join(f"{name} {spent:.0f} s" for name, spent in report["seconds"].items())
    yield from report["notes"]


def table_text(folder: Path) -> str:
    """Return the tables of a run's evaluation, and what a reader of them has to know."""
    from ..tracking.shown import read_run

    return "\n".join(_tables(read_run(folder).report, parts=False))


def _writes(text: str) -> bool:
    """Say whether the terminal's encoding has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
