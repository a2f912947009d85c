"""What a cell of a study leaves: its figures as JSON, and the rank of every test row beside them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.by_user import share_interval
from ..evaluation.ranks import RANKS_FILE, read_ranks, write_ranks
from ..evaluation.report import read_report
from ..evaluation.statistics import bootstrap_interval, hit_at, ndcg_at, reciprocal_rank
from ..ingredients import Ingredients, differing
from ..stage_results import code_digest
from ..storage import load_json, set_aside, sha256_file, write_json
from ..tracking.journal import Journal
from ..tracking.record import JOURNAL_FILE
from .grid import Cell

logger = logging.getLogger(__name__)

CELLS = "cells"  # folder of a study that holds them
# Of the last steps, whose mean loss is that at the end of training.
_LAST = 0.25
# What the journal's steps say of a gradient, and how it is called here.
_SHARES = {"violated": "violation_gradient_share", "boundary": "boundary_gradient_share"}

Result = dict[str, Any]


def cell_result(cell: Cell, folders: Mapping[str, Path], values: Mapping[str, Any]) -> Result:
    """Return the figures of a cell that was run.

    Args:
        cell: of the grid.
        folders: of its stages ``preference`` and ``evaluate``, with their journals and results.
        values: the ingredients of its run.

    Raises:
        DataError: the evaluation's ranks or report cannot be read.
    """
    kept = read_ranks(folders["evaluate"])
    ranks, users = kept.ranks, np.array(kept.user_ids)
    hits = hit_at(ranks, 1)
    found: dict[str, Any] = {"rows": len(ranks), "hr_at_1": float(hits.mean())}
    found["hr_at_1_low"], found["hr_at_1_high"] = share_interval(hits, users)
    for name, each in (("ndcg_at_5", ndcg_at(ranks, 5)), ("mrr", reciprocal_rank(ranks))):
        found[name] = float(each.mean())
        found[f"{name}_low"], found[f"{name}_high"] = bootstrap_interval(each, users)
    return {
        **asdict(cell),
        **found,
        **_training(Journal(folders["preference"] / JOURNAL_FILE).entries()),
        "ranked": read_report(folders["evaluate"])["contestants"][-1]["name"],
        "ranks": str(folders["evaluate"] / RANKS_FILE),
        "ingredients": dict(values),
        "code": code_digest(),
    }


def _training(entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the loss at the end, and the mean gradient shares of all steps; None where there are none."""
    steps = [entry for entry in entries if entry["kind"] == "train"]
    last = steps[-max(1, round(_LAST * len(steps))) :]
    found: dict[str, Any] = {"training_loss": _mean(last, "loss"), "steps": len(steps)}
    return {**found, **{name: _mean(steps, key) for name, key in _SHARES.items()}}


def _mean(entries: Iterable[Mapping[str, Any]], name: str) -> float | None:
    values = [entry[name] for entry in entries if name in entry]
    return float(np.mean(values)) if values else None


def keep(home: Path, cell: Cell, result: Result) -> None:
    """Write what a cell left below ``home``, its ranks first: a cell counts once its JSON is there."""
    folder = home / CELLS
    kept, ranks = folder / f"{cell.name}.parquet", read_ranks(Path(result["ranks"]))
    write_ranks(kept, ranks.row_ids, ranks.user_ids, ranks.ranks, ranks.rows)
    own = {"ranks": kept.name, "ranks_sha256": sha256_file(kept)}
    write_json(folder / f"{cell.name}.json", {**result, **own})


def keep_error(home: Path, cell: Cell, error: Exception) -> None:
    """Write why a cell failed; it is run again when the study goes on."""
    text = f"{type(error).__name__}: {error}"
    write_json(home / CELLS / f"{cell.name}.json", {**asdict(cell), "error": text})


def kept_cells(home: Path) -> Iterator[Result]:
    """Yield the cells that a study has left, those that failed with their ``error``.

    One that is not whole any more is moved aside with a warning. Paths of ranks are absolute.
    """
    for path in sorted((home / CELLS).glob("*.json")):
        try:
            found: Result = load_json(path)
            name = Cell(*(found[part] for part in ("objective", "dynamic", "num_negatives", "seed"))).name
            whole = name == path.stem and ("error" in found or _ranks_are_whole(path.parent, found))
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if whole:
            yield found if "error" in found else {**found, "ranks": str(path.parent / found["ranks"])}
        else:
            logger.warning("%s: damaged; now %s, and the cell is run again", path, set_aside(path))


def _ranks_are_whole(folder: Path, found: Result) -> bool:
    return sha256_file(folder / found["ranks"]) == str(found["ranks_sha256"])


def other_ingredients(found: Result, values: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings and facts in which a kept cell differs from what is asked for.

    How many negatives the reference scores at once moves scores by rounding alone: a grid may grow.
    """
    names = differing(found["ingredients"], Ingredients(values).upto("evaluate"))
    return [name for name in names if name != "reference_negatives"]
