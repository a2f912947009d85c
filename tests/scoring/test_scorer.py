"""Ties between candidates are broken by place, and by nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_dynamicpo.evaluation.scores import break_ties


def test_of_equal_scores_the_earlier_place_wins() -> None:
    scores = torch.tensor([[-2.0, -1.0, -2.0, -3.0, -2.0], [0.0, 0.0, 0.0, -torch.inf, -torch.inf]])
    found = break_ties(scores)
    assert found.argsort(dim=1, descending=True, stable=True).tolist() == [[1, 0, 2, 4, 3], [0, 1, 2, 3, 4]]
    assert found[1, 3:].tolist() == [-torch.inf, -torch.inf]
    torch.testing.assert_close(found, scores, rtol=1e-6, atol=1e-6)
    assert found[0, [0, 1, 3]].tolist() == [-2.0, -1.0, -3.0]


@given(st.lists(st.sampled_from([-3.5, -3.0, 0.0, 1.0, 1e4]), min_size=1, max_size=20))
def test_the_order_is_that_of_score_then_place(values: list[float]) -> None:
    found = break_ties(torch.tensor([values]))[0].tolist()
    assert len(set(found)) == len(found)
    expected = sorted(range(len(values)), key=lambda place: (-values[place], place))
    assert sorted(range(len(values)), key=lambda place: -found[place]) == expected


@pytest.mark.parametrize("place", [0, 7, 19])
def test_where_all_score_alike_the_rank_is_the_place(place: int) -> None:
    found = break_ties(torch.full((1, 20), -4.25))[0]
    assert 1 + int((found > found[place]).sum()) == place + 1
