"""From scores to ranks, by one rule for every table: titles are ranked, and ties are broken by a draw.

A tie is broken before any table of scores is made, so that ranks are whole numbers and RecBole's own metrics
see the same order. The draw is seeded by row and item alone: nobody gains by the place where an item
stands, and every contestant meets the same draw.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Scores compared at once: a copy of all scores of a large catalogue would take as much memory again.
_COMPARED = 1 << 22
# Constants of the 64-bit mixing function splitmix64 (Steele, Lea and Flood, OOPSLA 2014), as signed numbers.
_STEP, _MIX_1, _MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def tie_draws(rows: Tensor, items: Tensor) -> Tensor:
    """Return (B, C) int64 numbers that look drawn at random: the same for one row and item, always.

    Args:
        rows: (B,) int64 number of each row among all rows of the data set.
        items: (B, C) int64 item ids.
    """
    return _mixed(_mixed(rows)[:, None] ^ items)


def _mixed(value: Tensor) -> Tensor:
    value = value + _STEP
    value = (value ^ _shifted(value, 30)) * _MIX_1
    value = (value ^ _shifted(value, 27)) * _MIX_2
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, bits: int) -> Tensor:
    """Return ``value >> bits`` with zeros coming in, as torch shifts no signed number."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def settle(scores: Tensor, draws: Tensor, titles: Tensor, chosen: Tensor) -> Tensor:
    """Return (B, C) scores with one entry a title and without ties.

    Entries of one title count once, with the highest of their scores: at the item chosen, if it bears the
    title, else at the entry with the smallest draw; the others become -inf. Of equal scores that with the
    smaller draw is the higher; the others move by the least that their type can tell apart.

    Args:
        scores: (B, C), -inf where a row has fewer candidates.
        draws: (B, C) of ``tie_draws``.
        titles: (B, C) a number for each distinct title; 0 where a row has fewer candidates.
        chosen: (B, C) bool: the item chosen; at most one a row.
    """
    scores = _one_a_title(scores, draws, titles, chosen)
    by_draw = draws.argsort(dim=1)
    ordered, order = scores.gather(1, by_draw).sort(dim=1, descending=True, stable=True)
    lowest = torch.full_like(ordered[:, 0], -torch.inf)
    columns = [ordered[:, 0]]
    for place in range(1, ordered.shape[1]):
        columns.append(torch.minimum(ordered[:, place], torch.nextafter(columns[-1], lowest)))
    return torch.empty_like(scores).scatter_(1, by_draw.gather(1, order), torch.stack(columns, dim=1))


def _one_a_title(scores: Tensor, draws: Tensor, titles: Tensor, chosen: Tensor) -> Tensor:
    in_order = titles.sort(dim=1).values
    repeated = ((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] > 0)).any(dim=1)
    scores = scores.clone()
    for row in torch.nonzero(repeated)[:, 0].tolist():
        same = titles[row][:, None] == titles[row]
        draw, kept = draws[row], chosen[row]
        before = (draw < draw[:, None]) | (draw == draw[:, None]).tril(-1)
        earlier = ((before & ~kept[:, None]) | kept).fill_diagonal_(False)
        best = scores[row].expand_as(same).masked_fill(~same, -torch.inf).amax(dim=1)
        scores[row] = best.masked_fill((same & earlier).any(dim=1) | (titles[row] == 0), -torch.inf)
    return scores


def popularity_scores(counts: Tensor, present: Tensor) -> Tensor:
    """Return (B, C) training interactions of each candidate as scores, -inf where there is none.

    Args:
        counts: (B, C) interactions.
        present: (B, C) bool.
    """
    return counts.float().masked_fill(~present, -torch.inf)


def ranks_of(scores: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return (n,) 1 + how many entries of a row score strictly higher than the one chosen.

    Args:
        scores: (B, any) settled scores: of candidates, or in a table of all items.
        rows: (n,) rows of ``scores``.
        columns: (n,) the entries chosen.
    """
    rows, columns = rows.to(scores.device), columns.to(scores.device)
    mine = scores[rows, columns]
    some = max(1, _COMPARED // scores.shape[1])
    better = [
        (scores[rows[start : start + some]] > mine[start : start + some, None]).sum(dim=1)
        for start in range(0, len(rows), some)
    ]
    return 1 + torch.cat(better) if better else rows


def rank_of_titles(scores: Tensor, draws: Tensor, target: Tensor, left_out: Tensor) -> Tensor:
    """Return (B,) 1 + how many titles come before the target: by score, then by the smaller draw.

    Args:
        scores: (B, Y) of titles.
        draws: (B, Y) of ``tie_draws``, one a title.
        target: (B,) numbers of titles.
        left_out: (B, Y) bool: titles that do not count; never the target.
    """
    mine, draw = scores.gather(1, target[:, None]), draws.gather(1, target[:, None])
    before = (scores > mine) | ((scores == mine) & (draws < draw))
    return 1 + (before & ~left_out).sum(dim=1)


def best_of_titles(scores: Tensor, draws: Tensor, left_out: Tensor, count: int) -> Tensor:
    """Return (B, count) the best titles in the order of ``rank_of_titles``; the left out last."""
    by_draw = draws.argsort(dim=1)
    by_score = scores.gather(1, by_draw).argsort(dim=1, descending=True, stable=True)
    order = by_draw.gather(1, by_score)
    kept = left_out.gather(1, order).to(torch.uint8).argsort(dim=1, stable=True)
    return order.gather(1, kept)[:, :count]
