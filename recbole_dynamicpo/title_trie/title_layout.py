"""What must be forwarded and read to score chosen titles of a trie.

A *query* is one history: the place in a sequence whose last token stands for the trie's root. A layout says
which nodes to forward behind each query, which hidden states to read, and which logits make up a title:

- all titles for B rows: one query, whose titles are all of them; states and logits then have a leading
  dimension B;
- the same in chunks on the prompt's keys and values: ``ForwardNodes.chunks``;
- training rows: Q = B queries with the C titles of each row;
- dense rows: Q = supervised positions. A node with candidate 0 lies on the positive's path and so stands
  on the trunk already; the others are branches.

Shape letters: Q queries, C candidates, F forwarded nodes, S hidden states read, E edges (child tokens whose
logit is needed), L pairs of a title and an edge on its path.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .trie import Integers, Trie

# A group of states read at one branching node is worth a matrix product of its own from this many logits
# on; fewer are faster as gathered rows of the output layer.
GROUP_LOGITS = 256


class Chunk(NamedTuple):
    """A run of forwarded nodes for one pass on kept keys and values."""

    start: int
    stop: int
    carried: Tensor  # (A,) int64: earlier nodes whose keys and values this pass needs, by rising number


class ForwardNodes(NamedTuple):
    """The nodes to forward, by query and then in preorder: a node's descendants follow it without a gap."""

    query: Tensor  # (F,) int64
    node: Tensor  # (F,) int64: of the trie
    token: Tensor  # (F,) int64
    depth: Tensor  # (F,) int64: positions behind the query's last token, from 1 on
    parent: Tensor  # (F,) int64: another forwarded node, -1 for the query's last token
    end: Tensor  # (F,) int64: first number behind the node's descendants
    candidate: Tensor  # (F,) int64: the first of the query's titles whose path the node lies on

    def chunks(self, limit: int) -> list[Chunk]:
        """Return runs of at most ``limit`` nodes that forward each node once.

        A run needs the keys and values of its query, of ``carried`` and its own, no others; there are never
        more carried nodes than the depth of the trie.
        """
        parent = self.parent.tolist()
        found = []
        for start in range(0, len(parent), limit):
            carried, node = [], parent[start]
            while node >= 0:
                carried.append(node)
                node = parent[node]
            kept = torch.tensor(carried[::-1], dtype=torch.int64, device=self.parent.device)
            found.append(Chunk(start, min(start + limit, len(parent)), kept))
        return found


class Products(NamedTuple):
    """How the logits of edges are made: some by matrix products, the others one by one."""

    groups: tuple[tuple[Tensor, Tensor], ...]  # (n,) states at one node, (c,) child tokens: n x c logits
    single: Tensor  # (E',) int64: edges that are in no group
    place: Tensor  # (E,) int64: where each edge's logit stands behind those of groups, then single ones


class ChildEdges(NamedTuple):
    """The children of every branching node that is read; the edges of one state stand together."""

    products: Products
    query: Tensor  # (S,) int64
    branching: Tensor  # (S,) int64: number of the branching node
    start: Integers  # (S + 1,) where the edges of each state begin; stays on the CPU
    edge: Tensor  # (E,) int64: of the trie
    source: Tensor  # (E,) int64: the state that the logit is read from
    token: Tensor  # (E,) int64: the child token


class TitleSteps(NamedTuple):
    """Which edges make up which title, from the root down."""

    edge: Tensor  # (L,) int64: place among the layout's edges
    title: Tensor  # (L,) int64: flat (Q * C)
    queries: int
    candidates: int


class Layout(NamedTuple):
    """All that scoring chosen titles takes beside the model."""

    nodes: ForwardNodes
    source: Tensor  # (S,) int64: the forwarded node to read, -1 for the query's last token
    edges: ChildEdges
    steps: TitleSteps


def lay_out(trie: Trie, titles: Integers) -> Layout:
    """Return what must be forwarded and read to score ``titles``.

    Args:
        trie: of the catalogue.
        titles: (Q, C) distinct titles of each query, -1 where there is none.
    """
    queries, candidates = titles.shape
    present = np.flatnonzero(titles >= 0)
    owner, edge = trie.steps(titles.ravel()[present])
    owner = present[owner]
    number = trie.edge_from[edge]
    size = max(len(trie.branching), 1)
    states, state = np.unique(owner // max(candidates, 1) * size + number, return_inverse=True)
    query, branching = np.divmod(states, size)
    first = np.full(len(states), candidates)
    np.minimum.at(first, state, owner % max(candidates, 1))
    nodes, source = _forward(trie, query, trie.branching[branching], first)
    edges = child_edges(trie, query, branching)
    place = edges.start[state] + edge - trie.edge_start[number]
    steps = TitleSteps(torch.from_numpy(place), torch.from_numpy(owner), queries, candidates)
    return Layout(nodes, torch.from_numpy(source), edges, steps)


def child_edges(trie: Trie, query: Integers, branching: Integers) -> ChildEdges:
    """Return the edges to read from one hidden state at each branching node.

    Args:
        trie: of the catalogue.
        query: (S,) query of each state.
        branching: (S,) its branching node, by number.
    """
    begin = trie.edge_start[branching]
    count = trie.edge_start[branching + 1] - begin
    start = np.concatenate([[0], count.cumsum()])
    source = np.repeat(np.arange(len(branching)), count)
    edge = np.arange(start[-1]) + (begin - start[:-1])[source]
    token = trie.token[trie.edge_node[edge]].astype(np.int64)
    asked, number = torch.from_numpy(query), torch.from_numpy(branching)
    columns = map(torch.from_numpy, (edge, source, token))
    return ChildEdges(_products(branching, count, start, token), asked, number, start, *columns)


def _products(branching: Integers, count: Integers, start: Integers, token: Integers) -> Products:
    """Say which states share a branching node and are worth a matrix product together."""
    by_node = np.argsort(branching, kind="stable")
    heads = np.flatnonzero(np.diff(branching[by_node], prepend=-1))
    sizes = np.diff(np.append(heads, len(by_node)))
    worth = sizes * count[by_node[heads]] >= GROUP_LOGITS
    alone = np.ones(len(branching), bool)
    groups, order = [], []
    for head, size in zip(heads[worth], sizes[worth], strict=True):
        states = by_node[head : head + size]
        alone[states] = False
        children = np.arange(count[states[0]])
        order.append((start[states, None] + children).ravel())
        groups.append((torch.from_numpy(states), torch.from_numpy(token[start[states[0]] + children])))
    single = np.flatnonzero(np.repeat(alone, count))
    place = np.empty(len(token), np.int64)
    place[np.concatenate([*order, single])] = np.arange(len(token))
    return Products(tuple(groups), torch.from_numpy(single), torch.from_numpy(place))


def _forward(trie: Trie, query: Integers, nodes: Integers, first: Integers) -> tuple[ForwardNodes, Integers]:
    """Return the nodes at or above those that are read, and where the latter stand among them.

    Args:
        trie: of the catalogue.
        query: (S,) query of each node read.
        nodes: (S,) the nodes.
        first: (S,) first candidate of the query whose path the node lies on.
    """
    owner, node = trie.with_ancestors(query, nodes)
    below_root = node > 0
    owner, node = owner[below_root], node[below_root]
    size = len(trie.parent)
    keys = owner * size + node
    above = trie.parent[node].astype(np.int64)
    parent = np.where(above > 0, np.searchsorted(keys, owner * size + above), -1)
    source = np.where(nodes > 0, np.searchsorted(keys, query * size + nodes), -1)

    depth = trie.depth[node].astype(np.int64)
    candidate = np.full(len(node), np.iinfo(np.int64).max)
    candidate[source[source >= 0]] = first[source >= 0]
    end = np.arange(1, len(node) + 1)
    deepest_first = np.argsort(-depth, kind="stable")
    for level in np.split(deepest_first, np.flatnonzero(np.diff(depth[deepest_first])) + 1):
        level = level[parent[level] >= 0]
        np.maximum.at(end, parent[level], end[level])
        np.minimum.at(candidate, parent[level], candidate[level])
    columns = (owner, node, trie.token[node].astype(np.int64), depth, parent, end, candidate)
    return ForwardNodes(*map(torch.from_numpy, columns)), source
