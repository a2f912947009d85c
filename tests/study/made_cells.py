"""Cells of a study as runs leave them, with ranks that are given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recbole_dynamicpo.evaluation.ranks import RANKS_FILE, write_ranks
from recbole_dynamicpo.storage import write_json
from recbole_dynamicpo.study.grid import Cell
from recbole_dynamicpo.study.results import cell_result
from recbole_dynamicpo.tracking.journal import Journal


def made_cell(home: Path, cell: Cell, ranks: Sequence[int], **more: Any) -> dict[str, Any]:
    """Return the result of a cell that ranks its rows so; the loss of step n of 8 is n, shares are 1 / n."""
    folders = {stage: home / cell.name / stage for stage in ("preference", "evaluate")}
    names = [str(row) for row in range(len(ranks))]
    write_ranks(folders["evaluate"] / RANKS_FILE, names, names, np.array(ranks), {"users": "u"})
    write_json(folders["evaluate"] / "report.json", {"contestants": [{"name": "after DynamicPO"}]})
    journal = Journal(folders["preference"] / "metrics.jsonl")
    for step in range(1, 9):
        shares = {"violation_gradient_share": 1 / step, "boundary_gradient_share": 1.0}
        journal.write("preference", step, "train", {"loss": float(step), **shares})
    return {**cell_result(cell, folders, {"seed": cell.seed, "fact.data": "d"}), **more}


def ranks_with(hits: int, rows: int = 200) -> list[int]:
    """Return ranks of which the first so many are 1, the others 3."""
    return [1] * hits + [3] * (rows - hits)
