"""What subcommands share: how one is added, and the arguments that choose data and settings."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

Action = Callable[[argparse.Namespace], None]


def add_command(
    commands: Any, name: str, action: Action, text: str, settings: bool = False
) -> argparse.ArgumentParser:
    """Return the parser of one more subcommand; one with ``settings`` also takes --key=value arguments.

    Args:
        commands: argparse's subparsers.
        name: of the subcommand.
        action: runs it, with the parsed options.
        text: what it does, for the help.
        settings: whether it takes settings.
    """
    more = ""
    if settings:
        more = (
            " Further --key=value arguments are settings, as for run_recbole; those that choose and filter "
            "the data must be the ones of the run that the figures are compared with."
        )
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text}.{more}", allow_abbrev=False
    )
    parser.set_defaults(action=action, takes_settings=settings)
    return parser


def add_model(parser: argparse.ArgumentParser, *, plain: bool = False) -> None:
    """Add the argument that names a saved recommender.

    Args:
        parser: of the subcommand.
        plain: whether it takes plain adapters, too.
    """
    more = ", or the folder of a plain PEFT adapter" if plain else ""
    parser.add_argument(
        "--model",
        required=True,
        help="folder of a run, recommender folder in it, models:/... or runs:/..., an id of the Hugging Face "
        f"hub (owner/repository/folder@revision){more}",
    )


def add_data(parser: argparse.ArgumentParser, *, plain: bool = False) -> None:
    """Add the arguments that name a data set and settings files.

    Args:
        parser: of the subcommand.
        plain: whether only a plain adapter wants them.
    """
    more = ", whose titles and settings a plain adapter speaks with; wanted for one, and for nothing else"
    parser.add_argument("--dataset", required=not plain, help=f"name of the data set{more if plain else ''}")
    parser.add_argument("--data-path", help="folder of the data sets (default: dataset/)")
    parser.add_argument("--config_files", default="", help="YAML files, separated by spaces")


def settings_of(options: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Return the settings files and the overrides of a subcommand that takes settings."""
    from ..host.config import parse_overrides

    overrides = parse_overrides(options.settings)
    if options.data_path is not None:
        overrides["data_path"] = options.data_path
    return options.config_files.split(), overrides
