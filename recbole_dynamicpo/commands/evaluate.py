"""``recbole-dynamicpo evaluate``: a saved model on a data set's test rows."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..names import CANDIDATE_SOURCES
from ..parallel import here
from .arguments import add_command, add_data, add_model, settings_of


def add(commands: Any) -> None:
    """Add the subcommand."""
    text = "evaluate a saved model, or a plain adapter of others, on a data set's test rows"
    parser = add_command(commands, "evaluate", _run, text, settings=True)
    add_model(parser, plain=True)
    add_data(parser)
    parser.add_argument(
        "--protocol",
        choices=("likelihood", "generate"),
        default="likelihood",
        help="rank candidates by log-probability, or judge greedy answers as the paper does",
    )
    parser.add_argument(
        "--lists",
        type=_lists,
        default=(),
        metavar="published,fresh",
        help="candidate lists of the rows: as published, in the published order, or drawn anew, in the order "
        "of our file of the data set; both: side by side (default: as the settings say)",
    )
    parser.add_argument("--rows", type=int, help="test rows, drawn by the seed; 0: all (default: eval_rows)")
    parser.add_argument("--batch-size", type=int, default=16, help="rows per batch of generation")
    parser.add_argument("--out", type=Path, help="folder for the rows' ranks, the figures and the answers")


def _lists(text: str) -> tuple[str, ...]:
    found = tuple(text.split(","))
    if not set(found) <= set(CANDIDATE_SOURCES) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"got '{text}', wanted {' or '.join(CANDIDATE_SOURCES)}, or both")
    return found


def _run(options: argparse.Namespace) -> None:
    from ..saved_models.evaluation import evaluate_saved

    files, overrides = settings_of(options)
    if options.rows is not None:
        overrides["eval_rows"] = options.rows
    text = evaluate_saved(
        options.model,
        options.dataset,
        options.protocol,
        config_files=files,
        overrides=overrides,
        lists=options.lists,
        batch_size=options.batch_size,
        out=options.out,
    )
    if here().first:
        print(text)
