"""``recbole-dynamicpo sync``: send MLflow what it does not have yet of a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .arguments import add_command


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(commands, "sync", _run, "send MLflow what it does not have yet of a run")
    parser.add_argument("run", type=Path, help="folder of a run, as in saved/")
    parser.add_argument(
        "--mlflow-tracking-uri",
        help="MLflow server or database (default: where the run was recorded; else MLFLOW_TRACKING_URI, else "
        "mlflow.db in the present folder)",
    )


def _run(options: argparse.Namespace) -> None:
    from ..tracking.registry import register_model, wants_registration
    from ..tracking.sync import recorded_at, sync

    uri = options.mlflow_tracking_uri or recorded_at(options.run)
    run_id = sync(options.run, uri)
    print(f"MLflow has all of {options.run}: run {run_id}")
    if wants_registration(options.run):
        print(register_model(options.run, uri).line)
