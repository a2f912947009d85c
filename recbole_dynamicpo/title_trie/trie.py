"""The titles of a catalogue as a trie of tokens.

A title is its token sequence and a terminator, so that no title is a proper prefix of another. Items that
bear one title share a leaf. A node *branches* if it has more than one child; only there is anything to
decide, so the likelihood of a title is read off the *edges* that leave branching nodes on its path.

Nodes are numbered in preorder: the root is 0, a parent comes before its children, all nodes below a node
follow it without a gap, and the only child of a node that does not branch is the next number.

Shape letters: I items, Y distinct titles, M nodes, P branching nodes, E edges that leave branching nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Trie:
    """A catalogue's titles as arrays; made by ``trie_builder.build_trie``.

    Distinct titles are numbered by first appearance in the catalogue, branching nodes and edges in the order
    of nodes; the edges of one branching node stand together, by rising token.

    Attributes:
        terminator: the token that ends every title.
        parent: (M,) int32, -1 for the root.
        token: (M,) int32, the token that leads to the node, -1 for the root.
        depth: (M,) int32, 0 for the root.
        branching: (P,) nodes that branch.
        edge_start: (P + 1,) where the edges of each branching node begin.
        edge_node: (E,) the child that an edge leads to.
        edge_from: (E,) number of the branching node that an edge leaves.
        branching_edge: (P,) the last edge on the path to a branching node, -1 for the first.
        edge_to: (E,) number of the branching node that an edge reaches next, -1 where it reaches a title.
        edge_title: (E,) the title that an edge reaches, -1 where it reaches a branching node.
        leaf: (Y,) node of each distinct title.
        title_edge: (Y,) the last edge on a title's path; -1 where there is no other title.
        title_of_item: (I,) the distinct title of each item.
        item_start: (Y + 1,) where the items of each title begin in ``item_order``.
        item_order: (I,) items by title, those of one title in the order of the catalogue.
        digest: sha256 over terminator, tokens and titles, in the order of the catalogue.
    """

    terminator: int
    parent: NDArray[np.int32]
    token: NDArray[np.int32]
    depth: NDArray[np.int32]
    branching: Integers
    edge_start: Integers
    edge_node: Integers
    edge_from: Integers
    branching_edge: Integers
    edge_to: Integers
    edge_title: Integers
    leaf: Integers
    title_edge: Integers
    title_of_item: Integers
    item_start: Integers
    item_order: Integers
    digest: str

    @property
    def num_titles(self) -> int:
        """Return Y."""
        return len(self.leaf)

    def items(self, title: int) -> Integers:
        """Return the items that bear a distinct title, in the order of the catalogue."""
        return self.item_order[self.item_start[title] : self.item_start[title + 1]]

    def path(self, node: int) -> Integers:
        """Return the nodes from the root's child down to ``node``; empty for the root."""
        found = []
        while node > 0:
            found.append(node)
            node = int(self.parent[node])
        return np.array(found[::-1], dtype=np.int64)

    def steps(self, titles: Integers) -> tuple[Integers, Integers]:
        """Return the edges on the paths of ``titles``.

        Args:
            titles: (n,) distinct titles, repeats allowed.

        Returns:
            (L,) which of the n an edge belongs to, and (L,) the edge. The edges of one title come from the
            root down; those of several are mixed.
        """
        owner, edge = np.arange(len(titles)), self.title_edge[titles]
        levels: list[tuple[Integers, Integers]] = []
        while len(owner := owner[edge >= 0]):
            edge = edge[edge >= 0]
            levels.append((owner, edge))
            edge = self.branching_edge[self.edge_from[edge]]
        if not levels:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        owners, edges = zip(*levels[::-1], strict=True)
        return np.concatenate(owners), np.concatenate(edges)

    def decisions(self) -> Integers:
        """Return (Y,) how many branching nodes are on each title's path: the terms of its log-probability."""
        counts: Integers = np.bincount(self.steps(np.arange(self.num_titles))[0], minlength=self.num_titles)
        return counts

    def with_ancestors(self, owner: Integers, nodes: Integers) -> tuple[Integers, Integers]:
        """Return all nodes at or above the given ones, root included, each once for an owner.

        Args:
            owner: (n,) whose node it is, from 0 on.
            nodes: (n,) the nodes.

        Returns:
            (m,) owners and (m,) nodes, by owner and then by node.
        """
        size = len(self.parent)
        front = np.unique(owner * size + nodes)
        levels = [front]
        while len(front):
            above = self.parent[front % size]
            front = np.unique((front - front % size + above)[above >= 0])
            levels.append(front)
        owners, found = np.divmod(np.unique(np.concatenate(levels)), size)
        return owners, found

    def forward_nodes(self, titles: Integers | None = None) -> Integers:
        """Return the nodes that need a forward pass to score ``titles`` (None: all), in preorder.

        They are those with a branching node of a title's path at or below them; the root is the prompt's
        last token and so is forwarded with it.
        """
        numbers = None if titles is None else self.edge_from[self.steps(titles)[1]]
        nodes = self.branching if numbers is None else self.branching[numbers]
        found = self.with_ancestors(np.zeros_like(nodes), nodes)[1]
        return found[found > 0]
