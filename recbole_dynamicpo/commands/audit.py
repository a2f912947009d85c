"""``recbole-dynamicpo audit``: what a data set gives away of its targets, before any model is trained."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .arguments import add_command, add_data, settings_of


def add(commands: Any) -> None:
    """Add the subcommand."""
    text = "say what the candidate lists, the order and the splits of a data set give away of its targets"
    parser = add_command(commands, "audit", _run, text, settings=True)
    add_data(parser)
    parser.add_argument("--json", type=Path, help="write the figures into this file")


def _run(options: argparse.Namespace) -> None:
    from ..host.audit import audit_data
    from ..storage import write_json

    found, notes = audit_data(options.dataset, *settings_of(options))
    for line in notes:
        print(line)
    print(found.table())
    findings = found.findings()
    print("\n".join(f"- {line}" for line in findings) if findings else "nothing gives the targets away")
    if options.json:
        write_json(options.json, found.to_json())
