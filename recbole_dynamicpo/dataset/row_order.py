"""The order of a user's titles: by time with ties drawn, as in the file, or shuffled for lack of time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.data.interaction import Interaction

from ..evaluation.scores import tie_draws
from .sampling import IntArray, row_generator

# float32 holds whole numbers up to here exactly; beyond, the order of the rows decides.
EXACT_FLOAT32 = 1 << 24


def put_in_order(data: Any) -> list[str]:
    """Sort the interactions of a data set as its settings ask for, and make their times whole numbers.

    RecBole stores times as float32, in which second-resolution stamps of one day coincide, and sorts
    afterwards. Ranks keep the order: the sort is stable, and equal times keep the order made here.

    Args:
        data: a ``DynamicPODataset`` whose interactions are a data frame.

    Returns:
        What a reader of figures has to know of the order, a sentence each.
    """
    settings, time_field = data.settings, data.time_field
    notes = []
    users_of, times = data.inter_feat[data.uid_field].to_numpy(), data.inter_feat[time_field].to_numpy()
    tied, neighbours = time_ties(users_of, times)
    data.time_ties = tied / neighbours if neighbours else None
    data.clock = np.unique(times)
    if settings.history_order == "given":
        order = np.arange(len(data.inter_feat))
        data.clock = times.astype(np.float64)
    else:
        shuffled = settings.history_order == "shuffled"
        if shuffled or settings.time_ties == "hash":
            columns = {field: data.inter_feat[field].to_numpy() for field in (data.uid_field, data.iid_field)}
            users, items = (data.id2token(field, ids) for field, ids in columns.items())
            keys = order_keys(users, items, settings.seed)
            data.inter_feat = data.inter_feat.iloc[np.argsort(keys, kind="stable")]
        if shuffled:
            notes.append(f"no order in time: each user's titles are shuffled (seed {settings.seed})")
            data.clock = None
            order = np.arange(len(data.inter_feat))
        else:
            how = (
                "ordered by a hash of user, item and seed"
                if settings.time_ties == "hash"
                else "in file order"
            )
            if tied:
                share = f"{tied} of {neighbours} ({tied / neighbours:.0%})"
                notes.append(f"neighbours of a user with equal times: {share}, {how}")
            order = data.inter_feat[time_field].rank(method="dense").to_numpy().astype(np.int64) - 1
    data.inter_feat[time_field] = np.minimum(order, EXACT_FLOAT32).astype("float64")
    data.inter_feat = data.inter_feat.iloc[np.argsort(order, kind="stable")]
    return notes


def shuffle_rows(data: Any, parts: Mapping[str, Any]) -> str:
    """Cut each user's pre-split rows anew from the user's titles, shuffled, and return a note that says so.

    Args:
        data: a ``DynamicPODataset``.
        parts: phase -> its split.
    """
    field, seed = data.iid_field + data.config["LIST_SUFFIX"], data.settings.seed
    for phase, part in enumerate(parts.values()):
        rows = part.inter_feat
        lengths, targets = rows[data.item_list_length_field].numpy(), rows[data.iid_field].numpy()
        users = rows[data.uid_field].numpy()
        histories, targets = shuffle_chains(users, lengths, data.history(rows), targets, seed, phase)
        cut = torch.zeros_like(rows[field])
        for row, history in enumerate(histories):
            cut[row, : len(history)] = torch.from_numpy(history)
        rows.update(Interaction({field: cut, data.iid_field: torch.from_numpy(targets)}))
    return f"no order in time: each user's titles are pooled, shuffled and cut anew (seed {seed})"


def order_keys(users: Sequence[str], items: Sequence[str], seed: int) -> IntArray:
    """Return (n,) numbers that order interactions at random, by user, item and seed alone.

    Args:
        users, items: (n,) as the files name them, so that a filter of other rows moves nothing.
        seed: of the run.
    """
    user, item = (torch.from_numpy(_hashes(texts)) for texts in (users, items))
    keys: IntArray = tie_draws(user ^ seed, item[:, None])[:, 0].numpy()
    return keys


def _hashes(texts: Sequence[str]) -> IntArray:
    """Return (n,) 64 bits of each text's BLAKE2, the same on every machine."""
    known, place = np.unique(np.asarray(texts, dtype=str), return_inverse=True)
    found = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in known.tolist()]
    return np.frombuffer(b"".join(found), dtype="<i8")[place].astype(np.int64)


def time_ties(users: IntArray, times: NDArray[np.float64]) -> tuple[int, int]:
    """Return how many neighbours in a user's interactions bear one time, and how many neighbours there are.

    Args:
        users: (n,) in any order.
        times: (n,) of the interactions.
    """
    order = np.lexsort((times, users))
    user, at = users[order], times[order]
    same_user = user[1:] == user[:-1]
    return int((same_user & (at[1:] == at[:-1])).sum()), int(same_user.sum())


def goes_on(users: IntArray, histories: list[IntArray], targets: IntArray) -> NDArray[np.bool_]:
    """Return (n,) whether a row's history is that of the row before with its target, cut or not.

    Args:
        users: (n,) of each row.
        histories: n arrays of item ids, oldest first.
        targets: (n,) item ids.
    """
    found = np.zeros(len(users), dtype=bool)
    for row in range(1, len(users)):
        if users[row] == users[row - 1] and len(histories[row]):
            sequence = np.append(histories[row - 1], targets[row - 1])[-len(histories[row]) :]
            found[row] = np.array_equal(sequence, histories[row])
    return found


def shuffle_chains(
    users: IntArray, lengths: IntArray, histories: list[IntArray], targets: IntArray, seed: int, phase: int
) -> tuple[list[IntArray], IntArray]:
    """Return histories and targets of pre-split rows, cut anew from each user's shuffled titles.

    Where a user's rows go on from one another, all titles are those of the first history and every target.
    They are pooled, shuffled by (user, seed) and cut into the same number of rows with histories of the same
    lengths. A row that does not go on begins a chain of its own.

    Args:
        users: (n,) of each row.
        lengths: (n,) of the histories.
        histories: n arrays of item ids, oldest first.
        targets: (n,) item ids.
        seed: of the run.
        phase: of the split.
    """
    cut: list[IntArray] = []
    chosen = targets.copy()
    starts = np.flatnonzero(~goes_on(users, histories, targets))
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(users)], strict=True)):
        pool = np.concatenate([histories[start], targets[start:end]])
        pool = row_generator(seed, 23, phase, number).permutation(pool)
        for row in range(start, end):
            place = lengths[start] + row - start
            cut.append(pool[place - lengths[row] : place])
            chosen[row] = pool[place]
    return cut, chosen
