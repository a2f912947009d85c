"""``recbole-dynamicpo study``: the collapse and its cure, over the number of negatives."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import DynamicPOError, SettingsError, StoppedError
from .arguments import add_command, add_data, settings_of

# What the cells have in common, and the grid; both are shipped.
SETTINGS, GRID = "collapse.yaml", "study/collapse.yaml"


def add(commands: Any) -> None:
    """Add the subcommand."""
    text = "run a grid over the number of negatives, plain and dynamic, and compare its cells"
    parser = add_command(commands, "study", _run, text, settings=True)
    add_data(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("study"),
        help="folder of the cells, the table and the figure; a study in it is gone on with",
    )
    parser.add_argument(
        "--grid", default=GRID, help="YAML file with the values of each axis, or a shipped one"
    )
    parser.add_argument("--seeds", type=int, help="so many seeds from the grid's first on")
    parser.add_argument(
        "--hours", type=float, help="begin no run that would not fit into so many; 0: only show what there is"
    )
    parser.add_argument(
        "--search",
        type=int,
        metavar="TRIALS",
        help="run no grid, but search beta, margin and learning rate on validation rows in so many trials",
    )


def _run(options: argparse.Namespace) -> None:
    if options.search is not None:
        _search(options)
        return
    from ..study.report import write_study
    from ..study.run import run_study

    study = _study_of(options)
    try:
        outcome = run_study(study, options.hours, tell=lambda text: print(text, flush=True))
    except StoppedError:
        raise StoppedError(f"stopped; the same command goes on with the study in {options.out}") from None
    said = write_study(options.out, study.job.dataset)
    print(f"{len(outcome.done)} runs done, {len(outcome.failed)} failed, {len(outcome.left)} left")
    print(said)
    print(f"table and figure: {options.out}")
    if outcome.failed:
        names = ", ".join(outcome.failed)
        raise DynamicPOError(f"{len(outcome.failed)} runs failed, see {options.out}: {names}")


def _study_of(options: argparse.Namespace) -> Any:
    """Return the study that is asked for."""
    from ..host.config import read_settings_files
    from ..job import Job
    from ..study.grid import DEFAULT, read_grid, shipped_path
    from ..study.run import Study

    _check_numbers(options)
    files, overrides = settings_of(options)
    files = [shipped_path(SETTINGS), *files]
    said: Mapping[str, Any] = {**read_settings_files(files), **overrides}
    given = {name: _values(said[name]) for name in DEFAULT if name in said}
    axes = read_grid(shipped_path(options.grid), given)
    if options.seeds is not None:
        axes["seed"] = [axes["seed"][0] + number for number in range(options.seeds)]
    kept = {name: value for name, value in overrides.items() if name not in DEFAULT}
    job = Job("DynamicPO", options.dataset, tuple(files), kept, str(options.out / "saved"))
    return Study(job, axes, options.out)


def _check_numbers(options: argparse.Namespace) -> None:
    for name, least in (("seeds", 1), ("search", 1), ("hours", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise SettingsError(f"--{name}: got {value:g}, wanted at least {least}")


def _search(options: argparse.Namespace) -> None:
    """Search, and say which settings are best."""
    from ..job import Job
    from ..study.grid import shipped_path
    from ..study.search import search

    _check_numbers(options)
    files, overrides = settings_of(options)
    own = (shipped_path(SETTINGS), *files)
    job = Job("DynamicPO", options.dataset, own, {**overrides, "register": False}, str(options.out / "saved"))
    try:
        found = search(job, options.out, options.search, options.hours, lambda text: print(text, flush=True))
    except StoppedError:
        raise StoppedError(f"stopped; the same command goes on with the search in {options.out}") from None
    words = " ".join(f"--{name}={value:.6g}" for name, value in found["settings"].items())
    print(f"best of {found['trials']} trials on validation rows, {found['valid_score']:.4f}: {words}")


def _values(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
