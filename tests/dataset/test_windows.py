"""Negatives of windows: distinct, not the user's, and nested: those of a smaller K come first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_dynamicpo.dataset.columns import CHAIN, NEGATIVES, START, STOP
from recbole_dynamicpo.dataset.windows import Chains, add_negatives

ITEMS = 30
# Items 29 and 30 bear one title.
TITLES = np.array([*range(ITEMS), ITEMS - 1])
CHAINS = Chains(np.array([1, 2]), [np.arange(1, 11), np.arange(5, 9)])
SPANS = [(0, 0, 4), (0, 4, 10), (1, 1, 4)]


def negatives(count: int, seeds: tuple[int, ...] = (7, 31, 0), hard: bool = False) -> np.ndarray:
    """Return (3, 6, count) negatives of the windows of ``SPANS``."""
    columns = zip((CHAIN, START, STOP), zip(*SPANS, strict=True), strict=True)
    rows = Interaction({name: torch.tensor(values) for name, values in columns})

    def pool(chain: int, positions: np.ndarray) -> np.ndarray:
        return np.tile(np.arange(11, 11 + 18), (len(positions), 1))

    def taken(user: int) -> np.ndarray:
        return CHAINS.items[user - 1]

    add_negatives(rows, CHAINS, TITLES, taken, count, seeds, pool if hard else None)
    return np.asarray(rows[NEGATIVES].numpy())


@pytest.mark.parametrize("hard", [False, True])
def test_negatives_of_a_smaller_number_are_the_first_of_a_larger_one(hard: bool) -> None:
    """Up to the 19 titles that the first user has left, and beyond."""
    whole = negatives(25, hard=hard)
    for count in (1, 3, 5, 10, 15, 19, 24):
        assert np.array_equal(negatives(count, hard=hard), whole[:, :, :count])


def test_negatives_are_distinct_titles_that_the_user_did_not_take() -> None:
    """Of 29 titles the users took 10 and 4; where no more are left there is none."""
    whole = negatives(40)
    for row, (chain, start, stop) in enumerate(SPANS):
        own = {int(TITLES[item]) for item in CHAINS.items[chain]}
        for place in range(6):
            named = [int(TITLES[item]) for item in whole[row, place] if item]
            wanted = 29 - len(own) if place < stop - start else 0
            assert len(named) == len(set(named)) == wanted
            assert not own & set(named)


def test_other_seeds_draw_others() -> None:
    assert not np.array_equal(negatives(5), negatives(5, (7, 31, 1)))
    assert not np.array_equal(negatives(5), negatives(5, (8, 31, 0)))
