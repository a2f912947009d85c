"""Rows of made data sets, clean or with one artefact planted."""

from __future__ import annotations

import numpy as np

from recbole_dynamicpo.data.rules import Rows

ITEMS, LISTED = 301, 10


def made_rows(count: int, seed: int, artefact: str = "") -> Rows:
    """Return rows of 6 history items, a target and 10 listed candidates; items have very unequal popularity.

    Args:
        count: how many rows, each of a user of its own.
        seed: of the draws.
        artefact: ``place``: a target always stands at its own place; ``company``: it comes with much the same
            list; ``order``: histories and targets rise by id, and the target is the next one; ``set order``:
            the same with histories shuffled inside a row; else nothing.
    """
    draw = np.random.default_rng([seed, 5])
    share = 1.0 / np.arange(1, ITEMS)
    share /= share.sum()
    popular = np.random.default_rng(3).permutation(np.arange(1, ITEMS))
    histories, lists, targets = [], [], []
    for _ in range(count):
        taken = draw.choice(popular, 7, replace=False, p=share)
        if "order" in artefact:
            start = draw.integers(1, ITEMS - 22)
            taken = start + np.sort(draw.choice(20, 7, replace=False))
            taken[-1] = taken[-2] + 1
        history, target = taken[:-1], int(taken[-1])
        if artefact == "set order":
            history = draw.permutation(history)
        own = np.random.default_rng([target, 9])  # the published way: seeded by the target
        pool = np.setdiff1d(np.arange(1, ITEMS), taken)
        others = draw.choice(pool, LISTED - 1, replace=False)
        if artefact == "company":
            usual = own.choice(np.arange(1, ITEMS), 30, replace=False)
            usual = usual[~np.isin(usual, taken)]
            others[:6] = usual[:6]
            others[6:] = np.setdiff1d(pool, usual)[: LISTED - 7]
        place = int(own.integers(LISTED)) if artefact == "place" else int(draw.integers(LISTED))
        listed = draw.permutation(others)
        histories.append(history.astype(np.int64))
        lists.append(np.insert(listed, place, target))
        targets.append(target)
    return Rows(histories, np.array(lists), np.array(targets), np.arange(count))
