"""Rules that rank listed candidates without any taste: by place, by company of the list, by a global order.

A data set on which such a rule does better than chance gives its targets away: a model that reads the list
can learn the rule, and its figures then say nothing of what a user likes. Each rule is learned from training
rows alone. Shape letters: N rows, C candidates; items are numbered from 1 on, 0 stands for none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .global_order import recovered_order

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

# Of the lists that a title had as a target, how many of the latest are remembered.
LISTS_KEPT = 30
# Rows whose lists are compared at once: some tens of megabytes.
ROWS_AT_ONCE = 256
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
