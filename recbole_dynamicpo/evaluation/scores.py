"""From scores to ranks: one rule for ties, for every table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Scores compared at once: a copy of all scores of a large catalogue would take as much memory again.
_COMPARED = 1 << 22


def break_ties(scores: Tensor) -> Tensor:
    """Return (B, C) scores without ties: of equal ones, that of an earlier place is the higher.

    Places are random, so nobody gains; were the item chosen to win every tie, titles that score alike
    would look well ranked. The lower scores of a tie move by the least that their type can tell apart.
    """
    ordered, order = scores.sort(dim=1, descending=True, stable=True)
    lowest = torch.full_like(ordered[:, 0], -torch.inf)
    columns = [ordered[:, 0]]
    for place in range(1, ordered.shape[1]):
        columns.append(torch.minimum(ordered[:, place], torch.nextafter(columns[-1], lowest)))
    return torch.empty_like(scores).scatter_(1, order, torch.stack(columns, dim=1))


def ranks_of(scores: Tensor, rows: Tensor, items: Tensor) -> Tensor:
    """Return (n,) 1 + how many items of a row score strictly higher than the one chosen.

    Args:
        scores: (B, item_num), -inf for what is no candidate.
        rows: (n,) rows of ``scores``.
        items: (n,) the items chosen.
    """
    rows, items = rows.to(scores.device), items.to(scores.device)
    mine = scores[rows, items]
    some = max(1, _COMPARED // scores.shape[1])
    better = [
        (scores[rows[start : start + some]] > mine[start : start + some, None]).sum(dim=1)
        for start in range(0, len(rows), some)
    ]
    return 1 + torch.cat(better) if better else rows


def candidate_ranks(scores: NDArray[Any], targets: Sequence[int]) -> NDArray[np.int64]:
    """Return (n,) 1 + candidates that score strictly higher than the target, as in a run's own evaluation.

    Args:
        scores: (n, C), -inf where a row has fewer candidates.
        targets: (n,) places of the targets.
    """
    chosen = np.take_along_axis(scores, np.array(targets)[:, None], axis=1)
    ranks: NDArray[np.int64] = 1 + (scores > chosen).sum(axis=1)
    return ranks


def popularity_scores(counts: Tensor, present: Tensor) -> Tensor:
    """Return (B, C) scores that rise with ``counts``, no two equal, -inf where not ``present``.

    Equally popular candidates rank in their order in the prompt, which is random: were they left tied,
    the item chosen would win every tie and popularity would look better than it is.
    """
    width = counts.shape[1]
    keys = counts.double() * width - torch.arange(width)
    order = keys.masked_fill(~present, -torch.inf).argsort(dim=1, stable=True)
    return order.argsort(dim=1).float().masked_fill(~present, -torch.inf)
