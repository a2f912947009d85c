"""The table at the end of a run: who ranks how well, on how many rows, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..storage import load_json
from .statistics import hit_at, mcnemar, ndcg_at, reciprocal_rank, wilson_interval

REPORT_FILE = "report.json"


@dataclass(frozen=True)
class Contestant:
    """One line of the table.

    Attributes:
        name: who ranked.
        ranks: (n,) 1-based rank of the item chosen, in each test row.
    """

    name: str
    ranks: np.ndarray[Any, Any]


def metric_name(name: str) -> str:
    """Return a metric's name as records spell it: ``hit@1`` is ``hit_at_1``."""
    return name.lower().replace("@", "_at_")


def summarize(contestant: Contestant) -> dict[str, Any]:
    """Return HR@1 with its 95 % interval, NDCG@5 and MRR, as plain numbers."""
    ranks = contestant.ranks
    hits = int(hit_at(ranks, 1).sum())
    low, high = wilson_interval(hits, len(ranks))
    return {
        "name": contestant.name,
        "rows": len(ranks),
        "hr_at_1": hits / len(ranks),
        "hr_at_1_low": low,
        "hr_at_1_high": high,
        "ndcg_at_5": float(ndcg_at(ranks, 5).mean()),
        "mrr": float(reciprocal_rank(ranks).mean()),
    }


def read_report(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the report that a run left in ``folder``.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = folder / REPORT_FILE
    try:
        lines: list[dict[str, Any]] = load_json(path)["contestants"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not a readable report ({error!r})") from error
    return lines


def paired_p(first: Contestant, second: Contestant) -> tuple[int, int, float]:
    """Return rows that only the first and only the second ranks first, and McNemar's exact p."""
    a, b = hit_at(first.ranks, 1) > 0, hit_at(second.ranks, 1) > 0
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return only_a, only_b, mcnemar(only_a, only_b)


def render(
    contestants: Sequence[Contestant],
    *,
    chance: float,
    seconds: Mapping[str, float],
    notes: Sequence[str],
) -> str:
    """Return the table as text.

    Args:
        contestants: in the order of the lines; the last one is the final model.
        chance: hit rate of a random choice; 0: not shown.
        seconds: training or evaluation time by name.
        notes: further lines: what was subsampled, where things lie.
    """
    width = max(len(c.name) for c in contestants) + 2
    lines = [f"{'':{width}}{'HR@1':>7}  {'95 % interval':^17}{'NDCG@5':>8}{'MRR':>8}{'rows':>7}"]
    for contestant in contestants:
        s = summarize(contestant)
        interval = f"[{s['hr_at_1_low']:.4f}, {s['hr_at_1_high']:.4f}]"
        lines.append(
            f"{s['name']:{width}}{s['hr_at_1']:7.4f}  {interval:^17}"
            f"{s['ndcg_at_5']:8.4f}{s['mrr']:8.4f}{s['rows']:7d}"
        )
    if chance:
        lines.append(f"{'random choice':{width}}{chance:7.4f}")
    final = contestants[-1]
    for other in contestants[:-1]:
        ours, theirs, p = paired_p(final, other)
        lines.append(
            f"{final.name} against {other.name}: first in {ours} rows that the other misses, "
            f"{theirs} the other way round, McNemar p = {p:.2g}"
        )
    if seconds:
        spent = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
        lines.append(f"time: {spent}")
    return "\n".join([*lines, *notes])
