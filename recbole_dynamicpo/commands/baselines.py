"""``recbole-dynamicpo baselines``: counting models and one of RecBole's on the same candidates."""

from __future__ import annotations

import argparse
from typing import Any

from .arguments import add_command, add_data, settings_of


def add(commands: Any) -> None:
    """Add the subcommand."""
    text = "rank the same candidates by counting and by one of RecBole's models"
    parser = add_command(commands, "baselines", _run, text, settings=True)
    add_data(parser)
    parser.add_argument(
        "--model",
        default="SASRec",
        help="a sequential model of RecBole (default: SASRec); none: counting alone",
    )


def _run(options: argparse.Namespace) -> None:
    from ..host.baselines import run_baselines

    files, overrides = settings_of(options)
    model = None if options.model == "none" else options.model
    found = run_baselines(options.dataset, files, overrides, model)
    print(found.table)
    if model is None:
        return
    figures = ", ".join(f"{name} {value:.4f}" for name, value in found.result.items())
    print(f"{options.model}, RecBole's metrics over the candidates: {figures}")
