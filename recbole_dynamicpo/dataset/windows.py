"""Training titles as windows of whole sequences: every title is a supervised position, once an epoch.

A chain is what one user took in training, in order: in rows that are split already, as far as they go on from
one another. It is cut into windows whose borders move from epoch to epoch, and each position of a window gets
negatives that its user did not take in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.data.interaction import Interaction

from .columns import CHAIN, NEGATIVES, ROW_ID, START, STOP, TOKENS
from .row_order import goes_on
from .sampling import IntArray, row_generator

# Draws for a position at once, as many whatever K is, so that the negatives of a smaller K come first.
_DRAWN = 32


@dataclass(frozen=True)
class Chains:
    """Training sequences.

    Attributes:
        users: (n,) whose each is.
        items: n arrays of item ids, in order.
    """

    users: IntArray
    items: list[IntArray]

    @property
    def positions(self) -> int:
        """Return the titles of all chains."""
        return sum(map(len, self.items))


def train_chains(data: Any) -> Chains:
    """Return the training sequences of a built ``DynamicPODataset``."""
    rows, parts = data.built["train"].inter_feat, _chain_rows(data)
    users, targets, histories = rows[data.uid_field].numpy(), rows[data.iid_field].numpy(), data.history(rows)
    items = [np.concatenate([histories[part[0]], targets[part]]) for part in parts]
    return Chains(np.array([users[part[0]] for part in parts], dtype=np.int64), items)


def chain_values(data: Any, field: str) -> list[NDArray[np.float64]]:
    """Return what a column of numbers says of the titles of the training sequences, in their order.

    Args:
        data: a built ``DynamicPODataset``, whose rows have the column and that of the history.
        field: name of the column.
    """
    rows = data.built["train"].inter_feat
    own, before = rows[field].double().numpy(), rows[field + data.config["LIST_SUFFIX"]].double().numpy()
    lengths = rows[data.item_list_length_field].tolist()
    return [np.concatenate([before[part[0], : lengths[part[0]]], own[part]]) for part in _chain_rows(data)]


def _chain_rows(data: Any) -> list[IntArray]:
    """Return the training rows of each sequence, in order; the first one's history begins it."""
    rows = data.built["train"].inter_feat
    users, targets = rows[data.uid_field].numpy(), rows[data.iid_field].numpy()
    histories = data.history(rows)
    order = np.argsort(users, kind="stable")  # RecBole has the rows of a user in time
    if data.benchmark_filename_list is None:
        begins = np.concatenate([[True], np.diff(users[order]) != 0])
    else:
        order = np.arange(len(users))
        begins = ~goes_on(users, histories, targets)
    return np.split(order, np.flatnonzero(begins)[1:]) if len(order) else []


def cut_windows(
    chains: Chains, tokens: IntArray, window: int, room: int, draw: np.random.Generator
) -> NDArray[np.int64]:
    """Return (n, 3) chain, start and stop of windows that hold every title once.

    Args:
        chains: to cut.
        tokens: (items,) of each item's title, terminator included.
        window: titles of a window, at most; the first one of a chain is as long as is drawn.
        room: tokens of a window, at most, though never less than one title.
        draw: of the borders.
    """
    found = []
    for number, items in enumerate(chains.items):
        start, left = 0, int(draw.integers(1, window + 1))
        ends = tokens[items].cumsum()
        while start < len(items):
            before = int(ends[start - 1]) if start else 0
            fits = int(np.searchsorted(ends, before + room, side="right"))
            stop = max(start + 1, min(start + left, fits, len(items)))
            found.append((number, start, stop))
            start, left = stop, window
    return np.array(found, dtype=np.int64).reshape(-1, 3)


def choose_windows(
    windows: NDArray[np.int64], positions: int, draw: np.random.Generator
) -> NDArray[np.int64]:
    """Return windows in random order that hold just so many positions (0: all); the last may be cut."""
    chosen: NDArray[np.int64] = windows[draw.permutation(len(windows))]
    held = (chosen[:, 2] - chosen[:, 1]).cumsum()
    if not positions or positions >= held[-1]:
        return chosen
    last = int(np.searchsorted(held, positions))
    chosen = chosen[: last + 1].copy()
    chosen[last, 2] -= held[last] - positions
    return chosen


def steps_of(windows: NDArray[np.int64], steps: int) -> IntArray:
    """Return (n,) the step that takes each window: steps have about the same number of positions.

    Args:
        windows: (n, 3) in the order of the epoch.
        steps: of the epoch.
    """
    sizes = windows[:, 2] - windows[:, 1]
    begins = sizes.cumsum() - sizes
    found: IntArray = begins * steps // sizes.sum()
    return found


def as_interaction(
    windows: NDArray[np.int64], chains: Chains, tokens: IntArray, user_field: str
) -> Interaction:
    """Return windows as rows of RecBole's kind.

    Args:
        windows: (n, 3) chain, start, stop.
        chains: that they are cut from.
        tokens: (items,) of each item's title.
        user_field: RecBole's name of the user's column.
    """
    sizes = [int(tokens[chains.items[c][a:b]].sum()) for c, a, b in windows.tolist()]
    columns = {CHAIN: windows[:, 0], START: windows[:, 1], STOP: windows[:, 2]}
    columns |= {
        ROW_ID: np.arange(len(windows)),
        TOKENS: np.array(sizes),
        user_field: chains.users[windows[:, 0]],
    }
    return Interaction({name: torch.from_numpy(values.copy()) for name, values in columns.items()})


def add_negatives(
    rows: Interaction,
    chains: Chains,
    titles: IntArray,
    taken: Callable[[int], IntArray],
    count: int,
    seeds: Sequence[int],
    pool: Callable[[int, IntArray], IntArray] | None = None,
    *,
    in_order: bool = False,
) -> None:
    """Give every position of windows K negatives of distinct titles: column NEGATIVES, (n, W, K), 0 for none.

    The negatives of a smaller K are the first of those of a larger one, under the same seeds.

    Args:
        rows: windows.
        chains: that they are cut from.
        titles: (items,) a number of each item's title; item 0 is none.
        taken: items of a user in training.
        count: K.
        seeds: of the draw: of the run, stage and epoch.
        pool: asked for a chain and positions, returns (positions, any) items to draw from, 0 for none; None
            draws from all items.
        in_order: take the first ones of the pool instead of drawing.
    """
    spans = torch.stack([rows[CHAIN], rows[START], rows[STOP]], dim=1).tolist()
    widest = max(stop - start for _, start, stop in spans)
    found = np.zeros((len(spans), widest, count), dtype=np.int64)
    for row, (chain, start, stop) in enumerate(spans):
        draw = row_generator(*seeds, chain)  # for whole chains, so that borders decide nothing
        length = len(chains.items[chain])
        banned = np.zeros(int(titles.max()) + 1, dtype=bool)
        banned[titles[taken(int(chains.users[chain]))]] = True
        banned[0] = True
        if pool is None:
            found[row, : stop - start] = _drawn_until_enough(titles, banned, count, draw, length, start, stop)
            continue
        drawn = pool(chain, np.arange(start, stop))
        if not in_order:
            keys = draw.random((length, drawn.shape[1]))[start:stop]
            drawn = np.take_along_axis(drawn, keys.argsort(axis=1), axis=1)
        found[row, : stop - start] = _first_fitting(drawn, titles, banned, count)
    rows.update(Interaction({NEGATIVES: torch.from_numpy(found)}))


def _drawn_until_enough(
    titles: IntArray,
    banned: NDArray[np.bool_],
    count: int,
    draw: np.random.Generator,
    length: int,
    start: int,
    stop: int,
) -> IntArray:
    """Return (P, count) of a chain's positions from start to stop; 0 where there are no more titles."""
    free = int(np.count_nonzero(~banned[np.unique(titles[1:])]))
    wanted, drawn = min(count, free), np.zeros((stop - start, 0), dtype=np.int64)
    while True:
        more = draw.integers(1, len(titles), size=(length, _DRAWN))[start:stop]
        drawn = np.concatenate([drawn, more], axis=1)
        found = _first_fitting(drawn, titles, banned, count)
        if (np.count_nonzero(found, axis=1) >= wanted).all():
            return found


def _first_fitting(drawn: IntArray, titles: IntArray, banned: NDArray[np.bool_], count: int) -> IntArray:
    """Return (P, count) each row's first items of titles neither banned nor repeated; 0 for none."""
    named = titles[drawn]
    order = named.argsort(axis=1, kind="stable")
    in_order = np.take_along_axis(named, order, axis=1)
    repeated = np.zeros(named.shape, dtype=bool)
    np.put_along_axis(repeated, order[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
    fits = ~(banned[named] | repeated)
    first = np.argsort(~fits, axis=1, kind="stable")[:, :count]
    found = np.zeros((len(drawn), count), dtype=np.int64)
    found[:, : first.shape[1]] = np.where(
        np.take_along_axis(fits, first, axis=1), np.take_along_axis(drawn, first, axis=1), 0
    )
    return found
