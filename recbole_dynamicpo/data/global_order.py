"""One order of all titles behind the users' histories: how far they agree on it, and the order itself."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

# Pairs of titles are judged by their order if they occur together so often.
LEAST_TOGETHER = 4


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
    """Return both sides of all neighbours of different items, as often as they occur."""
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


def chained_pairs(
    users: IntArray, histories: list[IntArray], targets: IntArray
) -> tuple[IntArray, IntArray, IntArray]:
    """Return user, earlier and later item of all pairs that some row of a user holds, target included.

    A user's rows continue one another: the first history and every target, in their order.

    Args:
        users: (N,) of each row.
        histories: N arrays of items, oldest first.
        targets: (N,) items.
    """
    order = np.argsort(users, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(users[order])) + 1) if len(order) else []
    reach = max(map(len, histories), default=0)
    none = np.zeros(0, dtype=np.int64)
    parts = [(none, none, none)]
    for group in groups:
        chain = np.append(histories[group[0]], targets[group])
        for d in range(1, min(reach, len(chain) - 1) + 1):
            parts.append((np.full(len(chain) - d, users[group[0]]), chain[:-d], chain[d:]))
    owner, first, second = (np.concatenate(side) for side in zip(*parts, strict=True))
    return owner, first, second


def agreement(owner: IntArray, first: IntArray, second: IntArray) -> tuple[float | None, float | None]:
    """Return the share of pairs in the direction of their majority, and what a coin gives at these counts.

    A pair counts once a user, however many rows of the user's hold it.

    Args:
        owner: (n,) user of each pair.
        first, second: (n,) its items, in order.
    """
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
    from scipy.stats import binom  # takes long to import

    heads = np.arange(size + 1)
    share = binom.pmf(heads, size, 0.5)
    return float((np.maximum(heads, size - heads) * share).sum())
