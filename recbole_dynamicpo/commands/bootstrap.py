"""``recbole-dynamicpo bootstrap``: make what the flows need."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from .arguments import add_command


def add(commands: Any) -> None:
    """Add the subcommand."""
    text = "check what the flows need, and make their work pool, limit, automation and MLflow database"
    parser = add_command(commands, "bootstrap", _run, text)
    parser.add_argument("--gpu-runs", type=int, default=1, help="training tasks at a time (default: 1)")
    parser.add_argument("--free-gb", type=float, default=2.0, help="disk space that a run needs (default: 2)")
    parser.add_argument("--deploy", action="store_true", help="also deploy the flows from this folder")


def _run(options: argparse.Namespace) -> None:
    # The flows know this package, not the other way round; and they need Prefect.
    flows = importlib.import_module("recbole_dynamicpo.flows.bootstrap")
    flows.bootstrap(flows.Options(options.gpu_runs, options.free_gb, options.deploy))
