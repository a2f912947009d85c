"""A user's rows as one observation: by hand, against what holds for independent rows, and by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from recbole_dynamicpo.errors import DataError
from recbole_dynamicpo.evaluation.by_user import (
    each_alone,
    effective_rows,
    p_name,
    share_interval,
    sign_flip,
    totals,
)
from recbole_dynamicpo.evaluation.statistics import bootstrap_interval, compare_ranks, mrr_gain


def first(hits: int, rows: int) -> np.ndarray:
    """Return so many hits, then misses."""
    return np.arange(rows) < hits


def test_totals_stand_in_the_order_of_users_first_rows() -> None:
    sums, rows = totals([1, 2, 3, 4], np.array(["b", "a", "b", "c"]))
    assert (sums.tolist(), rows.tolist()) == ([4, 2, 4], [2, 1, 1])


def test_wilson_by_hand() -> None:
    """10 of 20 with z = 1.96: z^2 = 3.8415, centre (0.5 + 3.8415/40) / (1 + 3.8415/20) = 0.5.

    half = 1.96 / 1.192073 * sqrt(0.25/20 + 3.8415/1600) = 1.644164 * sqrt(0.0149009) = 0.200702.
    """
    assert share_interval(first(10, 20), each_alone(20)) == pytest.approx((0.299298, 0.700702), abs=1e-6)


def test_wilson_at_the_ends() -> None:
    """0 of n gives [0, z^2 / (n + z^2)]: for n = 10, 3.84146 / 13.84146 = 0.277533; n of n mirrors it."""
    assert share_interval(first(0, 10), each_alone(10)) == (0.0, pytest.approx(0.277533, abs=1e-6))
    assert share_interval(first(10, 10), each_alone(10)) == (pytest.approx(1 - 0.277533, abs=1e-6), 1.0)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_with_a_row_a_user_it_is_wilsons_interval(case: tuple[int, int]) -> None:
    hits, n = case
    interval = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    found = share_interval(first(hits, n), each_alone(n))
    assert found == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert 0.0 <= found[0] <= hits / n <= found[1] <= 1.0


def test_effective_rows_by_hand() -> None:
    """Two users of four rows, 3 and 1 hits: the share is 1/2, residuals are 1 and -1.

    By users its variance is 2/1 (1 + 1) / 8^2 = 1/16, by rows 1/4 / 7 = 1/28: 8 x 16/28 rows, times the
    squared ratio of Student's quantiles with 7 and 1 degrees of freedom, (2.364624 / 12.706205)^2.
    """
    hits, users = [1, 1, 1, 0, 1, 0, 0, 0], np.repeat(["u", "v"], 4)
    assert effective_rows(hits, users) == pytest.approx(8 * 16 / 28 * (2.364624 / 12.706205) ** 2, rel=1e-5)


def test_where_nothing_says_how_alike_a_users_rows_are_each_user_counts_once() -> None:
    users = np.repeat(np.arange(6), 4)
    for hits in (np.zeros(24), np.ones(24)):
        assert effective_rows(hits, users) == 6
    assert effective_rows([1, 0, 1], np.array(["u"] * 3)) == 1


def test_users_who_are_as_different_as_rows_make_rows_no_surer() -> None:
    """Each user has one hit in two: less than chance differs between users, and that is no gain."""
    assert effective_rows([1, 0] * 30, np.repeat(np.arange(30), 2)) == 60


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=60))
def test_an_interval_holds_its_share_and_is_no_narrower_than_by_rows(rows: list[tuple[int, bool]]) -> None:
    users, hits = (np.array(part) for part in zip(*rows, strict=True))
    low, high = share_interval(hits, users)
    narrow = share_interval(hits, each_alone(len(hits)))
    assert 0 <= low <= hits.mean() + 1e-12
    assert hits.mean() - 1e-12 <= high <= 1
    assert high - low >= narrow[1] - narrow[0] - 1e-9


def draw_rows(draw: np.random.Generator, users: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Return hits of users whose own shares are uniform: their mean is 1/2."""
    own = np.repeat(draw.uniform(size=users), each)
    return (draw.uniform(size=users * each) < own).astype(float), np.repeat(np.arange(users), each)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """40 users of 20 rows, unlike one another: about 95 in 100 by users, and not by rows."""
    draw = np.random.default_rng(1)
    found = {"share": 0, "bootstrap": 0, "rows alone": 0}
    for _ in range(300):
        hits, users = draw_rows(draw, 40, 20)
        intervals = {
            "share": share_interval(hits, users),
            "bootstrap": bootstrap_interval(hits, users, draws=400),
            "rows alone": share_interval(hits, each_alone(len(hits))),
        }
        for name, (low, high) in intervals.items():
            found[name] += low <= 0.5 <= high
    assert found["share"] >= 0.92 * 300
    assert found["bootstrap"] >= 0.90 * 300
    assert found["rows alone"] < 0.75 * 300


@pytest.mark.parametrize(("hits", "users"), [([], []), ([1, 0], [1]), ([[1]], [[1]])])
def test_other_shapes_are_refused(hits: list[float], users: list[int]) -> None:
    with pytest.raises(DataError, match=r"at least one row|one number per row"):
        share_interval(hits, np.array(users))


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 0, 1.0),  # no row tells them apart
        (3, 3, 1.0),  # 2 * (1 + 6 + 15 + 20) / 64 = 1.3, cut at 1
        (1, 5, 14 / 64),  # 2 * (C(6,0) + C(6,1)) / 2^6 = 2 * 7 / 64
        (0, 6, 2 / 64),  # 2 * 1 / 2^6: the fewest rows that can be significant
        (0, 5, 2 / 32),  # one fewer cannot
        (8, 2, 112 / 1024),  # 2 * (1 + 10 + 45) / 2^10
    ],
)
def test_with_a_row_a_user_it_is_mcnemars_test(only_a: int, only_b: int, p: float) -> None:
    differences = np.repeat([-1, 0, 1], [only_a, 4, only_b])
    assert sign_flip(differences) == pytest.approx(p, rel=1e-12)
    assert sign_flip(-differences) == sign_flip(differences)


@given(st.integers(0, 400), st.integers(0, 400))
def test_it_is_the_binomial_test_of_rows_that_differ(only_a: int, only_b: int) -> None:
    both = only_a + only_b
    wanted = binomtest(only_a, both).pvalue if both else 1.0
    assert sign_flip(np.repeat([-1, 1], [only_a, only_b])) == pytest.approx(wanted, rel=1e-9)


def test_many_rows_are_near_the_normal_limit() -> None:
    """z = (|b - c| - 1) / sqrt(b + c) = 99 / sqrt(10000) = 0.99, whose two-sided p is 0.3222."""
    found = sign_flip(np.repeat([-1, 1], [5050, 4950]))
    assert found == pytest.approx(math.erfc(0.99 / math.sqrt(2)), abs=1e-4)


@pytest.mark.parametrize(
    ("differences", "p"),
    [([2, 1], 0.5), ([2, -1], 1.0), ([3, 3, -1], 0.5), ([2, 2], 0.5), ([0, 0], 1.0), ([], 1.0)],
)
def test_several_rows_of_a_user_have_one_sign(differences: list[int], p: float) -> None:
    """[3, 3, -1] has the sum 5; of the eight patterns 7, 5, -5 and -7 are as far from 0."""
    assert sign_flip(differences) == pytest.approx(p)


@given(st.lists(st.integers(-4, 4), max_size=10))
def test_all_patterns_of_signs_are_counted(differences: list[int]) -> None:
    patterns = itertools.product((-1, 1), repeat=len(differences))
    sums = [sum(sign * one for sign, one in zip(signs, differences, strict=True)) for signs in patterns]
    as_far = sum(abs(one) >= abs(sum(differences)) for one in sums)
    assert sign_flip(differences) == pytest.approx(as_far / len(sums))


def test_rows_of_one_user_prove_no_more_than_one_row() -> None:
    """Six users of ten rows each, B right in all of them: 2 / 2^6, as with a row each."""
    users = np.repeat(np.arange(6), 10)
    found = compare_ranks(np.full(60, 2), np.ones(60, int), users)
    assert (found.n, found.users, found.only_b) == (60, 6, 60)
    assert found.p_value == pytest.approx(2 / 64)
    assert compare_ranks(np.full(60, 2), np.ones(60, int), each_alone(60)).p_value < 1e-15


def test_a_gain_with_one_user_of_many_rows_is_none() -> None:
    """One of six users has all that is gained; a draw of users misses them with probability (5/6)^6."""
    users = np.repeat(np.arange(6), 10)
    ranks = np.where(users == 2, 1, 2)
    gain = mrr_gain(ranks, np.full(60, 2), users, draws=20_000)
    assert gain.p_better == pytest.approx((5 / 6) ** 6, abs=0.01)


def test_the_p_value_has_the_name_of_what_it_is() -> None:
    assert (p_name(10, 10), p_name(10, 4)) == ("McNemar p", "p by users")
