"""A slow, obvious oracle for boundary sets, betas and losses: one row, Python numbers, no tensors.

Shares no code with the package. Costs of partitions are exact fractions, so that nothing but the
definition decides which one is the best.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

TIE = Fraction(1, 10**12)

Cost = Callable[[int, int], Fraction]


class Expected(NamedTuple):
    """What one row must give."""

    boundary: list[int]  # indices into the negatives, ascending
    betas: list[float]  # of the boundary set, in the same order
    losses: dict[str, float]  # dmpo, sdpo, mppo, and each with "+dynamic"


def golden_cases() -> list[dict[str, Any]]:
    """Return the worked cases of the file that DYNAMICPO_GOLDEN names; none where it is not set."""
    path = os.environ.get("DYNAMICPO_GOLDEN")
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else []


def expect(
    positive: float,
    negatives: Sequence[float],
    positive_ref: float,
    negatives_ref: Sequence[float],
    *,
    beta: float,
    margin: float,
    clusters: int,
) -> Expected:
    """Return boundary, betas and all six losses of one row."""
    members = boundary_set(positive, negatives, clusters)
    betas = dual_margin_betas(positive, negatives, members, beta=beta, margin=margin)
    ratios = [a - b for a, b in zip(negatives, negatives_ref, strict=True)]
    ratio = positive - positive_ref
    everything = list(range(len(negatives)))
    losses = {}
    for suffix, chosen, strengths in [
        ("", everything, [beta] * len(negatives)),
        ("+dynamic", members, betas),
    ]:
        gaps = [s * (ratio - ratios[i]) for i, s in zip(chosen, strengths, strict=True)]
        losses["dmpo" + suffix] = softplus(-math.fsum(gaps) / len(gaps))
        losses["sdpo" + suffix] = softplus(logsumexp([-gap for gap in gaps]))
        chances = [
            s * (math.exp(positive) - math.exp(negatives[i])) for i, s in zip(chosen, strengths, strict=True)
        ]
        losses["mppo" + suffix] = softplus(-math.fsum(chances))
    return Expected(members, betas, losses)


def expect_margins(
    columns: Sequence[tuple[float, float, float, float, int]],
    *,
    beta: float,
    margin: float,
    clusters: int,
    dynamic: bool,
    factor: float,
) -> dict[str, tuple[float, list[float]]]:
    """Return loss and gradient by the policy of RecPO and SimPO, of one row.

    Args:
        columns: log-probability, reference, rating, days and length of each title, the positive first.
        factor: lambda of the one, gamma of the other.
        beta, margin, clusters, dynamic: as everywhere.
    """
    logps = [column[0] for column in columns]
    chosen, betas = list(range(len(logps) - 1)), [beta] * (len(logps) - 1)
    if dynamic:
        chosen = boundary_set(logps[0], logps[1:], clusters)
        betas = dual_margin_betas(logps[0], logps[1:], chosen, beta=beta, margin=margin)
    found = {}
    for name in ("RecPO", "SimPO"):
        terms, sizes = [], [column[4] if name == "SimPO" else 1 for column in columns]
        for i, strength in zip(chosen, betas, strict=True):
            scores = [r / math.sqrt(1 + min(days, 10.0)) for _, _, r, days, _ in (columns[0], columns[i + 1])]
            values = [
                column[0] / column[4] if name == "SimPO" else column[0] - column[1]
                for column in (columns[0], columns[i + 1])
            ]
            ahead = factor if name == "SimPO" else factor * scores[0] / scores[1]
            terms.append(strength * (values[1] - values[0]) + ahead)
        whole = logsumexp(terms)
        push = 1 / (1 + math.exp(-whole)) if whole > -700 else 0.0  # d softplus
        gradient = [0.0] * len(logps)
        for i, strength, term in zip(chosen, betas, terms, strict=True):
            share = push * math.exp(term - whole) * strength
            gradient[i + 1] += share / sizes[i + 1]
            gradient[0] -= share / sizes[0]
        found[name] = (softplus(whole), gradient)
    return found


def boundary_set(positive: float, negatives: Sequence[float], clusters: int) -> list[int]:
    """Return the violations, or else the top group of the best partition."""
    violations = [i for i, value in enumerate(negatives) if value >= positive]
    return violations or top_group(negatives, clusters)


def top_group(values: Sequence[float], clusters: int) -> list[int]:
    """Return the indices of the highest group, by trying every contiguous partition.

    ``combinations`` yields the cut positions in lexicographic order, so the first one within the
    tie tolerance of the least cost is the one wanted.
    """
    order, cost = _sorted_cost(values)
    groups = min(clusters, len(set(values)))
    tried = []
    for cuts in itertools.combinations(range(1, len(values)), groups - 1):
        edges = [0, *cuts, len(values)]
        tried.append((sum(cost(a, b) for a, b in itertools.pairwise(edges)), cuts))
    least = min(total for total, _ in tried)
    cuts = next(cuts for total, cuts in tried if total <= least + TIE)
    return sorted(order[cuts[-1] if cuts else 0 :])


def top_group_recursive(values: Sequence[float], clusters: int) -> list[int]:
    """Return what ``top_group`` returns, by recursion over the first cut: for many values or groups."""
    order, cost = _sorted_cost(values)

    @cache
    def best(start: int, groups: int) -> tuple[Fraction, tuple[int, ...]]:
        """Least cost of values start.. in ``groups`` groups, and its first set of cuts."""
        if groups == 1:
            return cost(start, len(values)), ()
        options = []
        for cut in range(start + 1, len(values) - groups + 2):
            rest, cuts = best(cut, groups - 1)
            options.append((cost(start, cut) + rest, (cut, *cuts)))
        least = min(total for total, _ in options)
        return next(option for option in options if option[0] <= least + TIE)

    _, cuts = best(0, min(clusters, len(set(values))))
    return sorted(order[cuts[-1] if cuts else 0 :])


def _sorted_cost(values: Sequence[float]) -> tuple[list[int], Cost]:
    """Return the ascending order and the exact squared deviation of sorted values a..b-1."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    ascending = [Fraction(values[i]) for i in order]

    @cache
    def cost(start: int, stop: int) -> Fraction:
        group = ascending[start:stop]
        mean = sum(group) / len(group)
        return sum((x - mean) ** 2 for x in group)

    return order, cost


def dual_margin_betas(
    positive: float, negatives: Sequence[float], members: list[int], *, beta: float, margin: float
) -> list[float]:
    """Return beta_i of the boundary set."""
    rest = [i for i in range(len(negatives)) if i not in members] or members
    betas = []
    for i in members:
        d1 = positive - negatives[i]
        d2 = math.fsum(negatives[i] - negatives[j] for j in rest) / len(rest)
        top, bottom = d1 - d2 - margin, abs(d1) + abs(d2)
        ratio = top / bottom if bottom else _limit(top)
        betas.append(beta * (1 + 0.5 * math.tanh(ratio)))
    return betas


def _limit(top: float) -> float:
    """Return top / 0: an infinity of its sign, and 0 for 0 / 0."""
    return math.copysign(math.inf, top) if top else 0.0


def softplus(x: float) -> float:
    """Return log(1 + e^x), which is -log sigma(-x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def logsumexp(values: Sequence[float]) -> float:
    """Return log of the sum of e^value."""
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))
