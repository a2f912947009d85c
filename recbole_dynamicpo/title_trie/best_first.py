"""Exact top titles and exact ranks in a trie of any size, from few of its nodes.

No step of a path has a log-probability above 0, so a prefix bounds every title below it. Prefixes are
opened best first, some at a time; what is less probable than all that is wanted is never opened. The result
is that of scoring every title.

The model is asked through ``child_logits(numbers)``: given the numbers of branching nodes, in the order of
the trie's nodes, it returns the logits of their children for one history as a (E',) tensor, the edges of
one node after those of another. Branching nodes above come earlier in the same call or came in an earlier
one, and no node comes twice, so that each token is forwarded once on the keys and values of those above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import NumericsError, SettingsError
from .catalogue_likelihood import segment_log_softmax
from .trie import Integers, Trie

ChildLogits = Callable[[Integers], Tensor]


class TopTitles(NamedTuple):
    """The most probable titles."""

    titles: Integers  # (k,) distinct titles, best first; of equal ones the first in the catalogue
    logps: NDArray[np.floating]  # (k,) nats
    nodes: int  # nodes forwarded behind the prompt
    exact: bool  # false: ``max_nodes`` ended the search, and better titles may be missing


class TitleRank(NamedTuple):
    """The place of one title among all."""

    rank: int  # from 1 on
    logp: float  # nats
    nodes: int  # nodes forwarded behind the prompt
    exact: bool  # false: ``max_nodes`` ended the search, and the rank may be greater


def top_titles(
    trie: Trie,
    child_logits: ChildLogits,
    k: int,
    *,
    left_out: Iterable[int] = (),
    at_once: int = 32,
    max_nodes: int | None = None,
    exact: bool = True,
) -> TopTitles:
    """Return the ``k`` most probable distinct titles; fewer where the catalogue has no more.

    Args:
        trie: of the catalogue.
        child_logits: the model with one history.
        k: how many titles, at least 1.
        left_out: distinct titles that are not wanted.
        at_once: branching nodes a call, at most.
        max_nodes: nodes that may be forwarded; None for no bound.
        exact: whether a search that the bound ends is an error; otherwise the result says so.

    Raises:
        SettingsError: the bound was reached and the result would not be exact.
        NumericsError: a logit is not finite.
    """
    search = _Search(trie, child_logits, left_out, max_nodes)
    best, logps = np.zeros(0, np.int64), np.zeros(0)
    titles, found = search.begin()
    while True:
        best, logps = np.append(best, titles), np.append(logps, found)
        order = np.lexsort((best, -logps))[:k]
        best, logps = best[order], logps[order]
        # A title as probable as the last one, but earlier in the catalogue, may still come.
        chosen = search.choose(logps[-1] if len(best) == k else -np.inf, at_once)
        if not len(chosen):
            return TopTitles(best, logps, search.nodes, search.finish(exact))
        titles, found = search.open(chosen)


def title_rank(
    trie: Trie,
    child_logits: ChildLogits,
    target: int,
    *,
    left_out: Iterable[int] = (),
    tie_keys: NDArray[np.generic] | None = None,
    at_once: int = 32,
    max_nodes: int | None = None,
    exact: bool = True,
) -> TitleRank:
    """Return the rank of ``target``: 1 + titles not left out that are more probable.

    Args:
        trie: of the catalogue.
        child_logits: the model with one history.
        target: a distinct title; never left out itself.
        left_out: distinct titles that do not count.
        tie_keys: (Y,) of equally probable titles those with a smaller key than the target's count too;
            None: none of them.
        at_once: branching nodes a call, at most.
        max_nodes: nodes that may be forwarded; None for no bound.
        exact: whether a search that the bound ends is an error; otherwise the result says so.

    Raises:
        SettingsError: the bound was reached and the result would not be exact.
        NumericsError: a logit is not finite.
    """
    search = _Search(trie, child_logits, left_out, max_nodes)
    logp, titles, found = search.descend(target)
    rank = 1
    while True:
        rank += int((found > logp).sum())
        if tie_keys is not None:
            rank += int((tie_keys[titles[found == logp]] < tie_keys[target]).sum())
        chosen = search.choose(logp, at_once)
        if not len(chosen):
            return TitleRank(rank, float(logp), search.nodes, search.finish(exact))
        titles, found = search.open(chosen)


class _Search:
    """The open prefixes of one history: branching nodes that are reached but not read."""

    def __init__(
        self, trie: Trie, child_logits: ChildLogits, left_out: Iterable[int], max_nodes: int | None
    ) -> None:
        self.trie = trie
        self.child_logits = child_logits
        self.left_out = np.array(sorted(left_out), np.int64)
        self.max_nodes = max_nodes
        self.nodes = 0
        self.stopped = False
        self.numbers, self.logps = np.zeros(0, np.int64), np.zeros(0)

    def begin(self) -> tuple[Integers, NDArray[np.floating]]:
        """Open nothing yet; return the titles that are certain and their log-probabilities."""
        if len(self.trie.branching):
            self.numbers, self.logps = np.zeros(1, np.int64), np.zeros(1)
            return self._wanted(np.zeros(0, np.int64), np.zeros(0))
        return self._wanted(np.zeros(1, np.int64), np.zeros(1))

    def choose(self, least: float, at_once: int) -> Integers:
        """Return which open prefixes to read next: the best that reach ``least``; none at the end.

        ``least`` never falls, so all others are forgotten.
        """
        near = self.logps >= least
        self.numbers, self.logps = self.numbers[near], self.logps[near]
        chosen = np.lexsort((self.numbers, -self.logps))[:at_once]
        if self.max_nodes is not None and len(chosen):
            fits = self.nodes + self._cost(self.numbers[chosen]).cumsum() <= self.max_nodes
            chosen = chosen[fits]
            self.stopped = not len(chosen)
        in_order: Integers = chosen[np.argsort(self.numbers[chosen])]
        return in_order

    def open(self, chosen: Integers) -> tuple[Integers, NDArray[np.floating]]:
        """Read some open prefixes; return the titles reached and their log-probabilities."""
        numbers, logps = self.numbers[chosen], self.logps[chosen]
        self.numbers, self.logps = np.delete(self.numbers, chosen), np.delete(self.logps, chosen)
        edges, source, steps = self._read(numbers)
        # Summed as the path's own type would be, so that ties are those of scoring every title.
        return self._arrive(edges, logps[source].astype(steps.dtype) + steps)

    def descend(self, target: int) -> tuple[float, Integers, NDArray[np.floating]]:
        """Read a title's whole path in one call; return its log-probability and the other titles reached."""
        path = self.trie.steps(np.array([target]))[1]
        numbers = self.trie.edge_from[path]
        if self.max_nodes is not None and self._cost(numbers).sum() > self.max_nodes:
            raise SettingsError(f"max_nodes: got {self.max_nodes}, which is less than the target's own path")
        if not len(path):
            return 0.0, np.zeros(0, np.int64), np.zeros(0)
        edges, source, steps = self._read(numbers)
        on_path = np.isin(edges, path)
        above = np.concatenate([np.zeros(1, steps.dtype), steps[on_path]]).cumsum(dtype=steps.dtype)
        off = ~on_path
        return above[-1], *self._arrive(edges[off], above[source[off]] + steps[off])

    def finish(self, exact: bool) -> bool:
        """Return whether the search came to its end.

        Raises:
            SettingsError: it did not, and the result must be ``exact``.
        """
        if self.stopped and exact:
            raise SettingsError(
                f"max_nodes: {self.nodes} nodes were forwarded and more than {self.max_nodes} are needed "
                "for an exact result; wanted a greater bound, or exact=False for what was found so far"
            )
        return not self.stopped

    def _cost(self, numbers: Integers) -> Integers:
        """Return the nodes to forward to come to each branching node from the one above it."""
        trie = self.trie
        edge = trie.branching_edge[numbers]
        above = np.where(edge < 0, 0, trie.depth[trie.branching[trie.edge_from[edge]]])
        cost: Integers = trie.depth[trie.branching[numbers]] - above
        return cost

    def _read(self, numbers: Integers) -> tuple[Integers, Integers, NDArray[np.floating]]:
        """Return the edges of branching nodes, which node each leaves, and their log-probabilities."""
        begin = self.trie.edge_start[numbers]
        count = self.trie.edge_start[numbers + 1] - begin
        source = np.repeat(np.arange(len(numbers)), count)
        edges = np.arange(len(source)) + (begin - count.cumsum() + count)[source]
        logits = self.child_logits(numbers).detach().cpu()
        if logits.shape != (len(edges),):
            raise ValueError(f"child_logits: wanted ({len(edges)},), got {tuple(logits.shape)}")
        if not torch.isfinite(logits).all():
            raise NumericsError("child_logits: a logit is not finite")
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        self.nodes += int(self._cost(numbers).sum())
        return edges, source, segment_log_softmax(logits, torch.from_numpy(source), len(numbers)).numpy()

    def _arrive(self, edges: Integers, logps: NDArray[np.floating]) -> tuple[Integers, NDArray[np.floating]]:
        """Keep the prefixes that edges lead to; return the titles."""
        titles, onward = self.trie.edge_title[edges], self.trie.edge_to[edges]
        inner = onward >= 0
        self.numbers = np.append(self.numbers, onward[inner])
        self.logps = np.append(self.logps, logps[inner])
        return self._wanted(titles[~inner], logps[~inner])

    def _wanted(self, titles: Integers, logps: NDArray[np.floating]) -> tuple[Integers, NDArray[np.floating]]:
        kept = ~np.isin(titles, self.left_out)
        return titles[kept], logps[kept]
