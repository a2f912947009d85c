"""Builds a catalogue's trie by sorting its titles; the numbering is that of ``trie``."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, short
from .trie import Integers, Trie


def build_trie(titles: Sequence[str], tokens: Iterable[Sequence[int]], terminator: int) -> Trie:
    """Return the trie of a catalogue.

    Args:
        titles: (I,) the title of each item, for the digest and for messages.
        tokens: token ids of each title, without terminator; read once, so it may be a generator.
        terminator: the token that is set behind every title.

    Raises:
        DataError: naming the title, if it has no tokens, holds the terminator (it would be a prefix of
            others), or has the tokens of another title; or if there is no title at all.
        ValueError: ``tokens`` and ``titles`` differ in number.
    """
    flat, start = _flatten(tokens, terminator)
    _check(titles, flat, start, terminator)
    order, shared = _sort(flat, start, terminator)
    length = np.diff(start)[order]
    fresh = shared < length  # not the title of the item before
    _refuse_twins(titles, order, fresh)
    first_item = order[fresh]
    chains = _Chains(flat, start[first_item], length[fresh], shared[fresh])
    title_of = np.empty(len(first_item), np.int64)  # sorted place -> number by first appearance
    title_of[np.argsort(first_item)] = np.arange(len(first_item))
    title_of_item = np.empty(len(order), np.int64)
    title_of_item[order] = title_of[np.cumsum(fresh) - 1]
    leaf = np.empty_like(title_of)
    leaf[title_of] = chains.last
    return Trie(
        terminator=terminator,
        parent=chains.parent,
        token=chains.token,
        depth=chains.depth,
        leaf=leaf,
        title_of_item=title_of_item,
        item_start=np.concatenate([[0], np.bincount(title_of_item).cumsum()]),
        item_order=np.argsort(title_of_item, kind="stable"),
        digest=_digest(titles, flat, terminator),
        **_edges(chains, leaf),
    )


def _flatten(tokens: Iterable[Sequence[int]], terminator: int) -> tuple[NDArray[np.int32], Integers]:
    """Return all titles' tokens with terminators in one array, and where each title starts."""
    flat, ends = array("i"), array("q", [0])
    for title in tokens:
        flat.extend(title)
        flat.append(terminator)
        ends.append(len(flat))
    return np.frombuffer(flat, np.int32), np.frombuffer(ends, np.int64)


def _check(titles: Sequence[str], flat: NDArray[np.int32], start: Integers, terminator: int) -> None:
    if len(titles) != len(start) - 1:
        raise ValueError(f"tokens: wanted those of {len(titles)} titles, got {len(start) - 1}")
    if not len(titles):
        raise DataError("catalogue: got no title, wanted at least one")
    empty = np.flatnonzero(np.diff(start) == 1)
    if len(empty):
        raise DataError(f"item {empty[0]} of the catalogue: title {short(titles[empty[0]])} has no tokens")
    ends = np.flatnonzero(flat == terminator)
    if len(ends) > len(titles):
        place = np.flatnonzero(ends[: len(titles)] != start[1:] - 1)[0]
        raise DataError(
            f"item {place} of the catalogue: title {short(titles[place])} holds the token {terminator}, "
            "which ends titles; wanted a terminator that is in no title"
        )


def _refuse_twins(titles: Sequence[str], order: Integers, fresh: NDArray[np.bool_]) -> None:
    """Refuse two titles that differ as texts but not as tokens."""
    first = order[np.maximum.accumulate(np.where(fresh, np.arange(len(order)), 0))]
    for item, other in zip(order[~fresh].tolist(), first[~fresh].tolist(), strict=True):
        if titles[item] != titles[other]:
            raise DataError(
                f"items {other} and {item} of the catalogue: titles {short(titles[other])} and "
                f"{short(titles[item])} have the same tokens; wanted a tokenizer that tells them apart"
            )


def _sort(flat: NDArray[np.int32], start: Integers, terminator: int) -> tuple[Integers, Integers]:
    """Return the lexicographic order of titles, and how many tokens each shares with the one before.

    Sorted token by token; a title that no other equals so far takes no further part. Equal titles keep
    their order and share all tokens, terminator included.
    """
    order = np.arange(len(start) - 1)
    shared = np.zeros(len(order), np.int64)
    place, group = order.copy(), np.zeros(len(order), np.int64)  # where titles still undecided stand
    width, depth = int(flat.max()) + 1, 0
    while len(place):
        chosen = order[place]
        key = group * width + flat[start[chosen] + depth]
        by_key = key.argsort(kind="stable")
        order[place], key = chosen[by_key], key[by_key]
        new = np.concatenate([[True], key[1:] != key[:-1]])
        parted = new & np.concatenate([[False], group[1:] == group[:-1]])
        shared[place[parted]] = depth
        heads = np.flatnonzero(new)
        size = np.diff(np.append(heads, len(place)))
        ended = key % width == terminator
        shared[place[ended & ~new]] = depth + 1
        going = np.repeat(size > 1, size) & ~ended
        group = np.repeat(place[heads], size)[going]
        place = place[going]
        depth += 1
    return order, shared


class _Chains:
    """The nodes that each title adds to those of the titles sorted before it: one chain down to its leaf.

    Args:
        flat: tokens of all titles.
        start: (Y,) where each sorted distinct title begins there.
        length: (Y,) its tokens, terminator included.
        shared: (Y,) tokens shared with the title before.
    """

    def __init__(self, flat: NDArray[np.int32], start: Integers, length: Integers, shared: Integers) -> None:
        added = length - shared
        self.last = added.cumsum()
        self.first = self.last - added + 1
        size = int(self.last[-1]) + 1
        self.depth = np.ones(size, np.int32)
        self.depth[0] = 0
        self.depth[self.first[1:]] += (shared[1:] - length[:-1]).astype(np.int32)
        np.cumsum(self.depth, out=self.depth)
        place = np.ones(size, np.int64)  # in ``flat``
        place[0] = start[0] - 1
        place[self.first[1:]] += start[1:] + shared[1:] - (start + length)[:-1]
        self.token = flat[np.cumsum(place, out=place)]
        self.token[0] = -1
        self.parent = np.arange(-1, size - 1, dtype=np.int32)
        self.parent[self.first] = self._above(shared)

    def _above(self, shared: Integers) -> Integers:
        """Return (Y,) the node that each chain hangs from."""
        above = np.zeros(len(shared), np.int64)
        for depth in np.unique(shared[shared > 0]):
            mine = np.flatnonzero(shared == depth)
            higher = np.flatnonzero(shared < depth)
            holder = higher[np.searchsorted(higher, mine) - 1]  # whose chain has the node of that depth
            above[mine] = self.first[holder] + depth - shared[holder] - 1
        return above


def _edges(chains: _Chains, leaf: Integers) -> dict[str, Any]:
    """Return the branching nodes and their edges. Every chain but the first begins with an edge."""
    heads = chains.first[1:]
    branching = np.unique(chains.parent[heads]).astype(np.int64)
    nodes = np.concatenate([branching + 1, heads])
    origin = np.searchsorted(branching, chains.parent[nodes])
    by_origin = np.lexsort((nodes, origin))
    edge_node, edge_from = nodes[by_origin], origin[by_origin]
    by_node = np.argsort(edge_node)
    lookup = np.append(by_node, -1)  # place -1: before all edges

    def nearest(wanted: Integers) -> Integers:
        found: Integers = lookup[np.searchsorted(edge_node[by_node], wanted, side="right") - 1]
        return found

    branching_edge, title_edge = nearest(branching), nearest(leaf)
    edge_to, edge_title = np.full((2, len(edge_node)), -1, np.int64)
    reached = np.flatnonzero(branching_edge >= 0)
    edge_to[branching_edge[reached]] = reached
    if len(leaf) > 1:
        edge_title[title_edge] = np.arange(len(leaf))
    return {
        "branching": branching,
        "edge_start": np.searchsorted(edge_from, np.arange(len(branching) + 1)),
        "edge_node": edge_node,
        "edge_from": edge_from,
        "branching_edge": branching_edge,
        "edge_to": edge_to,
        "edge_title": edge_title,
        "title_edge": title_edge,
    }


def _digest(titles: Sequence[str], flat: NDArray[np.int32], terminator: int) -> str:
    digest = hashlib.sha256(f"{terminator} {len(flat)}\n".encode())
    digest.update(flat.astype("<i4").data)
    for title in titles:
        text = title.encode("utf-8", "surrogatepass")
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()
