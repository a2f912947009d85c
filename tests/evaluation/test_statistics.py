"""Intervals, paired tests and the ranks file, against figures worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_dynamicpo.errors import DataError
from recbole_dynamicpo.evaluation.by_user import each_alone, share_interval
from recbole_dynamicpo.evaluation.ranks import read_ranks, write_ranks
from recbole_dynamicpo.evaluation.statistics import (
    Gain,
    bootstrap_interval,
    compare_ranks,
    compare_runs,
    hit_at,
    mrr_gain,
    ndcg_at,
    paired_bootstrap,
    reciprocal_rank,
)


def test_row_metrics_by_hand() -> None:
    ranks = np.array([1, 2, 3, 6])
    assert hit_at(ranks, 2).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert ndcg_at(ranks, 5) == pytest.approx([1.0, 1 / math.log2(3), 0.5, 0.0])
    assert reciprocal_rank(ranks) == pytest.approx([1.0, 0.5, 1 / 3, 1 / 6])


def test_bootstrap_is_repeatable_and_near_the_normal_interval() -> None:
    """1,000 rows, half 0 and half 1: the mean's standard error is 0.5 / sqrt(1000) = 0.0158."""
    values = np.tile([0.0, 1.0], 500)
    low, high = bootstrap_interval(values, each_alone(1000), seed=3)
    assert bootstrap_interval(values, each_alone(1000), seed=3) == (low, high)
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.0158, 0.5 + 1.96 * 0.0158), abs=0.003)


def test_bootstrap_of_equal_values_has_no_width() -> None:
    assert bootstrap_interval(np.full(7, 0.25), each_alone(7)) == (0.25, 0.25)


@pytest.mark.parametrize(("values", "draws"), [([], 10), ([[1.0]], 10), ([1.0], 0)])
def test_bootstrap_refuses_nothing_to_draw(values: list[float], draws: int) -> None:
    with pytest.raises(DataError, match="one number per row"):
        bootstrap_interval(np.array(values), each_alone(len(values)), draws=draws)


def test_pairing_removes_what_both_runs_share() -> None:
    """B is exactly 0.1 better on each row, whatever the row: paired, that is certain."""
    a = np.linspace(0, 1, 40)
    assert paired_bootstrap(a, a + 0.1, each_alone(40)) == pytest.approx((0.1, 0.1, 0.1))


def test_pairing_refuses_other_shapes() -> None:
    with pytest.raises(DataError, match="same rows"):
        paired_bootstrap(np.zeros(2), np.zeros(3), each_alone(2))


def test_comparison_by_hand() -> None:
    """20 rows: both right 5, only A 2, only B 8, neither 5; p = 112 / 1024 as above.

    HR@1: A 7/20, B 13/20. A wrong answer has rank 2, so NDCG@5 differs by (8 - 2)(1 - 1/log2 3) / 20.
    """
    a = np.array([1] * 5 + [1] * 2 + [2] * 8 + [2] * 5)
    b = np.array([1] * 5 + [2] * 2 + [1] * 8 + [2] * 5)
    found = compare_ranks(a, b, each_alone(20))
    assert (found.n, found.only_a, found.only_b) == (20, 2, 8)
    assert (found.hit_a, found.hit_b) == (0.35, 0.65)
    assert found.p_value == pytest.approx(112 / 1024)
    assert found.ndcg_difference == pytest.approx(6 * (1 - 1 / math.log2(3)) / 20)
    assert found.ndcg_interval[0] < found.ndcg_difference < found.ndcg_interval[1]
    assert found.hit_a_interval == share_interval(a == 1, each_alone(20))
    assert found.too_small
    assert "n = 20 is too small to tell" in found.verdict


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=50, max_size=50))
def test_fifty_rows_are_too_few_whenever_nothing_is_significant(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs).T
    found = compare_ranks(a, b, each_alone(50), draws=2)
    assert found.too_small == (found.p_value >= 0.05)
    assert ("too small to tell" in found.verdict) == found.too_small
    if found.too_small:
        assert abs(found.hit_b - found.hit_a) < found.detectable


def test_a_clear_difference_names_the_better_run() -> None:
    good, poor = np.ones(50, dtype=int), np.full(50, 4)
    assert compare_ranks(poor, good, each_alone(50)).verdict.startswith(
        "B has a higher HR@1 than A: by 1.0000"
    )
    assert compare_ranks(good, poor, each_alone(50)).verdict.startswith("A has a higher HR@1 than B")


def test_many_equal_rows_are_enough_to_say_that_there_is_no_difference() -> None:
    ranks = np.tile([1, 2], 1000)
    found = compare_ranks(ranks, ranks, each_alone(2000), draws=2)
    assert not found.too_small
    assert "most likely have been found" in found.verdict


def test_ranks_survive_the_file_and_pair_by_row_id(tmp_path: Path) -> None:
    write_ranks(tmp_path / "a.parquet", ["r1", "r2", "NA"], ["u", "u", "v"], [1, 2, 3])
    write_ranks(tmp_path / "b" / "ranks.parquet", ["NA", "r1", "r2"], ["v", "u", "u"], np.array([1, 1, 2]))
    found = read_ranks(tmp_path / "a.parquet")
    assert (found.row_ids, found.user_ids) == (["r1", "r2", "NA"], ["u", "u", "v"])
    assert (found.ranks.tolist(), found.ranks.dtype) == ([1, 2, 3], np.int32)
    comparison = compare_runs(tmp_path / "a.parquet", tmp_path / "b")
    assert (comparison.only_a, comparison.only_b) == (0, 1)


def test_other_rows_cannot_be_compared(tmp_path: Path) -> None:
    write_ranks(tmp_path / "a.parquet", ["r1", "r2", "r3"], ["u"] * 3, [1, 2, 3])
    write_ranks(tmp_path / "b.parquet", ["r2", "r9"], ["u"] * 2, [1, 2])
    with pytest.raises(DataError, match=r"a\.parquet has 3 rows and .*b\.parquet has 2, 1 of them shared"):
        compare_runs(tmp_path / "a.parquet", tmp_path / "b.parquet")


@pytest.mark.parametrize("name", ["users", "histories", "targets", "candidates", "places"])
def test_rows_that_only_share_their_numbers_cannot_be_compared(tmp_path: Path, name: str) -> None:
    said = dict.fromkeys(("users", "histories", "targets", "candidates", "places"), "d1")
    write_ranks(tmp_path / "a.parquet", ["1", "2"], ["u", "v"], [1, 2], said)
    write_ranks(tmp_path / "b.parquet", ["1", "2"], ["u", "v"], [2, 2], said)
    write_ranks(tmp_path / "c.parquet", ["1", "2"], ["u", "v"], [2, 2], {**said, name: "d2"})
    assert read_ranks(tmp_path / "a.parquet").rows == said
    assert compare_runs(tmp_path / "a.parquet", tmp_path / "b.parquet").n == 2
    with pytest.raises(DataError, match=rf"c\.parquet ranked rows with other {name}: a paired"):
        compare_runs(tmp_path / "a.parquet", tmp_path / "c.parquet")


@pytest.mark.parametrize("silent", ["first", "second"])
@pytest.mark.parametrize("said", [{"users": "u"}, {"targets": "t", "candidates": "c"}])
def test_rows_that_nothing_is_said_of_cannot_be_compared(
    silent: str, said: dict[str, str], tmp_path: Path
) -> None:
    """Nor do rows agree of which the one side says less than the other."""
    for name in ("first", "second"):
        write_ranks(tmp_path / f"{name}.parquet", ["1"], ["u"], [1], {} if name == silent else said)
    with pytest.raises(DataError, match=rf"{silent}\.parquet does not say which rows"):
        compare_runs(tmp_path / "first.parquet", tmp_path / "second.parquet")
    write_ranks(tmp_path / f"{silent}.parquet", ["1"], ["u"], [1], {**said, "places": "p"})
    with pytest.raises(DataError, match="ranked rows with other places"):
        compare_runs(tmp_path / "first.parquet", tmp_path / "second.parquet")


@pytest.mark.parametrize(
    ("rows", "users", "ranks", "message"),
    [
        (["r", "r"], ["u", "u"], [1, 2], "'r' occurs twice"),
        (["r"], ["u", "u"], [1], "1 row ids, 2 user ids"),
        (["r"], ["u"], [0], "minimum 0"),
        (["r"], ["u"], [1.5], "whole numbers"),
        ([], [], [], "at least one row"),
    ],
)
def test_impossible_ranks_are_not_written(
    tmp_path: Path, rows: list[str], users: list[str], ranks: list[float], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        write_ranks(tmp_path / "ranks.parquet", rows, users, ranks)
    assert not list(tmp_path.iterdir())


def test_unusable_rank_files_are_named(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    with pytest.raises(DataError, match=r"ranks\.parquet: no such file"):
        read_ranks(tmp_path)
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(DataError, match=r"text\.parquet: not a readable Parquet file"):
        read_ranks(tmp_path / "text.parquet")
    parquet.write_table(pyarrow.table({"row_id": ["r"], "rank": [1]}), tmp_path / "short.parquet")
    with pytest.raises(DataError, match="user_id missing"):
        read_ranks(tmp_path / "short.parquet")
    holes = pyarrow.table({"row_id": ["r", None], "user_id": ["u", "u"], "rank": [1, 2]})
    parquet.write_table(holes, tmp_path / "holes.parquet")
    with pytest.raises(DataError, match="missing in some row"):
        read_ranks(tmp_path / "holes.parquet")


# --- the paired test of MRR ---


def test_a_gain_by_hand() -> None:
    """Every row gains 1/2: no draw of rows can turn that, so p is the least that the draws can show."""
    gain = mrr_gain(np.ones(10, int), np.full(10, 2), each_alone(10), draws=99)
    assert gain == Gain(n=10, mrr=1.0, other=0.5, p_better=0.01, p_worse=1.0)
    assert (gain.better, gain.worse) == (True, False)
    turned = mrr_gain(np.full(10, 2), np.ones(10, int), each_alone(10), draws=99)
    assert turned == Gain(n=10, mrr=0.5, other=1.0, p_better=1.0, p_worse=0.01)
    assert (turned.better, turned.worse) == (False, True)
    equal = mrr_gain(np.ones(10, int), np.ones(10, int), each_alone(10))
    assert equal == Gain(10, 1.0, 1.0, 1.0, 1.0)
    assert not equal.better
    assert not equal.worse


def test_a_gain_in_one_row_of_few_proves_nothing() -> None:
    """A draw of n rows misses the one that gains with probability (1 - 1/n)^n, about a third."""
    for n in (4, 20):
        ranks = np.array([1] + [2] * (n - 1))
        gain = mrr_gain(ranks, np.full(n, 2), each_alone(n), draws=20_000)
        assert gain.p_better == pytest.approx((1 - 1 / n) ** n, abs=0.01)
        assert not gain.better


def test_a_gain_needs_the_same_rows() -> None:
    for other in ([1], [1, 2, 3]):
        with pytest.raises(DataError, match="the same rows twice"):
            mrr_gain(np.array([1, 2]), np.array(other), each_alone(2))
    for users in ([0], [5, 5]):
        with pytest.raises(DataError, match="at least two users, got 1"):
            mrr_gain(np.ones(len(users), int), np.ones(len(users), int), np.array(users))
    with pytest.raises(DataError, match="minimum 0"):
        mrr_gain(np.array([1, 0]), np.array([1, 1]), each_alone(2))


def test_chance_seldom_passes_for_a_gain() -> None:
    """Two contestants that guess among 20: of 300 tests about one in twenty finds the first one better."""
    draw = np.random.default_rng(0)
    found = [mrr_gain(*draw.integers(1, 21, (2, 60)), each_alone(60), draws=500).better for _ in range(300)]
    assert 6 <= sum(found) <= 27
