"""One order of all titles: recovered from histories, and how far they agree on one."""

from __future__ import annotations

import numpy as np
import pytest

from recbole_dynamicpo.data.global_order import agreement, chained_pairs, follows_one_order, recovered_order


def arrays(*histories: list[int]) -> list[np.ndarray]:  # type: ignore[type-arg]
    return [np.array(history, dtype=np.int64) for history in histories]


def test_the_recovered_order_by_hand() -> None:
    """Neighbours say 3 < 1 < 4 < 2; 5 stands in no history."""
    histories = arrays([3, 1, 4], [1, 4, 2])
    assert recovered_order(histories, 6).tolist() == [-1, 1, 3, 0, 2, -1]
    assert follows_one_order(histories, 6)


def test_a_hidden_order_comes_back_whatever_the_ids() -> None:
    draw = np.random.default_rng(1)
    order = draw.permutation(np.arange(1, 61))
    histories = [order[np.sort(draw.choice(60, 8, replace=False))] for _ in range(900)]
    assert follows_one_order(histories, 61)
    assert recovered_order(histories, 61)[order].tolist() == list(range(60))


def test_an_order_with_a_circle_still_gives_every_title_a_place() -> None:
    found = recovered_order([np.array([1, 2, 3]), np.array([3, 1])], 4)
    assert sorted(found[1:].tolist()) == [0, 1, 2]
    assert not follows_one_order(arrays([1, 2, 3], [3, 1]), 4)
    assert not follows_one_order([], 4)


def test_pairs_of_overlapping_rows_are_those_of_their_windows() -> None:
    """Rows 1 2 | 3 and 1 2 3 | 4 and 2 3 4 | 5 of one user, 7 8 | 9 of another: no row holds 1 and 5."""
    histories = arrays([1, 2], [1, 2, 3], [2, 3, 4], [7, 8])
    owner, first, second = chained_pairs(np.array([4, 4, 4, 6]), histories, np.array([3, 4, 5, 9]))
    found = set(zip(owner.tolist(), first.tolist(), second.tolist(), strict=True))
    windows = [(4, [1, 2, 3]), (4, [1, 2, 3, 4]), (4, [2, 3, 4, 5]), (6, [7, 8, 9])]
    assert found == {
        (user, row[i], row[j]) for user, row in windows for j in range(len(row)) for i in range(j)
    }


def test_agreement_by_hand() -> None:
    """Five users have 1 and 2, four of them in this order, one of these twice; three have 1 and 3, too few to
    say. Of five tosses of a coin the larger count is 3.4375 on average.
    """
    pairs = [
        (1, 1, 2),
        (1, 1, 2),
        (2, 1, 2),
        (3, 1, 2),
        (4, 1, 2),
        (5, 2, 1),
        (1, 1, 3),
        (2, 1, 3),
        (3, 1, 3),
    ]
    owner, first, second = np.array(pairs).T
    share, coin = agreement(owner, first, second)
    assert share == 4 / 5
    assert coin == pytest.approx(3.4375 / 5)
    assert agreement(owner[:2], first[:2], second[:2]) == (None, None)
    assert agreement(owner[:0], first[:0], second[:0]) == (None, None)
