"""``recbole-dynamicpo evaluate``: a saved adapter on a data set's test rows."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..parallel import here
from .arguments import add_command, add_data, add_model, settings_of


def add(commands: Any) -> None:
    """Add the subcommand."""
    text = "evaluate a saved adapter on a data set's test rows"
    parser = add_command(commands, "evaluate", _run, text, settings=True)
    add_model(parser)
    add_data(parser)
    parser.add_argument(
        "--protocol",
        choices=("likelihood", "generate"),
        default="likelihood",
        help="rank candidates by log-probability, or judge greedy answers as the paper does",
    )
    parser.add_argument("--rows", type=int, help="test rows, drawn by the seed; 0: all (default: eval_rows)")
    parser.add_argument("--batch-size", type=int, default=16, help="rows per batch of generation")
    parser.add_argument("--out", type=Path, help="folder for the rows' ranks, the figures and the answers")


def _run(options: argparse.Namespace) -> None:
    from ..host.saved_evaluation import evaluate_saved

    files, overrides = settings_of(options)
    if options.rows is not None:
        overrides["eval_rows"] = options.rows
    text = evaluate_saved(
        options.model,
        options.dataset,
        options.protocol,
        config_files=files,
        overrides=overrides,
        batch_size=options.batch_size,
        out=options.out,
    )
    if here().first:
        print(text)
