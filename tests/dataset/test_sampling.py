"""Seeded draws: distinct, history-free, independent of one another, and the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_dynamicpo.dataset.sampling import (
    choose_rows,
    draw_candidates,
    draw_scored,
    epoch_order,
    row_generator,
)
from recbole_dynamicpo.errors import DataError


def candidates(seed: int, row: int, *, seen: list[int], items: int = 60, count: int = 20) -> list[int]:
    """Draw the candidates of one row whose positive is item 1."""
    excluded = np.array(seen, dtype=np.int64)
    return draw_candidates(
        1, excluded, np.arange(items), count, row_generator(seed, 0, row), f"row {row}"
    ).tolist()


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_candidates_are_the_positive_and_distinct_unseen_items(data: st.DataObject) -> None:
    """Down to the case in which exactly as many items are left as are wanted."""
    items = data.draw(st.integers(3, 80), "ids run from 1 to items - 1")
    positive = data.draw(st.integers(1, items - 1))
    seen = data.draw(st.lists(st.integers(1, items - 1), max_size=items // 2))
    left = set(range(1, items)) - {positive, *seen}
    count = data.draw(st.integers(1, 1 + len(left)))
    draw = row_generator(data.draw(st.integers(0, 9)), 0, 0)
    drawn = draw_candidates(
        positive, np.array(seen, dtype=np.int64), np.arange(items), count, draw, "row"
    ).tolist()
    assert len(drawn) == len(set(drawn)) == count
    assert positive in drawn
    assert set(drawn) - {positive} <= left


@pytest.mark.parametrize("items", [30, 1000])  # few items are drawn from a list, many by rejection
def test_draws_are_repeatable_and_differ_by_seed_row_and_phase(items: int) -> None:
    first = candidates(0, 0, seen=[2, 3], items=items)
    assert candidates(0, 0, seen=[2, 3], items=items) == first
    assert candidates(1, 0, seen=[2, 3], items=items) != first
    assert candidates(0, 1, seen=[2, 3], items=items) != first
    other = draw_candidates(1, np.array([2, 3]), np.arange(items), 20, row_generator(0, 1, 0), "row")
    assert other.tolist() != first


@pytest.mark.parametrize("items", [30, 1000])
def test_the_place_of_the_positive_tells_nothing(items: int) -> None:
    """400 rows of 10 candidates: each place has it 40 times, give or take 4.5 standard deviations of 6."""
    places = [candidates(0, row, seen=[], items=items, count=10).index(1) for row in range(400)]
    counts = np.bincount(places, minlength=10)
    assert counts.min() > 40 - 27
    assert counts.max() < 40 + 27


@pytest.mark.parametrize("items", [13, 200])
def test_every_unseen_item_is_drawn_alike(items: int) -> None:
    """600 rows of two negatives out of n items: 1200 / n each, within 5 standard deviations."""
    drawn = [item for row in range(600) for item in candidates(0, row, seen=[2], items=items, count=3)]
    counts = np.bincount(drawn, minlength=items)[3:]
    wanted = 1200 / (items - 3)
    assert counts.min() > wanted - 5 * wanted**0.5
    assert counts.max() < wanted + 5 * wanted**0.5


def test_too_few_items() -> None:
    """Items 1 to 9; the positive and four seen ones leave four, and five negatives are wanted."""
    assert len(candidates(0, 0, seen=[2, 3, 4, 5], items=10, count=5)) == 5
    with pytest.raises(
        DataError, match=r"row 7: wanted 5 negatives, but only 4 of 9 titles .*num_candidates"
    ):
        candidates(0, 7, seen=[2, 3, 4, 5], items=10, count=6)
    with pytest.raises(DataError, match="only 0 of 9 titles"):
        candidates(0, 7, seen=list(range(2, 10)), items=10, count=2)


def scored(seed: int = 0, epoch: int = 0, count: int = 3) -> list[list[int]]:
    """Columns of three rows of eight candidates with the positive in columns 5, 0 and 2."""
    positive = np.eye(8, dtype=bool)[[5, 0, 2]]
    return draw_scored(positive, np.ones((3, 8), dtype=bool), count, seed, epoch).tolist()


def test_scored_columns_begin_with_the_positive() -> None:
    rows = scored()
    assert [row[0] for row in rows] == [5, 0, 2]
    assert all(len(set(row)) == 4 for row in rows)


def test_every_epoch_scores_other_negatives() -> None:
    assert scored(epoch=1) == scored(epoch=1)
    assert scored(epoch=1) != scored(epoch=2)
    assert scored(seed=1) != scored(seed=2)
    seen = {column for epoch in range(30) for column in scored(epoch=epoch)[0]}
    assert seen == set(range(8))


def test_all_negatives_are_scored_where_k_is_all_there_are() -> None:
    assert [sorted(row) for row in scored(count=7)] == [list(range(8))] * 3


@pytest.mark.parametrize("epoch", range(5))
def test_absent_columns_come_last(epoch: int) -> None:
    """Row 1 has three candidates of six: its two negatives are drawn before any absent column."""
    positive = np.eye(6, dtype=bool)[[1, 4]]
    present = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=bool)
    first, second = draw_scored(positive, present, 4, 0, epoch).tolist()
    assert first[0] == 1
    assert set(first[1:3]) == {0, 2}
    assert set(first[3:]) < {3, 4, 5}
    assert second[0] == 4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 500), max_size=200), st.integers(1, 9), st.integers(0, 3), st.integers(0, 3))
def test_epoch_order_is_a_permutation_with_one_short_batch_at_the_end(
    lengths: list[int], batch_size: int, stage: int, epoch: int
) -> None:
    """Cutting the order every ``batch_size`` rows meets the batches, each sorted by length inside."""
    table = np.array(lengths, dtype=np.int64)
    order = epoch_order(table, batch_size, 0, stage, epoch)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    batches = [table[order[i : i + batch_size]] for i in range(0, len(order), batch_size)]
    assert all((np.diff(batch) >= 0).all() for batch in batches)


def test_epoch_order_differs_by_epoch_stage_and_seed() -> None:
    lengths = np.arange(100)
    base = epoch_order(lengths, 4, 0, 0, 0).tolist()
    assert epoch_order(lengths, 4, 0, 0, 0).tolist() == base
    for other in [(1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        assert epoch_order(lengths, 4, *other).tolist() != base


def test_batches_of_similar_length_need_less_padding() -> None:
    lengths = np.random.default_rng(0).integers(50, 500, size=640)

    def padding(order: np.ndarray) -> int:
        batches = lengths[order].reshape(-1, 8)
        return int((batches.max(axis=1, keepdims=True) - batches).sum())

    order = epoch_order(lengths, 8, seed=0, stage=0, epoch=0)
    assert padding(order) < padding(np.random.default_rng(1).permutation(640)) / 4


def test_short_and_long_batches_alternate_at_random() -> None:
    """Training must not run from short to long rows: neighbours in order are hardly correlated."""
    lengths = np.random.default_rng(0).integers(50, 500, size=1280)
    means = lengths[epoch_order(lengths, 8, 0, 0, 0)].reshape(-1, 8).mean(axis=1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.35


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 70), st.integers(0, 70), st.integers(0, 5))
def test_stages_take_other_rows_where_there_are_enough(
    total: int, first: int, second: int, seed: int
) -> None:
    """The first stage takes ``first`` rows, the second ``second`` others; 0 or too many means all."""
    sft = choose_rows(total, first, seed, phase=0).tolist()
    preference = choose_rows(total, second, seed, phase=0, skip=first).tolist()
    for chosen, wanted in [(sft, first), (preference, second)]:
        assert len(chosen) == len(set(chosen)) == (min(wanted, total) or total)
        assert set(chosen) <= set(range(total))
    if first and second and first + second <= total:
        assert not set(sft) & set(preference)
    elif 0 < first < total and 0 < second < total:  # what is left over comes first, then rows again
        assert set(preference) >= set(range(total)) - set(sft)


def test_rows_are_chosen_by_seed_and_phase() -> None:
    base = choose_rows(100, 10, 0, 0).tolist()
    assert choose_rows(100, 10, 0, 0).tolist() == base
    assert choose_rows(100, 10, 1, 0).tolist() != base
    assert choose_rows(100, 10, 0, 1).tolist() != base
    assert choose_rows(100, 20, 0, 0).tolist()[:10] == base  # more rows keep the ones before
