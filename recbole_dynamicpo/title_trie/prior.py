"""Cheap distributions over titles, as masses at a trie's nodes.

The mass of a child is the sum of p0 over the leaves below it. What a prior says at a branching node is the
log of the share of the node's mass that goes to each child; along a path these shares telescope to log p0.

A prior of B histories is a background that they share, such as popularity, whose masses are computed once,
and what each history adds on the few titles that it knows:

    p0_b(y) = share_b * background(y) + own_b(y)

Nothing of it has the size of a history times the catalogue; a prior that says something of every title of
every history is a dense one. The numbers need not sum to 1. What a history adds may be negative, such as a
user's own counts that are taken out of popularity; with counts as whole numbers (and halves) that is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import NumericsError, short
from .catalogue_likelihood import segment_log_softmax
from .title_layout import ChildEdges
from .trie import Integers, Trie

Floats = NDArray[np.float64]


class Masses:
    """What one prior makes of B histories: masses at the edges of a trie."""

    def _at(self, history: Integers, edge: Integers) -> Floats:
        """Return the masses below edges under histories, arrays of one shape."""
        raise NotImplementedError

    def masses(self, history: Integers, edge: Integers) -> Floats:
        """Return the mass below an edge under a history, for arrays of both that broadcast.

        Raises:
            NumericsError: a mass is not a positive number.
        """
        found = self._at(*np.broadcast_arrays(history, edge))
        if not (np.isfinite(found) & (found > 0)).all():
            raise NumericsError(
                f"prior: got the mass {short(float(found.min()))} below a node, wanted positive masses; "
                "a prior must leave no title of the catalogue without a share"
            )
        return found

    def log_ratios(self, edges: ChildEdges, history: Integers) -> Tensor:
        """Return float64 log(mass(child) / mass(node)) of edges, nats, on the CPU.

        Args:
            edges: of a layout on the CPU.
            history: which history an edge is asked for: (E,) or, where B rows share the layout, (B, 1).

        Returns:
            (E,) or (B, E).
        """
        logs = torch.from_numpy(np.log(self.masses(history, edges.edge.numpy())))
        return segment_log_softmax(logs, edges.source, len(edges.query))


@dataclass(frozen=True, eq=False)
class Prior(Masses):
    """Masses of one prior that knows few titles of a history; made by :func:`history_prior`.

    Attributes:
        background: (E,) masses of the background, of :func:`edge_masses`.
        share: (B,) its factor in each history.
        keys: (n,) history * E + edge where a history adds something, ascending.
        added: (n,) what it adds to the mass.
    """

    background: Floats
    share: Floats
    keys: Integers
    added: Floats

    def _at(self, history: Integers, edge: Integers) -> Floats:
        found: Floats = self.share[history] * self.background[edge]
        if len(self.keys):
            keys = history * len(self.background) + edge
            place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
            found += np.where(self.keys[place] == keys, self.added[place], 0.0)
        return found


class DensePrior(Masses):
    """Masses of one prior that says something of every title of a history.

    Args:
        trie: of the catalogue.
        p0: (B, Y) what it gives each distinct title.
    """

    def __init__(self, trie: Trie, p0: Floats) -> None:
        owner, edge = trie.steps(np.arange(trie.num_titles))
        order = np.argsort(edge, kind="stable")
        start = np.searchsorted(edge[order], np.arange(len(trie.edge_node)))
        below = owner[order]
        self.table = np.zeros((len(p0), len(start)))
        for row, shares in enumerate(p0 if len(start) else []):  # of few rows at once less is kept
            self.table[row] = np.add.reduceat(shares[below], start)

    def _at(self, history: Integers, edge: Integers) -> Floats:
        found: Floats = self.table[history, edge]
        return found


class Histories(NamedTuple):
    """Whom priors are asked about: B histories."""

    titles: list[Integers]  # numbers of distinct titles, oldest first
    users: Integers  # (B,) whose own share is taken out of what was counted, in training; -1: nobody's


class PriorSource(Protocol):
    """Says what a prior makes of histories."""

    def __call__(self, histories: Histories) -> Masses:
        """Return the prior of these B histories."""


def edge_masses(trie: Trie, p0: Floats) -> Floats:
    """Return (E,) the mass below each edge: the sum of ``p0`` (Y,) over the titles there.

    Raises:
        NumericsError: naming the first title whose number is not positive and finite.
    """
    bad = np.flatnonzero(~(np.isfinite(p0) & (p0 > 0)))
    if len(bad):
        raise NumericsError(
            f"prior: distinct title {bad[0]} (item {trie.items(bad[0])[0]}) got {short(float(p0[bad[0]]))}, "
            "wanted a positive number"
        )
    owner, edge = trie.steps(np.arange(trie.num_titles))
    masses: Floats = np.bincount(edge, p0[owner], len(trie.edge_node)).astype(np.float64)
    return masses


def history_prior(
    trie: Trie, background: Floats, share: Floats, history: Integers, titles: Integers, own: Floats
) -> Prior:
    """Return the prior of B histories.

    Args:
        trie: of the catalogue.
        background: (E,) masses of what histories share, of :func:`edge_masses`.
        share: (B,) its factor in each history.
        history: (n,) which history adds something.
        titles: (n,) to which distinct title; one that comes twice is added twice.
        own: (n,) how much.
    """
    owner, edge = trie.steps(titles)
    keys, place = np.unique(history[owner] * len(background) + edge, return_inverse=True)
    added: Floats = np.bincount(place, own[owner], len(keys)).astype(np.float64)
    return Prior(background, share, keys, added)
