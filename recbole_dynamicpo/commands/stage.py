"""``recbole-dynamicpo stage``: a stage of a job, in the processes that torchrun started for it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .arguments import add_command


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands, "stage", _run, "run one stage of a job; deployments with nproc start it by torchrun"
    )
    parser.add_argument(
        "--question", type=Path, required=True, help="JSON file with the job, the stage and what was prepared"
    )


def _run(options: argparse.Namespace) -> None:
    from ..parallel import here, join
    from ..pipeline import evaluate, train
    from ..stage_processes import read_question, tell

    job, stage, prepared = read_question(options.question)
    join()
    progress = tell if here().first else None
    if stage == "evaluate":
        evaluate(job, prepared, progress=progress)
    else:
        train(job, stage, prepared, progress=progress)
