"""Rows as token trees: a trunk that is read from left to right, and what branches off it.

A trunk is a prompt, or a prompt that goes on: head, title, title, ... Queries are places on it behind which
titles are scored. What titles share with the trunk stands there already; the rest of each hangs off the trunk
as a branch. Whole catalogues hang off the end of prompts, the same nodes behind each.

Shape letters as in ``title_layout``: Q queries, F forwarded nodes, S states read; B rows, T places of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..language_model.tree import TreeBatch
from .title_layout import ForwardNodes, Layout
from .trie import Integers


class AskedTitles(NamedTuple):
    """Titles behind prompts or places of trunks, laid out on the host."""

    batch: TreeBatch
    layout: Layout
    ratios: Callable[[], Tensor]  # (J, ..., E) of priors at the edges, found when asked

    def ready(self) -> AskedTitles:
        """Return it with the priors asked already, which takes the host's time."""
        known = self.ratios()
        return self._replace(ratios=lambda: known)


def pack_trees(
    trunks: Sequence[Sequence[int]], row: Integers, place: Integers, layout: Layout, on_trunk: Integers
) -> TreeBatch:
    """Lay out trunks with their branches.

    Args:
        trunks: tokens of each of the B rows.
        row: (Q,) the row of each query.
        place: (Q,) its place on the trunk: that of the last token before a title.
        layout: on the CPU: what is forwarded and read behind each query.
        on_trunk: (F,) the trunk place of a node that stands on it, -1 for branches. What is above a node on
            the trunk stands there too.
    """
    nodes = layout.nodes
    query = nodes.query.numpy()
    anchor = _anchors(nodes, place, on_trunk)
    branch = np.flatnonzero(on_trunk < 0)
    node_row = row[query]
    lengths = np.array([len(trunk) for trunk in trunks])
    total = lengths + np.bincount(node_row[branch], minlength=len(trunks))
    start = np.concatenate([[0], lengths.cumsum()])  # of each trunk among all trunk tokens

    # Where trunk tokens stand: behind the branches of the tokens before them.
    hanging = np.bincount(start[node_row[branch]] + anchor[branch], minlength=start[-1])
    before = np.concatenate([[0], hanging.cumsum()[:-1]])
    of_row = np.repeat(np.arange(len(trunks)), lengths)
    first = np.concatenate([[0], hanging.cumsum()])[start[:-1]]
    trunk_place = np.arange(start[-1]) - start[of_row] + before - first[of_row]

    order = branch[np.lexsort((branch, anchor[branch], node_row[branch]))]
    rank = np.arange(len(order)) - np.concatenate([[0], (total - lengths).cumsum()])[node_row[order]]
    where = np.empty(len(query), np.int64)
    where[order] = anchor[order] + 1 + rank
    there = on_trunk >= 0
    where[there] = trunk_place[start[node_row[there]] + on_trunk[there]]

    width = int(total.max())
    shape = (len(trunks), width)
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    end = np.tile(np.arange(1, width + 1), (len(trunks), 1))
    ids[of_row, trunk_place] = np.concatenate([np.asarray(trunk, np.int64) for trunk in trunks])
    positions[of_row, trunk_place] = np.arange(start[-1]) - start[of_row]
    end[of_row, trunk_place] = total[of_row]
    at = (node_row[branch], where[branch])
    ids[at] = nodes.token.numpy()[branch]
    positions[at] = place[query[branch]] + nodes.depth.numpy()[branch]
    end[at] = where[branch] + nodes.end.numpy()[branch] - branch
    source, asked = layout.source.numpy(), layout.edges.query.numpy()
    stands = np.where(
        source >= 0, where[source] if len(where) else 0, trunk_place[start[row[asked]] + place[asked]]
    )
    read = row[asked] * width + stands
    return TreeBatch(*map(torch.from_numpy, (ids, positions, end, total, read)))


def _anchors(nodes: ForwardNodes, place: Integers, on_trunk: Integers) -> Integers:
    """Return (F,) the trunk place that each node's branch hangs from; of nodes on the trunk, their own."""
    parent, depth = nodes.parent.numpy(), nodes.depth.numpy()
    anchor: Integers = place[nodes.query.numpy()].copy()
    anchor[on_trunk >= 0] = on_trunk[on_trunk >= 0]
    for level in range(2, int(depth.max(initial=1)) + 1):
        here = np.flatnonzero((depth == level) & (on_trunk < 0))
        anchor[here] = anchor[parent[here]]
    return anchor


def pack_whole(prompts: Sequence[Sequence[int]], layout: Layout) -> TreeBatch:
    """Lay out prompts with the same nodes behind each: those of a layout with one query.

    Padding stands between a prompt and the nodes, so that states have the same places in all rows; ``read``
    goes row by row.
    """
    nodes, rows = layout.nodes, len(prompts)
    longest, count = max(map(len, prompts)), len(layout.nodes.node)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    width = longest + count
    ids = torch.zeros(rows, width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    ids[:, longest:] = nodes.token
    place = torch.arange(width).expand(rows, -1)
    positions = place.clone()
    positions[:, longest:] = lengths[:, None] - 1 + nodes.depth
    end = place + 1
    end[place < lengths[:, None]] = width
    end[:, longest:] = longest + nodes.end
    last = (lengths - 1)[:, None]
    stands = torch.where(layout.source >= 0, longest + layout.source, last)
    read = (torch.arange(rows)[:, None] * width + stands).flatten()
    return TreeBatch(ids, positions, end, lengths + count, read)
