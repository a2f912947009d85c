"""Priors below the catalogue likelihood: made of training sequences, kept with the model.

Counting models count distinct titles, numbered as in the trie; in ``data.counting`` a title's id is its
number + 1. Retrievers score items, one of which stands for a title in histories; of items with one title the
likelihoods are added. In training everything that the user contributed is taken out, since a prior that has
seen the very row that it is trained on looks perfect there: counts without the user, and a retriever that was
trained without the user's fold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.counting import CoOccurrence, Popularity, Sequences, Transitions
from ..errors import AdapterError
from ..names import RETRIEVER
from ..retrievers.retriever import Retriever, file_of, load_retriever
from ..storage import named
from ..title_trie.prior import (
    DensePrior,
    Floats,
    Histories,
    Masses,
    Prior,
    PriorSource,
    edge_masses,
    history_prior,
)
from ..title_trie.trie import Integers, Trie

PRIORS_FILE = "priors.safetensors"
# Share of popularity in what a counting model says.
BACKGROUND_SHARE = 0.1


class PopularityPrior:
    """Training interactions of each title and one half, without those of the user who is asked about."""

    def __init__(self, trie: Trie, counts: Integers, data: Sequences) -> None:
        self.trie, self.data = trie, data
        self.counts = counts + 0.5
        self.background = edge_masses(trie, self.counts)

    def __call__(self, histories: Histories) -> Prior:
        """See ``PriorSource``."""
        share, row, title, own = self.parts(histories)
        return history_prior(self.trie, self.background, share, row, title, own)

    def parts(self, histories: Histories) -> tuple[Floats, Integers, Integers, Floats]:
        """Return (B,) factors of the counts, and what is taken from which title in which history."""
        total = self.counts.sum()
        taken = [self.data.of_user.get(int(user), np.zeros(0, np.int64)) for user in histories.users]
        share = 1.0 / np.array([total - len(one) for one in taken])
        row = np.repeat(np.arange(len(taken)), [len(one) for one in taken])
        title = np.concatenate([np.zeros(0, np.int64), *taken]) - 1
        return share, row, title, -share[row]


class CountedPrior:
    """A share of popularity, and the rest by a counting model; all by popularity where that knows nothing."""

    def __init__(self, popularity: PopularityPrior, model: Transitions | CoOccurrence) -> None:
        self.popularity, self.model = popularity, model

    def __call__(self, histories: Histories) -> Prior:
        """See ``PriorSource``."""
        share, row, title, own = self.popularity.parts(histories)
        rows, titles, values = [row], [title], [own]
        known = np.zeros(len(histories.users), dtype=bool)
        for user in np.unique(histories.users):
            asked = np.flatnonzero(histories.users == user)
            taken = [histories.titles[place] + 1 for place in asked]
            z = self.model.many(taken, None if user < 0 else int(user)).tocoo()
            kept = z.data > 0
            place, found, z_data = z.row[kept], z.col[kept] - 1, z.data[kept]
            sums = np.bincount(place, z_data, len(asked))
            known[asked] = sums > 0
            rows.append(asked[place])
            titles.append(found)
            values.append((1 - BACKGROUND_SHARE) * z_data / sums[place])
        share[known] *= BACKGROUND_SHARE
        values[0][known[row]] *= BACKGROUND_SHARE
        trie, background = self.popularity.trie, self.popularity.background
        every = np.concatenate(rows), np.concatenate(titles), np.concatenate(values)
        return history_prior(trie, background, share, *every)


class RetrieverPrior:
    """A share of popularity, and the rest by a retriever; all by popularity where that knows nothing."""

    def __init__(self, popularity: PopularityPrior, retriever: Retriever) -> None:
        self.popularity, self.retriever = popularity, retriever
        trie = popularity.trie
        self._first = trie.item_order[trie.item_start[:-1]] + 1  # the item that stands for each title

    def __call__(self, histories: Histories) -> Masses:
        """See ``PriorSource``."""
        share, row, title, own = self.popularity.parts(histories)
        background = share[:, None] * self.popularity.counts
        np.add.at(background, (row, title), own)
        found = self.likelihoods(histories)
        weight = np.where(found.any(axis=1, keepdims=True), BACKGROUND_SHARE, 1.0)
        return DensePrior(self.popularity.trie, weight * background + (1.0 - weight) * found)

    def likelihoods(self, histories: Histories) -> Floats:
        """Return (B, Y) what the retriever alone gives distinct titles: 1 in all, or 0 throughout."""
        trie = self.popularity.trie
        taken = [self._first[titles] for titles in histories.titles]
        found = self.retriever.likelihoods(taken, histories.users)[:, 1:]
        titles: Floats = np.add.reduceat(found[:, trie.item_order], trie.item_start[:-1], axis=1)
        return titles


_MODELS: dict[str, type[Transitions] | type[CoOccurrence]] = {
    "transitions": Transitions,
    "cooccurrence": CoOccurrence,
}


class Priors:
    """The priors of a run or of a saved model, over a trie's titles.

    Args:
        names: of ``names.PRIORS``, or of retrievers.
        counts: (Y,) training interactions of each distinct title.
        models: of the names that count, but popularity.
        data: what users took in training, as numbers of distinct titles + 1; of saved models empty.
        retrievers: of the names that are models of RecBole's.
    """

    def __init__(
        self,
        names: Sequence[str],
        counts: Integers,
        models: Mapping[str, Transitions | CoOccurrence],
        data: Sequences,
        retrievers: Mapping[str, Retriever] | None = None,
    ) -> None:
        self.names, self.counts, self.models, self.data = tuple(names), counts, models, data
        self.retrievers = dict(retrievers or {})

    @classmethod
    def count(
        cls, names: Sequence[str], data: Sequences, retrievers: Mapping[str, Retriever] | None = None
    ) -> Priors:
        """Return the priors of training sequences, with the retrievers that were trained on them."""
        models = {name: _MODELS[name](data) for name in names if name in _MODELS}
        return cls(names, Popularity(data).counts[1:], models, data, retrievers)

    def __call__(self, trie: Trie) -> list[PriorSource]:
        """Return the sources of these priors, in order."""
        popularity = PopularityPrior(trie, self.counts, self.data)
        counted = {name: CountedPrior(popularity, model) for name, model in self.models.items()}
        retrieving = {name: RetrieverPrior(popularity, one) for name, one in self.retrievers.items()}
        sources: dict[str, PriorSource] = {"popularity": popularity, **counted, **retrieving}
        return [sources[name] for name in self.names]

    def digest(self) -> str:
        """Return the SHA-256 of all that they say."""
        said = hashlib.sha256(repr((self.names, self.counts.tolist())).encode())
        for name, values in sorted(self._tables().items()):
            said.update(name.encode() + np.ascontiguousarray(values).tobytes())
        for name, retriever in self.retrievers.items():
            said.update(f"{name} {retriever.digest()}".encode())
        return said.hexdigest()

    def save(self, folder: Path) -> None:
        """Write what was counted, but for popularity, and retrievers into ``folder``, which exists."""
        from safetensors.numpy import save

        if self.models:
            with named(folder / PRIORS_FILE):
                (folder / PRIORS_FILE).write_bytes(save(self._tables()))
        for name, retriever in self.retrievers.items():
            path = folder / file_of(name)
            with named(path):
                path.write_bytes(retriever.content())

    def _tables(self) -> dict[str, NDArray[Any]]:
        return {
            f"{name}.{table}": values
            for name, model in self.models.items()
            for table, values in model.tables().items()
        }

    @classmethod
    def load(cls, folder: Path, names: Sequence[str], counts: Integers, items: int) -> Priors:
        """Return what ``save`` wrote.

        Args:
            folder: of the recommender.
            names: of ``names.PRIORS``, or of retrievers.
            counts: (Y,) training interactions of each distinct title.
            items: of the catalogue.

        Raises:
            AdapterError: a file is missing or damaged, or is of another catalogue.
        """
        from safetensors.numpy import load_file

        size, path = len(counts) + 1, folder / PRIORS_FILE
        models = {}
        try:
            tables = load_file(path) if set(names) & set(_MODELS) else {}
            for name in set(names) & set(_MODELS):
                own = {key.partition(".")[2]: v for key, v in tables.items() if key.startswith(f"{name}.")}
                _check_tables(own, size)
                models[name] = _MODELS[name].of_tables(size, own)
        except Exception as error:  # safetensors raises whatever a damaged file leads it to
            raise AdapterError(f"{path}: not what the priors of this model counted ({error!r})") from error
        chosen = [name for name in names if name.startswith(RETRIEVER)]
        retrievers = {name: load_retriever(folder / file_of(name), items + 1) for name in chosen}
        return cls(names, counts, models, Sequences(size, {}), retrievers)


def _check_tables(tables: Mapping[str, NDArray[Any]], size: int) -> None:
    """See that tables are rows of items with positive finite numbers."""
    start, item = tables["start"], tables["item"]
    (values,) = (table for name, table in tables.items() if name not in ("start", "item"))
    fits = start.shape == (size + 1,) and start[0] == 0 and (np.diff(start) >= 0).all()
    fits &= item.shape == values.shape == (int(start[-1]),)
    if not fits or item.min(initial=0) < 0 or item.max(initial=0) >= size:
        raise ValueError(f"wanted rows of {size - 1} titles")
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError("wanted numbers of at least 0")
