"""``recbole-dynamicpo demo``: a page on this machine that ranks for the titles one picks."""

from __future__ import annotations

import argparse
from typing import Any

from .arguments import add_command, add_model


def add(commands: Any) -> None:
    """Add the subcommand."""
    text = "show a page on this machine that ranks the catalogue for the titles one picks (extra demo)"
    parser = add_command(commands, "demo", _run, text)
    add_model(parser)
    parser.add_argument(
        "--port",
        type=int,
        default=7860,
        help="of 127.0.0.1, where the page is shown to this machine alone (7860)",
    )


def _run(options: argparse.Namespace) -> None:
    from ..serving.demo import find_gradio, load_demo, serve

    find_gradio()  # before the model is loaded, which takes longest
    serve(load_demo(options.model), options.port)
