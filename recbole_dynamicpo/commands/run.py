"""``run_recbole``: train and test a RecBole model; ``recbole-dynamicpo stage``: one stage of a job."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import SettingsError
from ..names import MODEL_NAMES
from ..parallel import environment_of, here, torchrun
from .arguments import add_command


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments that are no settings."""
    parser = argparse.ArgumentParser(
        prog="run_recbole",
        description="Train and test a RecBole model; settings are given as --key=value.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        "-m",
        help="DynamicPO, SFTRec, DMPO, MPPO, SDPO or any of RecBole's; default: that of the files, of "
        "the run to resume, else BPR",
    )
    parser.add_argument(
        "--dataset",
        "-d",
        help="name of the data set; default: that of the files, of the run to resume, else ml-100k",
    )
    parser.add_argument("--config_files", default="", help="YAML files, separated by spaces")
    parser.add_argument(
        "--quiet", action="store_true", help="no bars and no log: the result alone, at its end"
    )
    parser.add_argument("--nproc", type=int, default=1, help="processes on this machine")
    parser.add_argument("--ip", default="localhost", help="address of the first machine")
    parser.add_argument("--port", default="5678", help="its port")
    parser.add_argument("--world_size", type=int, default=-1, help="processes on all machines")
    parser.add_argument("--group_offset", type=int, default=0, help="rank of this machine's first process")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Run a model with the arguments of RecBole's own script."""
    known, rest = make_parser().parse_known_args(arguments)
    from ..host.config import parse_overrides, plain_config, read_settings_files
    from ..host.run import run as run_model
    from ..host.run import run_distributed

    overrides, files = parse_overrides(rest), known.config_files.split()
    in_files = read_settings_files(files)
    begun = _of_the_run({**in_files, **overrides}.get("resume"))
    said = {"model": "BPR", "dataset": "ml-100k", **begun, **in_files}
    model, dataset = known.model or str(said["model"]), known.dataset or str(said["dataset"])
    if known.quiet:
        overrides |= {"show_progress": False, "state": "WARNING"}
    if known.nproc == 1 and known.world_size <= 0:
        found = run_model(model, dataset, files, overrides)
        if known.quiet and here().first:
            _show(found)
        return
    if model in MODEL_NAMES:
        plain_config(model, dataset, files, overrides)  # what is wrong is said before anything starts
        again = [f"--model={model}", f"--dataset={dataset}", f"--config_files={known.config_files}"]
        _start(known, [*again, *(["--quiet"] if known.quiet else []), *rest])
    place = {"ip": known.ip, "port": known.port, "nproc": known.nproc, "offset": known.group_offset}
    place["world_size"] = known.nproc if known.world_size == -1 else known.world_size
    run_distributed(model, dataset, files, {**overrides, **place})


def _of_the_run(folder: Any) -> dict[str, Any]:
    """Return model and data set of a run that is gone on with; nothing where none is, or none is recorded."""
    from ..tracking.record import settings_of_run

    then = settings_of_run(Path(folder)) if isinstance(folder, str) and folder else {}
    return {name: then[name] for name in ("model", "dataset") if name in then}


def _show(found: Mapping[str, Any]) -> None:
    """Print what a run came to: the tables of ours and what became of the model, metrics of others."""
    if "run_folder" not in found:
        print(f"test result: {found['test_result']}")
        return
    from .show import table_text

    print(table_text(Path(found["run_folder"])))
    if "published" in found:
        print(found["published"])


def _start(known: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Become the torchrun that runs one of our models in several processes.

    Raises:
        SettingsError: the machines have not all the same number of processes.
    """
    world, nproc = max(known.world_size, known.nproc), known.nproc
    if nproc < 1:
        raise SettingsError(f"nproc: got {nproc}, wanted a whole number of at least 1")
    if world % nproc or known.group_offset % nproc:
        raise SettingsError(
            f"world_size {known.world_size}, group_offset {known.group_offset}: wanted multiples of nproc, "
            f"{nproc}, as each machine has as many processes"
        )
    machines, machine = world // nproc, known.group_offset // nproc
    command = torchrun(
        arguments, nproc, machines=machines, machine=machine, address=known.ip, port=known.port
    )
    os.execve(command[0], command, environment_of(nproc, machines))


def add(commands: Any) -> None:
    """Add the subcommand ``stage``."""
    parser = add_command(
        commands, "stage", _run_stage, "run one stage of a job; deployments with nproc start it by torchrun"
    )
    parser.add_argument(
        "--question", type=Path, required=True, help="JSON file with the job, the stage and what was prepared"
    )


def _run_stage(options: argparse.Namespace) -> None:
    from ..parallel import join
    from ..pipeline import evaluate, train
    from ..stage_processes import read_question, tell

    job, stage, prepared = read_question(options.question)
    progress = tell if join().first else None
    if stage == "evaluate":
        evaluate(job, prepared, progress=progress)
    else:
        train(job, stage, prepared, progress=progress)
