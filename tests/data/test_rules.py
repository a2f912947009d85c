"""Rules that know nothing of taste, by hand and against slow dictionaries."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from recbole_dynamicpo.data.rules import (
    CompanyRule,
    OrderRule,
    PlaceAndCompanyRule,
    PlaceRule,
    Rows,
    hit_shares,
)

from ..helpers.made_rows import ITEMS, made_rows


def rows(*lines: tuple[list[int], list[int], int]) -> Rows:
    """Return rows of (history, candidates, target)."""
    histories = [np.array(history, dtype=np.int64) for history, _, _ in lines]
    width = max(len(candidates) for _, candidates, _ in lines)
    lists = np.array([candidates + [0] * (width - len(candidates)) for _, candidates, _ in lines])
    return Rows(histories, lists, np.array([target for *_, target in lines]), np.arange(len(lines)))


TRAIN = rows(([1], [5, 6, 7], 6), ([2], [8, 6, 5], 6), ([3], [6, 9, 1], 6), ([4], [7, 2, 8], 7))


def test_place_by_hand() -> None:
    """6 was a target at places 1, 1 and 0, 7 at place 0; 5 and 9 never: a third each."""
    found = PlaceRule(TRAIN, 10).scores(rows(([1], [7, 6, 5], 6), ([1], [6, 9], 9)))
    assert found[0] == pytest.approx([1.0, 2 / 3, 1 / 3])
    assert found[1] == pytest.approx([1 / 3, 1 / 2, -np.inf])
    assert PlaceRule(TRAIN, 10).usual_place()[[6, 7, 5]].tolist() == [1, 0, -1]


def test_company_by_hand() -> None:
    """6 came with {5, 7}, {8, 5} and {9, 1}; of these the list holds 5 and 7: two. 5 never was a target."""
    found = CompanyRule(TRAIN, 10).scores(rows(([1], [7, 6, 5], 6)))
    assert found.tolist() == [[0.0, 2.0, 0.0]]


def test_only_the_latest_thirty_lists_count() -> None:
    many = rows(*[([1], [5, 2, 3], 5)], *[([1], [5, 6, 7], 5)] * 30)
    assert CompanyRule(many, 10).scores(rows(([1], [5, 2, 3], 5)))[0, 0] == 0


def test_place_and_company_by_hand() -> None:
    place, company = PlaceRule(TRAIN, 10), CompanyRule(TRAIN, 10)
    found = PlaceAndCompanyRule(place, company).scores(rows(([1], [7, 6, 5], 6)))
    assert found.tolist() == [[100.0, 102.0, 50.0]]


def test_order_by_hand() -> None:
    """Neighbours say 3 < 1 < 4 < 2; behind the history [1] come 4, then 2; 5 has no place."""
    train = rows(([3, 1, 4], [1], 1), ([1, 4, 2], [1], 1))
    assert OrderRule(train, 6).position.tolist() == [-1, 1, 3, 0, 2, -1]
    found = OrderRule(train, 6).scores(rows(([1], [2, 3, 4, 5], 4)))
    assert found[0].argmax() == 2
    assert found[0, 1] == found[0, 3] == -6


def test_titles_tied_at_the_top_share_the_hit() -> None:
    some = rows(([1], [5, 6, 7], 6), ([1], [5, 6], 6))
    scores = np.array([[1.0, 1.0, 0.0], [2.0, 1.0, -np.inf]])
    assert hit_shares(scores, some).tolist() == [1 / 2, 0]


def test_fast_rules_equal_slow_dictionaries() -> None:
    train, held = made_rows(400, 1, "company"), made_rows(60, 2, "company")
    places: dict[int, Counter[int]] = defaultdict(Counter)
    lists: dict[int, list[set[int]]] = defaultdict(list)
    for ids, target in zip(train.candidates.tolist(), train.targets.tolist(), strict=True):
        places[target][ids.index(target)] += 1
        lists[target].append(set(ids) - {target})
    place, company = PlaceRule(train, ITEMS).scores(held), CompanyRule(train, ITEMS).scores(held)
    for row, ids in enumerate(held.candidates.tolist()):
        for at, item in enumerate(ids):
            seen = places[item]
            share = seen[at] / seen.total() if seen else 1 / len(ids)
            shared = max((len(known & set(ids)) for known in lists[item][-30:]), default=0)
            assert place[row, at] == pytest.approx(share)
            assert company[row, at] == shared
