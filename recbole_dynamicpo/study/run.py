"""A study run in this process: cell after cell, each kept as a file, within hours if so asked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import pipeline
from ..errors import DynamicPOError, SettingsError
from ..job import Job, check, place_of
from ..names import STAGES
from ..stage_results import StageResult, code_digest
from ..storage import locked
from .grid import Cell, cells
from .results import Result, cell_result, keep, keep_error, kept_cells, other_ingredients

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Study:
    """What is asked for.

    Attributes:
        job: what all cells have in common; its store holds the results of their stages.
        axes: values of each axis of the grid.
        home: folder of the study.
    """

    job: Job
    axes: Mapping[str, Sequence[Any]]
    home: Path

    def job_of(self, cell: Cell) -> Job:
        """Return the job of a cell, which registers no model."""
        own = {**cell.settings(self.axes), "register": False}
        return replace(self.job, overrides={**self.job.overrides, **own})


@dataclass(frozen=True)
class Outcome:
    """How far a study is, as names of cells."""

    done: list[str]
    failed: list[str]
    left: list[str]


def run_study(
    study: Study, hours: float | None = None, tell: Callable[[str], object] = logger.info
) -> Outcome:
    """Run the cells that are not done yet; a study that was killed goes on where it was.

    Args:
        study: to be run.
        hours: begin no cell that would not fit into so many, by what cells took so far; None: no limit.
        tell: is told of each cell.

    Raises:
        DynamicPOError: a cell cannot be run, before any is begun.
        SettingsError: the folder holds cells of other settings.
        LockedError: another process works in the folder.
    """
    todo = cells(study.axes)
    for cell in todo:
        check(study.job_of(cell))
    end = None if hours is None else time.monotonic() + 3600 * hours
    with locked(study.home, wait=False):
        known = {_name(found): found for found in kept_cells(study.home) if "error" not in found}
        _warn_of_other_code(known.values())
        failed: list[str] = []
        for place, cell in enumerate(todo):
            if end is not None and time.monotonic() + _expected(cell, known) > end:
                tell(f"no time for {cell.name} and {len(todo) - place - 1} after it")
                break
            tell(f"{place + 1} of {len(todo)}: {cell.name}")
            result = _attempt(study, cell, known.get(cell.name))
            if result is None:
                failed.append(cell.name)
            else:
                known[cell.name] = result
    names = [cell.name for cell in todo]
    done = [name for name in names if name in known]
    return Outcome(done, failed, [name for name in names if name not in (*done, *failed)])


def _name(found: Result) -> str:
    return Cell(found["objective"], found["dynamic"], found["num_negatives"], found["seed"]).name


def _warn_of_other_code(found: Any) -> None:
    other = [_name(result) for result in found if result["code"] != code_digest()]
    if other:
        logger.warning("made by other code than this, and taken as they are: %s", ", ".join(other))


def _attempt(study: Study, cell: Cell, kept: Result | None) -> Result | None:
    """Return the result of a cell: as it was kept, else run; None where it failed, which is kept too."""
    job = study.job_of(cell)
    if kept is not None:
        _refuse_others(study.home, kept, pipeline.prepare(job))
        return kept
    try:
        result = run_cell(cell, job)
        keep(study.home, cell, result)
    except Exception as error:  # whatever a cell dies of, the others are run
        logger.warning("cell %s failed", cell.name, exc_info=not isinstance(error, DynamicPOError))
        keep_error(study.home, cell, error)
        return None
    return result


def _refuse_others(home: Path, kept: Result, prepared: StageResult) -> None:
    other = other_ingredients(kept, prepared.outputs["ingredients"])
    if other:
        raise SettingsError(
            f"{home}: holds cells of a study with other {', '.join(other)}; wanted the same settings, or "
            "another --out"
        )


def run_cell(cell: Cell, job: Job) -> Result:
    """Run the stages of a cell that are not done yet and return its figures, with seconds by stage."""
    prepared, seconds = pipeline.prepare(job), {}
    for stage in (*STAGES, "evaluate"):
        started = time.monotonic()
        if stage == "evaluate":
            pipeline.evaluate(job, prepared)
        else:
            pipeline.train(job, stage, prepared)
        seconds[stage] = time.monotonic() - started
    folders = {stage: place_of(prepared, stage)[1] for stage in (*STAGES, "evaluate")}
    result = cell_result(cell, folders, prepared.outputs["ingredients"])
    return {**result, "seconds": seconds}


def _expected(cell: Cell, known: Mapping[str, Result]) -> float:
    """Return the seconds that a cell is expected to take: the most that its like took, 0 if kept."""
    if cell.name in known:
        return 0.0
    spent = [(one["num_negatives"], one["seconds"]) for one in known.values()]
    every = [(width, seconds["preference"] + seconds["evaluate"]) for width, seconds in spent]
    like = [seconds for width, seconds in every if width >= cell.num_negatives]
    sft = 0.0
    if all(one["seed"] != cell.seed for one in known.values()):
        sft = max((seconds["sft"] for _, seconds in spent), default=0.0)
    return max(like or [seconds for _, seconds in every], default=0.0) + sft
