"""Finished runs with an adapter and the ranks of their validation rows, ready to be registered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_dynamicpo.evaluation.ranks import COUNTING, POPULARITY, valid_ranks_file, write_ranks
from recbole_dynamicpo.serving import gate
from recbole_dynamicpo.serving.gate import Verdict
from recbole_dynamicpo.storage import write_json
from recbole_dynamicpo.tracking.record import PROBE_FILE
from recbole_dynamicpo.tracking.sync import sync

from .run_folders import PARAMS, RunFolder, toy_record
from .saved_recommender import TITLES, write_recommender

NAME = "dynamicpo-toy"  # of the registered model
ROWS = [{"history": [TITLES[0]], "candidates": ["Canyon", "Delta", "Amber"]}]
PASSED = Verdict(rows=1, largest_difference=0.0, reasons=[], dtype="float32", device="cpu")
# Of 120 rows, ranked among 6 candidates. Good is first in 100 of them, fair in 80, popularity in 40.
GOOD, FAIR, POPULAR = ([1] * first + [4] * (120 - first) for first in (100, 80, 40))


def always_passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the gate find no difference, without a process; return the models that it will be asked about."""
    asked: list[str] = []

    def answer(folder: Path, model: str, *rest: Any) -> Verdict:
        asked.append(model)
        return PASSED

    monkeypatch.setattr(gate, "ask", answer)
    return asked


def write_valid_ranks(
    folder: Path,
    ranks: Sequence[int],
    popular: Sequence[int] | None = None,
    *,
    stage: str = "preference",
    **rows: str,
) -> None:
    """Write the ranks of validation rows as training leaves them; ``rows`` are digests by name.

    Popularity has the item chosen first in a third of them, unless its ranks are given.
    """
    first = len(ranks) // 3
    popular = [1] * first + [4] * (len(ranks) - first) if popular is None else popular
    names = [str(row) for row in range(len(ranks))]
    digests = {"users": "u", "histories": "h", "targets": "t", "candidates": "c", "places": "p", **rows}
    for name, found in ((stage, ranks), (POPULARITY, popular), (COUNTING, popular)):
        write_ranks(folder / valid_ranks_file(name), names, names, np.array(found), digests)


def make_run(
    path: Path,
    backbone: Path,
    uri: str | None,
    *,
    valid: float = 0.75,
    seed: int = 3,
    ranks: Sequence[int] | None = GOOD,
    rows: Mapping[str, str] | None = None,
    described: Mapping[str, Any] | None = None,
    **params: Any,
) -> Path:
    """Write a finished run with an adapter and send it to a store.

    Args:
        path: of its folder.
        backbone: of its adapter.
        uri: of the store; None: it is not sent.
        valid: best NDCG@5 of its validations.
        seed: of the adapter's weights.
        ranks: of its validation rows; None: it leaves none.
        rows: digests of its validation rows, by name.
        described: what else its record says.
        params: settings of its record.
    """
    record = toy_record(params={**PARAMS, **params}, **(described or {}))
    folder = RunFolder(path, record).whole()
    folder.add("preference", 5, "valid", ndcg_at_5=valid)
    write_recommender(path / "preference", backbone, seed=seed)
    write_json(path / PROBE_FILE, ROWS)
    if ranks is not None:
        write_valid_ranks(path, ranks, **(rows or {}))
    if uri:
        sync(path, uri)
    return path
