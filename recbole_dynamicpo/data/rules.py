"""Rules that rank listed candidates without any taste: by place, by company of the list, by a global order.

A data set on which such a rule does better than chance gives its targets away: a model that reads the list
can learn the rule, and its figures then say nothing of what a user likes. Each rule is learned from training
rows alone. Shape letters: N rows, C candidates; items are numbered from 1 on, 0 stands for none.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

# Of the lists that a title had as a target, how many of the latest are remembered.
LISTS_KEPT = 30
# Rows whose lists are compared at once: some tens of megabytes.
ROWS_AT_ONCE = 256
# Pairs of titles are judged by their order if so many users have both.
LEAST_TOGETHER = 4
# What a matching place, and a title that never was a target, add to the number of shared titles.
SAME_PLACE, NEVER_A_TARGET = 100.0, 50.0


@dataclass(frozen=True)
class Rows:
    """Rows of one split.

    Attributes:
        histories: N arrays of items, oldest first.
        candidates: (N, C) in the order of the list, 0 where a row has fewer; C is 0 where there are no lists.
        targets: (N,) the items chosen.
        users: (N,) whose row it is.
    """

    histories: list[IntArray]
    candidates: IntArray
    targets: IntArray
    users: IntArray

    def places(self) -> IntArray:
        """Return (N,) the place of each target in its list."""
        found: IntArray = (self.candidates == self.targets[:, None]).argmax(axis=1)
        return found


class Rule(Protocol):
    """Scores listed candidates."""

    def scores(self, rows: Rows) -> FloatArray:
        """Return (N, C), -inf where there is no candidate."""


def hit_shares(scores: FloatArray, rows: Rows) -> FloatArray:
    """Return (N,) the chance of each row's target to come first; titles tied at the top win alike."""
    top = scores.max(axis=1, keepdims=True, initial=-np.inf)
    first = (scores == top) & (rows.candidates > 0)
    hit = np.take_along_axis(first, rows.places()[:, None], axis=1)[:, 0]
    shares: FloatArray = hit / first.sum(axis=1)
    return shares


class PlaceRule:
    """A title scores the share of its rows as a target in which it stood at the same place.

    Args:
        rows: training rows.
    """

    def __init__(self, rows: Rows, items: int) -> None:
        self.counts = np.zeros((items, rows.candidates.shape[1]))
        np.add.at(self.counts, (rows.targets, rows.places()), 1)

    def scores(self, rows: Rows) -> FloatArray:
        """Return (N, C) shares; one over the number of candidates for titles that never were a target."""
        width = min(self.counts.shape[1], rows.candidates.shape[1])
        listed, total = rows.candidates, self.counts.sum(axis=1)
        at_place = np.zeros(listed.shape)
        at_place[:, :width] = self.counts[listed[:, :width], np.arange(width)]
        sizes = np.maximum((listed > 0).sum(axis=1, keepdims=True), 1)
        known = total[listed]
        shares = np.where(known > 0, at_place / np.maximum(known, 1), 1 / sizes)
        return np.where(listed > 0, shares, -np.inf)

    def usual_place(self) -> IntArray:
        """Return (items,) the place at which each title stood most often as a target; -1 for never."""
        return np.where(self.counts.any(axis=1), self.counts.argmax(axis=1), -1)


class CompanyRule:
    """A title scores the most titles that the list shares with one that the title had as a target.

    Args:
        rows: training rows.
        items: ids run from 1 to ``items`` - 1.
    """

    def __init__(self, rows: Rows, items: int) -> None:
        self.items = items
        order = np.argsort(rows.targets, kind="stable")
        self.lists = rows.candidates[order]
        self.ends = np.searchsorted(rows.targets[order], np.arange(items), side="right")
        self.starts = np.searchsorted(rows.targets[order], np.arange(items), side="left")

    def scores(self, rows: Rows) -> FloatArray:
        """Return (N, C) numbers of titles shared beside the title itself; 0 if it never was a target."""
        found = np.where(rows.candidates > 0, 0.0, -np.inf)
        for start in range(0, len(found), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            found[part] = np.maximum(found[part], self._shared(rows.candidates[part]))
        return found

    def _shared(self, candidates: IntArray) -> FloatArray:
        """Return (n, C) shared titles of the best of each candidate's lists, -inf where there is none."""
        found = np.full(candidates.shape, -np.inf)
        listed = np.zeros((len(candidates), self.items), dtype=bool)
        np.put_along_axis(listed, candidates, True, axis=1)
        listed[:, 0] = False
        kept = np.minimum(self.ends - self.starts, LISTS_KEPT)[candidates] * (candidates > 0)
        row, place = np.nonzero(kept)
        if not len(row):
            return found
        sizes = kept[row, place]
        starts = np.cumsum(sizes) - sizes
        entry = np.repeat(np.arange(len(row)), sizes)
        age = np.arange(len(entry)) - starts[entry]
        lists = self.lists[self.ends[candidates[row, place]][entry] - 1 - age]
        shared = listed[row[entry][:, None], lists].sum(axis=1)
        found[row, place] = np.maximum.reduceat(shared, starts) - 1
        return found


class PlaceAndCompanyRule:
    """The company rule, with the usual place and what never was a target added.

    Args:
        place, company: the two rules, learned.
    """

    def __init__(self, place: PlaceRule, company: CompanyRule) -> None:
        self.usual, self.company = place.usual_place(), company

    def scores(self, rows: Rows) -> FloatArray:
        """Return (N, C) shared titles, + 100 at the title's usual place, + 50 if it never was a target."""
        usual = self.usual[rows.candidates]
        same = usual == np.arange(rows.candidates.shape[1])
        found: FloatArray = self.company.scores(rows) + SAME_PLACE * same + NEVER_A_TARGET * (usual < 0)
        return found


class OrderRule:
    """The candidate that follows the whole history soonest in an order recovered from training histories.

    Args:
        rows: training rows.
        items: ids run from 1 to ``items`` - 1.
    """

    def __init__(self, rows: Rows, items: int) -> None:
        self.position = recovered_order(rows.histories, items)

    def scores(self, rows: Rows) -> FloatArray:
        """Return (N, C) minus the position for candidates behind the history, -items for the others."""
        position, worst = self.position, float(len(self.position))
        last = np.array([position[h].max(initial=-1) for h in rows.histories])
        places = position[rows.candidates]
        follows = (places > last[:, None]) & (places >= 0)
        return np.where(rows.candidates > 0, np.where(follows, -places, -worst), -np.inf)


def recovered_order(histories: list[IntArray], items: int) -> IntArray:
    """Return (items,) the position of each item in an order that neighbours follow; -1: in no history.

    It is a topological order of the graph of neighbours, each pair in the direction of its majority: depth
    first, titles in the order of their first appearance, each placed before all that is reached from it.
    Where the graph has circles there is no such order, and the first visit breaks them.
    """
    flat = np.concatenate([np.zeros(0, dtype=np.int64), *histories])
    before, behind = _neighbours(histories)
    pairs, counts = np.unique(before * items + behind, return_counts=True)
    first, second = np.divmod(pairs, items)
    count_of = dict(zip(pairs.tolist(), counts.tolist(), strict=True))
    back = np.array([count_of.get(pair, 0) for pair in (second * items + first).tolist()], dtype=np.int64)
    seen, at = np.unique(flat, return_index=True)
    appeared = np.full(items, len(flat))
    appeared[seen] = at
    keep = (counts > back) | ((counts == back) & (appeared[first] < appeared[second]))
    after: dict[int, list[int]] = defaultdict(list)
    for edge in np.argsort(appeared[second], kind="stable"):
        if keep[edge]:
            after[int(first[edge])].append(int(second[edge]))
    position = np.full(items, -1, dtype=np.int64)
    finished = _finished(seen[np.argsort(at)].tolist(), after)
    position[finished[::-1]] = np.arange(len(finished))
    return position


def follows_one_order(histories: list[IntArray], items: int) -> bool:
    """Say whether all neighbours of all histories follow one order; False where there are none."""
    position = recovered_order(histories, items)
    first, second = _neighbours(histories)
    return bool(len(first) and (position[first] < position[second]).all())


def _neighbours(histories: list[IntArray]) -> tuple[IntArray, IntArray]:
    """Return the two sides of all neighbours of different items, as often as they occur."""
    flat = np.concatenate([np.zeros(0, dtype=np.int64), *histories])
    owner = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    inside = (owner[1:] == owner[:-1]) & (flat[1:] != flat[:-1])
    return flat[:-1][inside], flat[1:][inside]


def _finished(starts: list[int], after: dict[int, list[int]]) -> list[int]:
    """Return items in the order in which a depth-first walk leaves them."""
    seen: set[int] = set()
    left: list[int] = []
    for start in starts:
        if start in seen:
            continue
        seen.add(start)
        path = [(start, iter(after[start]))]
        while path:
            item, following = path[-1]
            step = next((other for other in following if other not in seen), None)
            if step is None:
                left.append(item)
                path.pop()
            else:
                seen.add(step)
                path.append((step, iter(after[step])))
    return left


Pairs = list[tuple[IntArray, IntArray]]


def pairs_in_order(rows: Rows) -> tuple[Pairs, Pairs]:
    """Return the first and second items of each row's pairs: all pairs of the row, and those with its target.

    Where a row goes on from the one before, the pairs within its history are left out: that row has them.
    """
    every, with_target = [], []
    before, user = np.zeros(0, dtype=np.int64), None
    for history, target, owner in zip(rows.histories, rows.targets, rows.users, strict=True):
        to_target = history, np.full(len(history), target)
        with_target.append(to_target)
        goes_on = owner == user and np.array_equal(before[len(before) - len(history) :], history)
        first, second = (np.zeros(0, dtype=np.intp),) * 2 if goes_on else np.triu_indices(len(history), 1)
        every.append((np.append(history[first], to_target[0]), np.append(history[second], to_target[1])))
        before, user = np.append(history, target), owner
    return every, with_target


def order_agreement(users: IntArray, pairs: Pairs) -> tuple[float | None, float | None]:
    """Return the share of pairs in the direction of their majority, and what a coin gives at these counts.

    A pair counts once a user, however many rows of the user's hold it.

    Args:
        users: (N,) of each row.
        pairs: N first and second items of each row's pairs.

    Returns:
        None twice where no pair occurs together ``LEAST_TOGETHER`` times.
    """
    none = np.zeros(0, dtype=np.int64)
    first = np.concatenate([none, *(side for side, _ in pairs)])
    second = np.concatenate([none, *(side for _, side in pairs)])
    owner = np.repeat(users, [len(side) for side, _ in pairs])
    differs = first != second
    size = int(max(first.max(initial=0), second.max(initial=0))) + 1
    once = np.unique(((owner * size + first) * size + second)[differs])
    first, second = np.divmod(once % size**2, size)
    if not len(first):
        return None, None
    low, high = np.minimum(first, second), np.maximum(first, second)
    _, pair, count = np.unique(low * size + high, return_inverse=True, return_counts=True)
    forward = np.bincount(pair, weights=first < second, minlength=len(count))
    often = count >= LEAST_TOGETHER
    if not often.any():
        return None, None
    count, forward = count[often], forward[often]
    agreement = np.maximum(forward, count - forward).sum() / count.sum()
    sizes, times = np.unique(count, return_counts=True)
    coin = sum(_coin(int(size)) * number for size, number in zip(sizes, times, strict=True)) / count.sum()
    return float(agreement), float(coin)


def _coin(size: int) -> float:
    """Return the expected larger count of ``size`` tosses of a coin."""
    heads = np.arange(size + 1)
    share: FloatArray = binom.pmf(heads, size, 0.5)
    return float((np.maximum(heads, size - heads) * share).sum())
