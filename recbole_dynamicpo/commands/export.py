"""``recbole-dynamicpo export``: a saved adapter merged into the weights of its backbone."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .arguments import add_command, add_model


def add(commands: Any) -> None:
    """Add the subcommand."""
    text = "merge a saved adapter into its backbone's weights, for engines that know no adapters"
    parser = add_command(commands, "export", _run, text)
    add_model(parser)
    parser.add_argument("--merged", type=Path, required=True, help="new folder that takes the whole model")


def _run(options: argparse.Namespace) -> None:
    from ..serving.export import GRAMMAR_FILE, TITLES_FILE, check_new, export_merged
    from ..serving.recommender import load_recommender

    check_new(options.merged)  # before the model is loaded, which takes longest
    export_merged(load_recommender(options.model), options.merged)
    print(
        f"{options.merged}: a model of transformers; {TITLES_FILE} has the tokens of every title, "
        f"{GRAMMAR_FILE} a grammar of all"
    )
