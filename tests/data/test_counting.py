"""Counting models by hand, against slow dictionaries, and with a user taken out as if never there."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_dynamicpo.data.counting import CoOccurrence, Ease, Popularity, Sequences, Transitions, next_item

USERS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=15), min_size=1, max_size=6)


def sequences(*of_user: list[int], items: int = 10) -> Sequences:
    return Sequences(items, {user: np.array(taken) for user, taken in enumerate(of_user)})


def test_popularity_by_hand() -> None:
    assert Popularity(sequences([1, 2, 1], [2], items=4)).scores(np.array([1])).tolist() == [0, 2.5, 2.5, 0.5]


def test_transitions_by_hand() -> None:
    """1 2 3 and 1 3: M[1] = {2: 1, 3: 0.8 + 1}; history [9, 1]: z = M[1] / (2.8 + 1), 9 is unknown."""
    found = Transitions(sequences([1, 2, 3], [1, 3])).scores(np.array([9, 1]))
    assert found[[2, 3]] == pytest.approx([1 / 3.8, 1.8 / 3.8])
    assert found.sum() == pytest.approx(2.8 / 3.8)
    older = Transitions(sequences([1, 2, 3], [1, 3])).scores(np.array([1, 9]))
    assert older == pytest.approx(0.9 * found)


def test_cooccurrence_by_hand() -> None:
    """{1, 2}, {1, 2, 3}, {1}: cosine of 1 and 2 is 2 / sqrt(3 x 2), of 1 and 3 it is 1 / sqrt(3)."""
    found = CoOccurrence(sequences([1, 2], [3, 2, 1], [1, 1])).scores(np.array([1]))
    assert found[[1, 2, 3]] == pytest.approx([1.0, 2 / 6**0.5, 1 / 3**0.5])


def test_ease_solves_its_own_equation() -> None:
    """B minimises |X - X B|^2 + ridge |B|^2 with a zero diagonal: its gradient is 0 off the diagonal."""
    data = sequences([1, 2, 3], [2, 3], [1, 4], [1, 2, 4], items=5)
    model = Ease(data, ridge=2.0)
    taken = np.zeros((4, 5))
    for user, items in data.of_user.items():
        taken[user, items] = 1
    gradient = -taken.T @ (taken - taken @ model.weights) + 2.0 * model.weights
    assert np.diag(model.weights) == pytest.approx(0)
    assert gradient[~np.eye(5, dtype=bool)] == pytest.approx(0, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(USERS, st.lists(st.integers(1, 9), max_size=25))
def test_transitions_equal_a_slow_dictionary(of_user: list[list[int]], history: list[int]) -> None:
    counts: Counter[tuple[int, int]] = Counter()
    for taken in of_user:
        for at, first in enumerate(taken):
            for d, second in enumerate(taken[at + 1 : at + 11]):
                counts[first, second] += 0.8**d  # type: ignore[assignment]
    wanted = np.zeros(10)
    for age, item in enumerate(history[::-1][:20]):
        total = sum(value for (first, _), value in counts.items() if first == item)
        for (first, second), value in counts.items():
            if first == item:
                wanted[second] += 0.9**age * value / (total + 1)
    found = Transitions(sequences(*of_user)).scores(np.array(history, dtype=np.int64))
    assert found == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("kind", [Popularity, Transitions, CoOccurrence])
@settings(max_examples=60, deadline=None)
@given(of_user=USERS, history=st.lists(st.integers(1, 9), max_size=12), data=st.data())
def test_a_user_taken_out_is_as_if_never_there(
    kind: type[Popularity], of_user: list[list[int]], history: list[int], data: st.DataObject
) -> None:
    """To the last bit: whole numbers are subtracted, and no trace of 1e-17 is left where nothing is known."""
    user = data.draw(st.integers(0, len(of_user) - 1))
    others = {u: np.array(taken) for u, taken in enumerate(of_user) if u != user}
    whole, rest = kind(sequences(*of_user)), kind(Sequences(10, others))
    asked = np.array(history, dtype=np.int64)
    assert whole.scores(asked, without=user).tolist() == pytest.approx(rest.scores(asked).tolist(), abs=1e-15)
    assert (whole.scores(asked, without=user) == 0).tolist() == (rest.scores(asked) == 0).tolist()


def test_no_user_can_be_taken_out_of_ease() -> None:
    with pytest.raises(ValueError, match="EASE"):
        Ease(sequences([1, 2])).scores(np.array([1]), without=0)


def test_the_next_item_is_a_distribution_and_popularity_where_nothing_is_known() -> None:
    data = sequences([1, 2, 3], [1, 3])
    popularity = Popularity(data)
    found = next_item(Transitions(data), popularity, np.array([1]), share=0.2)
    assert found.sum() == pytest.approx(1)
    assert (found[1:] > 0).all()
    unknown = next_item(Transitions(data), popularity, np.array([9]), share=0.2)
    plain = popularity.scores(np.array([9]))
    assert unknown == pytest.approx(plain / plain.sum())
