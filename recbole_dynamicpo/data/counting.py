"""Counting models: what a history of items makes likely next, by counts alone.

They are contestants of every table, for they are hard to beat. Counts are whole numbers, so that what a user
contributed can be taken out exactly: a model that has seen the row that it is asked about looks perfect.
Shape letters: B histories, N items (ids from 1 to N - 1), D distances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy import sparse

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

# Of transitions: how far one item may follow another, how much a step further counts, how many items of a
# history are asked, and how much less an older one counts.
DISTANCES, DISTANCE_DECAY = 10, 0.8
RECENT, AGE_DECAY = 20, 0.9
# EASE's ridge.
RIDGE = 100.0


class Counting(Protocol):
    """Says how likely items are next; not normalised."""

    def scores(self, history: IntArray, without: int | None = None) -> FloatArray:
        """Return (N,) scores of all items, at least 0; 0 throughout where nothing is known.

        Args:
            history: items, oldest first.
            without: a user whose own contribution is taken out; None: nobody's.
        """


@dataclass(frozen=True)
class Sequences:
    """What users took in training.

    Attributes:
        items: N; ids run from 1 to N - 1.
        of_user: user -> items in their order.
    """

    items: int
    of_user: dict[int, IntArray]


class Popularity:
    """Interactions of each item, and one half, so that every item is possible."""

    def __init__(self, data: Sequences) -> None:
        self.data = data
        every = np.concatenate([np.zeros(0, dtype=np.int64), *data.of_user.values()])
        self.counts = np.bincount(every, minlength=data.items)

    def scores(self, history: IntArray, without: int | None = None) -> FloatArray:
        """Return (N,) counts + 0.5; that of item 0, which is none, is 0."""
        counts = self.counts
        if without in self.data.of_user:
            counts = counts - np.bincount(self.data.of_user[without], minlength=self.data.items)
        found = counts + 0.5
        found[0] = 0.0
        return found


class Transitions:
    """What followed what: M[x, y] sums decay ** (d - 1) over the times that y stood d places behind x.

    z(y) sums, over the last items h of the history, 0.9 ** age M[h, y] / (sum of M[h] + 1). Counts are kept
    by distance. Decayed Markov chains and session neighbours are known to be hard to beat on short histories.
    """

    def __init__(self, data: Sequences) -> None:
        self.data = data
        self.weights = DISTANCE_DECAY ** np.arange(DISTANCES)
        first, second, distance = _followers(list(data.of_user.values()))
        keys, place = np.unique(first * data.items + second, return_inverse=True)
        self.counts = np.zeros((len(keys), DISTANCES), dtype=np.int32)
        np.add.at(self.counts, (place, distance), 1)
        self.masses: FloatArray = self.counts @ self.weights
        row, self.item = np.divmod(keys, data.items)
        self.start = np.searchsorted(row, np.arange(data.items + 1))

    def tables(self) -> dict[str, NDArray[Any]]:
        """Return what it counted, nobody's share apart from others', for ``of_tables``."""
        return {"start": self.start, "item": self.item, "masses": self.masses}

    @classmethod
    def of_tables(cls, items: int, tables: Mapping[str, NDArray[Any]]) -> Transitions:
        """Return a model of N items from its tables, from which no user can be taken out."""
        model = cls(Sequences(items, {}))
        model.start, model.item = tables["start"].astype(np.int64), tables["item"].astype(np.int64)
        model.masses = tables["masses"].astype(np.float64)
        return model

    def scores(self, history: IntArray, without: int | None = None) -> FloatArray:
        """Return (N,) z."""
        found: FloatArray = self.many([history], without).toarray()[0]
        return found

    def many(self, histories: Sequence[IntArray], without: int | None = None) -> sparse.csr_array:
        """Return (B, N) z of many histories, which a user without whom is counted shares."""
        from scipy import sparse

        recent = [history[::-1][:RECENT] for history in histories]
        lengths = [len(history) for history in recent]
        items = np.concatenate([np.zeros(0, dtype=np.int64), *recent])
        known, column = np.unique(items, return_inverse=True)
        ages = np.concatenate([np.zeros(0), *(AGE_DECAY ** np.arange(n) for n in lengths)])
        row = np.repeat(np.arange(len(recent)), lengths)
        asked = sparse.csr_array((ages, (row, column)), shape=(len(recent), len(known)))
        return sparse.csr_array(asked @ self._followers_of(known, without))

    def _followers_of(self, items: IntArray, without: int | None) -> sparse.csr_array:
        """Return (n, N) shares of what followed each item; a row sums to less than 1."""
        from scipy import sparse

        own = self.data.of_user.get(without) if without is not None else None
        data, indices, start = [np.zeros(0)], [np.zeros(0, dtype=np.int64)], [0]
        for item in items.tolist():
            chosen = slice(self.start[item], self.start[item + 1])
            masses, followers = self.masses[chosen], self.item[chosen]
            if own is not None and (own == item).any():
                masses = (self.counts[chosen] - _own_counts(own, item, followers)) @ self.weights
            data.append(masses / (masses.sum() + 1))
            indices.append(followers)
            start.append(start[-1] + len(followers))
        shape = (len(items), self.data.items)
        return sparse.csr_array((np.concatenate(data), np.concatenate(indices), start), shape=shape)


def _followers(sequences: Sequence[IntArray]) -> tuple[IntArray, IntArray, IntArray]:
    """Return every pair of items at most DISTANCES apart, and how far they are, from 0 on."""
    parts = [
        (sequence[: -(d + 1)], sequence[d + 1 :], np.full(len(sequence) - d - 1, d))
        for sequence in sequences
        for d in range(min(DISTANCES, len(sequence) - 1))
    ]
    if not parts:
        none = np.zeros(0, dtype=np.int64)
        return none, none, none
    first, second, distance = (np.concatenate(side) for side in zip(*parts, strict=True))
    return first, second, distance


def _own_counts(own: IntArray, item: int, items: IntArray) -> NDArray[np.int32]:
    """Return (n, D) how often ``items`` followed ``item`` in one user's sequence."""
    counts = np.zeros((len(items), DISTANCES), dtype=np.int32)
    for at in np.flatnonzero(own == item):
        behind = own[at + 1 : at + 1 + DISTANCES]
        np.add.at(counts, (np.searchsorted(items, behind), np.arange(len(behind))), 1)
    return counts


class CoOccurrence:
    """Cosine by the users who have both: z(y) sums C[h, y] / sqrt(C[h, h] C[y, y]) over the history."""

    def __init__(self, data: Sequences) -> None:
        from scipy import sparse

        self.data = data
        users = np.repeat(np.arange(len(data.of_user)), [len(s) for s in data.of_user.values()])
        every = np.concatenate([np.zeros(0, dtype=np.int64), *data.of_user.values()])
        shape = (len(data.of_user), data.items)
        taken = sparse.csr_array((np.ones(len(every), dtype=np.int64), (users, every)), shape=shape)
        taken.data[:] = 1
        self.together = sparse.csr_array(taken.T @ taken)
        self.alone = self.together.diagonal()

    def tables(self) -> dict[str, NDArray[Any]]:
        """Return what it counted, nobody's share apart from others', for ``of_tables``."""
        kept = self.together
        return {"start": kept.indptr, "item": kept.indices, "counts": kept.data}

    @classmethod
    def of_tables(cls, items: int, tables: Mapping[str, NDArray[Any]]) -> CoOccurrence:
        """Return a model of N items from its tables, from which no user can be taken out."""
        from scipy import sparse

        model = cls(Sequences(items, {}))
        parts = (tables["counts"].astype(np.int64), tables["item"], tables["start"])
        model.together = sparse.csr_array(parts, shape=(items, items))
        model.alone = model.together.diagonal()
        return model

    def scores(self, history: IntArray, without: int | None = None) -> FloatArray:
        """Return (N,) z."""
        found: FloatArray = self.many([history], without).toarray()[0]
        return found

    def many(self, histories: Sequence[IntArray], without: int | None = None) -> sparse.csr_array:
        """Return (B, N) z of many histories; normalised after the user's own items are taken out."""
        from scipy import sparse

        lengths = [len(history) for history in histories]
        items = np.concatenate([np.zeros(0, dtype=np.int64), *histories])
        known, column = np.unique(items, return_inverse=True)
        row = np.repeat(np.arange(len(histories)), lengths)
        asked = sparse.csr_array((np.ones(len(items)), (row, column)), shape=(len(histories), len(known)))
        counts = sparse.coo_array(self.together[known])
        mine = np.zeros(self.data.items, dtype=np.int64)
        if without in self.data.of_user:
            mine[self.data.of_user[without]] = 1
        alone = np.maximum(self.alone - mine, 1).astype(np.float64)
        first, second = known[counts.row], counts.col
        cosine = (counts.data - mine[first] * mine[second]) / np.sqrt(alone[first] * alone[second])
        rows = sparse.csr_array((cosine, (counts.row, second)), shape=(len(known), self.data.items))
        return sparse.csr_array(asked @ rows)


class Ease:
    """Embarrassingly shallow autoencoder (arXiv 1905.03375) in closed form; for catalogues of some thousands.

    It learns one matrix from all users, from which no single one can be taken out: it is a contestant only.
    """

    def __init__(self, data: Sequences, ridge: float = RIDGE) -> None:
        gram = CoOccurrence(data).together.toarray().astype(np.float64)
        inverse = np.linalg.inv(gram + ridge * np.eye(data.items))
        self.weights = -inverse / np.diag(inverse)
        np.fill_diagonal(self.weights, 0.0)

    def scores(self, history: IntArray, without: int | None = None) -> FloatArray:
        """Return (N,) scores, shifted so that the lowest is 0."""
        if without is not None:
            raise ValueError("no user can be taken out of EASE")
        found: FloatArray = self.weights[np.unique(history)].sum(axis=0)
        shifted: FloatArray = found - found.min(initial=0.0)
        return shifted


def next_item(
    model: Counting, popularity: Popularity, history: IntArray, share: float, without: int | None = None
) -> FloatArray:
    """Return (N,) probabilities of the next item: a share by popularity, the rest by a counting model.

    Args:
        model: asked first; where it knows nothing, popularity has the whole.
        popularity: positive on every item.
        history: items, oldest first.
        share: of popularity, above 0.
        without: a user whose own contribution is taken out of both.
    """
    known, background = model.scores(history, without), popularity.scores(history, without)
    background /= background.sum()
    if known.sum() <= 0:
        return background
    found: FloatArray = (1 - share) * known / known.sum() + share * background
    return found
