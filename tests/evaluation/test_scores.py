"""Scores become ranks by one rule: titles are ranked, ties are drawn by row and item, and by nothing else."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_dynamicpo.evaluation.scores import ranks_of, settle, tie_draws

MASK = (1 << 64) - 1
DRAWN = st.integers(-(1 << 63), (1 << 63) - 1)


def splitmix(value: int) -> int:
    """Return the mixing function in Python's own whole numbers."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def test_a_draw_is_that_of_splitmix64() -> None:
    found = tie_draws(torch.tensor([0, 7, 1 << 40]), torch.tensor([[1, 2], [2, 3], [9, 0]]))
    wanted = [[splitmix(splitmix(row) ^ item) for item in items]
              for row, items in ((0, (1, 2)), (7, (2, 3)), (1 << 40, (9, 0)))]  # fmt: skip
    assert [[value & MASK for value in row] for row in found.tolist()] == wanted


def test_draws_do_not_depend_on_place_or_company() -> None:
    one = tie_draws(torch.tensor([4]), torch.tensor([[8, 3, 5]]))
    other = tie_draws(torch.tensor([1, 4]), torch.tensor([[3, 5], [5, 8]]))
    assert (other[1, 0], other[1, 1]) == (one[0, 2], one[0, 0])


def test_each_candidate_wins_a_tie_as_often_as_any_other() -> None:
    """Over 20,000 rows of 20 tied candidates: 1,000 wins each, standard deviation 31."""
    draws = tie_draws(torch.arange(20_000), torch.arange(1, 21).expand(20_000, 20))
    wins = draws.argmin(dim=1).bincount(minlength=20)
    assert 850 < int(wins.min()) <= int(wins.max()) < 1150


def by_hand(scores: list[float], draws: list[int], titles: list[int], chosen: int | None) -> list[int]:
    """Return the places in the order of their ranks, slowly: best of each title, then score, then draw."""
    kept = []
    for title in {title for title in titles if title}:
        places = [place for place, other in enumerate(titles) if other == title]
        first = chosen if chosen in places else min(places, key=lambda place: (draws[place], place))
        kept.append((-max(scores[place] for place in places), draws[first], first))
    return [place for *_, place in sorted(kept)]


@given(
    st.lists(
        st.tuples(st.sampled_from([-3.5, -3.0, 0.0, 1.0, 1e4]), DRAWN, st.integers(1, 5)),
        min_size=1, max_size=20, unique_by=lambda entry: entry[1],
    ),
    st.data(),
)  # fmt: skip
def test_the_order_is_that_of_title_score_and_draw(
    entries: list[tuple[float, int, int]], data: st.DataObject
) -> None:
    values, draws, titles = map(list, zip(*entries, strict=True))
    place = data.draw(st.integers(0, len(values) - 1))
    chosen = torch.zeros(1, len(values), dtype=torch.bool)
    chosen[0, place] = True
    found = settle(torch.tensor([values]), torch.tensor([draws]), torch.tensor([titles]), chosen)[0].tolist()
    kept = [value for value in found if value > -torch.inf]
    assert len(set(kept)) == len(kept) == len(set(titles))
    order = by_hand(values, draws, titles, place)
    assert sorted((p for p in range(len(values)) if found[p] > -torch.inf), key=lambda p: -found[p]) == order
    rank = ranks_of(torch.tensor([found]), torch.tensor([0]), torch.tensor([place]))
    assert rank.tolist() == [order.index(place) + 1]


def test_the_item_chosen_keeps_its_title_against_the_smallest_draw_there_is() -> None:
    draws, titles = torch.tensor([[-(1 << 63), 5]]), torch.tensor([[1, 1]])
    found = settle(torch.tensor([[2.0, 1.0]]), draws, titles, torch.tensor([[False, True]]))
    assert found.tolist() == [[-torch.inf, 2.0]]


def test_scores_move_by_the_least_there_is_and_absent_ones_stay_absent() -> None:
    scores = torch.tensor([[-2.0, -1.0, -2.0, -torch.inf]])
    draws, titles = torch.tensor([[5, 1, 2, 0]]), torch.tensor([[1, 2, 3, 0]])
    found = settle(scores, draws, titles, torch.zeros(1, 4, dtype=torch.bool))
    assert found[0, 1:].tolist() == [-1.0, -2.0, -torch.inf]
    assert found[0, 0] == torch.nextafter(torch.tensor(-2.0), torch.tensor(-3.0))


@pytest.mark.parametrize("columns", list(itertools.permutations(range(3))))
def test_the_order_of_the_candidates_is_nothing_to_the_ranks(columns: tuple[int, ...]) -> None:
    items, titles = torch.tensor([[4, 9, 6]]), torch.tensor([[1, 2, 3]])
    scores, chosen = torch.tensor([[0.5, 0.5, 0.5]]), torch.tensor([[False, True, False]])
    place = list(columns)
    found = settle(
        scores[:, place], tie_draws(torch.tensor([3]), items)[:, place], titles[:, place], chosen[:, place]
    )
    rank = ranks_of(found, torch.tensor([0]), torch.tensor([place.index(1)]))
    draws = tie_draws(torch.tensor([3]), items)[0]
    assert rank.tolist() == [1 + int((draws < draws[1]).sum())]
