"""Boundary sets and betas: cases by hand, then the scalar oracle on random rows."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_dynamicpo.objectives.boundary import Boundary, dual_margin_beta, find_boundary, top_cluster

from ..helpers.oracle import boundary_set, dual_margin_betas, golden_cases, top_group, top_group_recursive

# Eighths are exact in binary, so ties between partitions are either exact or far apart.
EIGHTHS = st.integers(-400, 0).map(lambda n: n / 8)
NEGATIVES = st.lists(EIGHTHS, min_size=1, max_size=9)
ROWS = st.lists(st.tuples(EIGHTHS, NEGATIVES), min_size=1, max_size=4)


def select(
    positive: float, negatives: list[float], *, beta: float = 1.0, margin: float = 6.0, clusters: int = 3
) -> Boundary:
    """Return the boundary of one row, in float64."""
    values = torch.tensor([negatives], dtype=torch.float64)
    mask = torch.ones_like(values, dtype=torch.bool)
    top = torch.tensor([positive], dtype=torch.float64)
    return find_boundary(top, values, mask, beta=beta, margin=margin, clusters=clusters)


def indices(members: Tensor) -> list[int]:
    """Return the column numbers that are true in a (K,) mask."""
    return members.nonzero().flatten().tolist()


def pad(rows: list[list[float]], fill: float) -> tuple[Tensor, Tensor]:
    """Return (B, K) values with ``fill`` where a row is shorter, and the mask."""
    most = max(len(row) for row in rows)
    values = [row + [fill] * (most - len(row)) for row in rows]
    mask = [[True] * len(row) + [False] * (most - len(row)) for row in rows]
    return torch.tensor(values, dtype=torch.float64), torch.tensor(mask)


@pytest.mark.parametrize(
    ("positive", "negatives", "clusters", "wanted"),
    [
        (-2.0, [-1.0, -3.0, -1.5], 3, [0, 2]),  # two above the positive: both and only they
        (-2.0, [-2.0, -5.0, -9.0], 3, [0]),  # an exact tie is a violation
        (-2.0, [-2.0, -2.0, -2.0], 3, [0, 1, 2]),  # so is each of several
        (0.0, [-3.0, -2.0, -1.0], 2, [1, 2]),  # cutting after one or after two costs 1/2: the first cut
        (0.0, [-1.0, -3.0, -2.0], 2, [0, 2]),  # the same numbers elsewhere
        (0.0, [-4.0, -4.0, -4.0], 3, [0, 1, 2]),  # one distinct value makes one group
        (0.0, [-4.0, -4.0, -7.0], 3, [0, 1]),  # two distinct values make two
        (0.0, [-4.0], 3, [0]),  # K = 1
        (0.0, [-4.0, -3.0], 3, [1]),  # K = 2 with three groups
        (0.0, [-1.0, -9.0, -4.0], 1, [0, 1, 2]),  # one group is everything
        (0.0, [-1.0, -1.5, -8.0, -8.5, -20.0], 3, [0, 1]),  # three plain groups
        (0.0, [-1.0, -1.5, -8.0, -8.5, -20.0], 2, [0, 1, 2, 3]),  # -20 is farthest out
    ],
)
def test_boundary_set_by_hand(
    positive: float, negatives: list[float], clusters: int, wanted: list[int]
) -> None:
    found = select(positive, negatives, clusters=clusters)
    assert indices(found.members[0]) == wanted
    assert indices(found.violations[0]) == [i for i, v in enumerate(negatives) if v >= positive]


def test_an_early_cut_counts_before_a_late_one() -> None:
    """[0, 1, 10, 11, 12] in four groups: the one pair is {0, 1}, {10, 11} or {11, 12}, each for 1/2.

    Their cuts are (2, 3, 4), (1, 2, 4) and (1, 2, 3); the last comes first.
    """
    found = select(99.0, [0.0, 1.0, 10.0, 11.0, 12.0], clusters=4)
    assert indices(found.members[0]) == [3, 4]


def test_beta_by_hand() -> None:
    """lp_w = -1; negatives -2, -4, -4 in two groups: boundary {-2}, rest {-4, -4}.

    d1 = -1 + 2 = 1, d2 = -2 + 4 = 2. With margin 3: (1 - 2 - 3) / (1 + 2) = -4/3, times beta0 = 2.
    """
    found = select(-1.0, [-2.0, -4.0, -4.0], beta=2.0, margin=3.0, clusters=2)
    assert found.beta[0].tolist() == [pytest.approx(2 * (1 + 0.5 * math.tanh(-4 / 3)), rel=1e-14), 0.0, 0.0]


def test_beta_without_a_rest() -> None:
    """lp_w = -3, violations -1 and -2 are all there is, so they are the rest too: its mean is -1.5.

    For -1: d1 = -2, d2 = 1/2, margin 1: (-2 - 0.5 - 1) / 2.5 = -1.4.
    For -2: d1 = -1, d2 = -1/2: (-1 + 0.5 - 1) / 1.5 = -1.
    """
    found = select(-3.0, [-1.0, -2.0], margin=1.0)
    wanted = [1 + 0.5 * math.tanh(-1.4), 1 + 0.5 * math.tanh(-1.0)]
    assert found.beta[0].tolist() == pytest.approx(wanted, rel=1e-14)


@pytest.mark.parametrize(("margin", "factor"), [(6.0, 0.5), (-6.0, 1.5), (0.0, 1.0)])
@pytest.mark.parametrize("value", [-4.0, -0.1, -1 / 3, -123.456])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_denominator_of_zero_takes_the_limit(
    margin: float, factor: float, value: float, count: int
) -> None:
    """All numbers equal: d1 = d2 = 0, so the ratio is -margin / 0 = -+inf, or 0 for 0/0; exactly."""
    found = select(value, [value] * count, beta=2.0, margin=margin)
    assert found.beta[0].tolist() == [2.0 * factor] * count


@pytest.mark.parametrize("scale", [0.0, 1e3, 1e4])
def test_betas_stay_within_half_and_one_and_a_half(scale: float) -> None:
    found = select(-scale, [-2 * scale, -3 * scale, -scale - 1e-9], beta=3.0, margin=6.0)
    strength = found.beta[found.members]
    assert torch.isfinite(found.beta).all()
    assert ((strength >= 1.5) & (strength <= 4.5)).all()


@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(1, 4), st.sampled_from([-3.0, 0.0, 2.0, 6.0]), st.sampled_from([0.0, -9.0, 33.0]))
def test_ragged_batches_equal_the_oracle_row_by_row(
    rows: list[tuple[float, list[float]]], clusters: int, margin: float, fill: float
) -> None:
    """The oracle never sees the padding, so a masked negative is the same as none at all."""
    positive = torch.tensor([row[0] for row in rows], dtype=torch.float64)
    negatives, mask = pad([row[1] for row in rows], fill)
    found = find_boundary(positive, negatives, mask, beta=0.7, margin=margin, clusters=clusters)
    for index, (top, values) in enumerate(rows):
        members = boundary_set(top, values, clusters)
        assert indices(found.members[index]) == members
        wanted = dual_margin_betas(top, values, members, beta=0.7, margin=margin)
        assert found.beta[index, members].tolist() == pytest.approx(wanted, rel=1e-12)
        assert indices(found.beta[index]) == members
        assert indices(found.violations[index]) == [i for i, v in enumerate(values) if v >= top]


@pytest.mark.parametrize("seed", range(12))
def test_real_numbers_equal_the_oracle(seed: int) -> None:
    """15 negatives as a model writes them, without a violation."""
    draw = random.Random(seed)
    negatives = [-draw.expovariate(0.1) for _ in range(15)]
    found = select(0.5, negatives)
    assert indices(found.members[0]) == top_group(negatives, 3)


@settings(max_examples=40, deadline=None)
@given(NEGATIVES, st.integers(1, 6))
def test_the_two_oracles_agree(values: list[float], clusters: int) -> None:
    assert top_group_recursive(values, clusters) == top_group(values, clusters)


@settings(max_examples=40, deadline=None)
@given(st.lists(EIGHTHS, min_size=5, max_size=12), st.integers(5, 9))
def test_more_than_four_groups(values: list[float], clusters: int) -> None:
    table = torch.tensor([values], dtype=torch.float64)
    found = top_cluster(table, torch.ones_like(table, dtype=torch.bool), clusters)
    assert indices(found[0]) == top_group(values, clusters)


@pytest.mark.parametrize(("count", "clusters"), [(33, 3), (40, 2), (50, 3), (40, 6)])
def test_more_than_32_negatives(count: int, clusters: int) -> None:
    draw = random.Random(count)
    values = [-draw.randint(0, 400) / 8 for _ in range(count)]
    table = torch.tensor([values], dtype=torch.float64)
    found = top_cluster(table, torch.ones_like(table, dtype=torch.bool), clusters)
    assert indices(found[0]) == top_group_recursive(values, clusters)


@settings(max_examples=40, deadline=None)
@given(EIGHTHS, NEGATIVES, st.integers(1, 4), st.randoms(use_true_random=False))
def test_order_of_the_negatives_does_not_matter(
    positive: float, negatives: list[float], clusters: int, draw: random.Random
) -> None:
    """Equal numbers fall into one group together, so members and betas simply move along."""
    order = list(range(len(negatives)))
    draw.shuffle(order)
    found = select(positive, negatives, clusters=clusters)
    moved = select(positive, [negatives[i] for i in order], clusters=clusters)
    assert torch.equal(moved.members[0], found.members[0, order])
    torch.testing.assert_close(moved.beta[0], found.beta[0, order], rtol=1e-12, atol=0)


@settings(max_examples=40, deadline=None)
@given(EIGHTHS, NEGATIVES, st.integers(1, 4), st.integers(-800, 800))
def test_a_common_shift_changes_nothing(
    positive: float, negatives: list[float], clusters: int, shift: int
) -> None:
    """Only gaps matter; a longer prompt or a common prefix must not decide anything."""
    found = select(positive, negatives, clusters=clusters)
    moved = select(positive + shift / 8, [v + shift / 8 for v in negatives], clusters=clusters)
    assert torch.equal(moved.members, found.members)
    torch.testing.assert_close(moved.beta, found.beta, rtol=1e-12, atol=0)


def test_nothing_carries_a_gradient() -> None:
    positive = torch.tensor([-1.0], requires_grad=True)
    negatives = torch.tensor([[-2.0, -4.0, -9.0]], requires_grad=True)
    mask = torch.ones_like(negatives, dtype=torch.bool)
    found = find_boundary(positive, negatives, mask, beta=1.0, margin=6.0, clusters=3)
    assert not any(tensor.requires_grad for tensor in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_beta_keeps_the_dtype(dtype: torch.dtype) -> None:
    negatives = torch.tensor([[-2.0, -4.0, -9.0]], dtype=dtype)
    mask = torch.ones_like(negatives, dtype=torch.bool)
    positive = torch.tensor([-1.0], dtype=dtype)
    found = find_boundary(positive, negatives, mask, beta=1.0, margin=6.0, clusters=3)
    assert found.beta.dtype == dtype
    members = torch.tensor([[True, False, False]])
    assert dual_margin_beta(positive, negatives, members, mask, beta=1.0, margin=6.0).dtype == dtype


if golden_cases():  # worked cases of one's own, named by an environment variable

    @pytest.mark.parametrize("case", golden_cases())
    def test_golden_boundary_and_betas(case: dict[str, Any]) -> None:
        found = select(
            case["positive"],
            case["negatives"],
            beta=case["beta"],
            margin=case["margin"],
            clusters=case["clusters"],
        )
        assert indices(found.members[0]) == case["boundary"]
        assert found.beta[0, case["boundary"]].tolist() == pytest.approx(case["betas"], rel=1e-9)
