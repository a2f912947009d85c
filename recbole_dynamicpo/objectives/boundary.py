"""Which negatives lie near the decision boundary, and how strongly each one counts.

Everything here is decided on the policy's log-probabilities alone and carries no gradient. Nothing
synchronises with the host: all rows of a batch are handled by the same tensor operations.

Source: DynamicPO (arXiv 2605.00327), dynamic boundary negative selection and dual-margin dynamic
beta. Differs from the authors' code, which clusters with scikit-learn's k-means from one random
start and so can stop in a local optimum: here the partition of the sorted values is the optimal one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Costs of two partitions closer than this (relative to the spread, if that exceeds one) are a tie.
TIE_TOLERANCE = 1e-12

# beta_i stays within beta0 * (1 -+ TANH_SCALE); the value of the paper.
TANH_SCALE = 0.5


class Boundary(NamedTuple):
    """What the policy alone decides about the negatives of each row; carries no gradient."""

    violations: Tensor  # (B, K) bool: at least as likely as the positive
    members: Tensor  # (B, K) bool: the boundary set
    beta: Tensor  # (B, K): dual-margin strength on the boundary set, 0 elsewhere


@torch.no_grad()
def find_boundary(
    positive: Tensor, negatives: Tensor, mask: Tensor, *, beta: float, margin: float, clusters: int
) -> Boundary:
    """Select the boundary negatives of each row and weigh them.

    A row with violations keeps exactly those; any other row keeps the highest of ``clusters``
    groups of its negatives.

    Args:
        positive: (B,) log-probabilities of the chosen items, nats.
        negatives: (B, K) log-probabilities of the items not chosen, nats.
        mask: (B, K) bool, true where a negative exists; each row has at least one.
        beta: base strength beta0.
        margin: gamma of the dual margin, nats.
        clusters: number of groups, at least 1; rows with fewer distinct values use fewer.
    """
    positive, negatives = positive.detach(), negatives.detach()
    violations = (negatives >= positive[:, None]) & mask
    has_violations = violations.any(dim=1, keepdim=True)
    members = torch.where(has_violations, violations, top_cluster(negatives, mask, clusters))
    strength = dual_margin_beta(positive, negatives, members, mask, beta=beta, margin=margin)
    return Boundary(violations, members, strength)


def dual_margin_beta(
    positive: Tensor, negatives: Tensor, members: Tensor, mask: Tensor, *, beta: float, margin: float
) -> Tensor:
    """Return (B, K) beta_i = beta0 (1 + tanh((d1 - d2 - margin) / (|d1| + |d2|)) / 2) on ``members``.

    d1 is the gap from the positive to the negative, d2 the mean gap from the negative to the rest
    (to the boundary set itself where there is no rest). A denominator of zero gives the limit of
    the ratio: -inf, +inf, or 0 for 0/0.
    """
    values = negatives.double()
    rest = mask & ~members
    rest = torch.where(rest.any(dim=1, keepdim=True), rest, members)
    gaps = values[:, :, None] - values[:, None, :]  # (B, K, K); equal numbers give exact zeros
    to_rest = (gaps * rest[:, None, :]).sum(dim=2) / rest.sum(dim=1, keepdim=True)
    to_positive = positive.double()[:, None] - values
    numerator = to_positive - to_rest - margin
    denominator = to_positive.abs() + to_rest.abs()
    undecided = (denominator == 0) & (numerator == 0)
    ratio = (numerator / denominator).masked_fill(undecided, 0.0)
    strength = beta * (1.0 + TANH_SCALE * torch.tanh(ratio))
    return torch.where(members, strength, 0.0).to(negatives.dtype)


def top_cluster(values: Tensor, mask: Tensor, clusters: int) -> Tensor:
    """Return (B, K) bool: the highest group of the optimal 1-D k-means partition of each row.

    Among partitions of equal cost the one whose ascending cut positions come first in
    lexicographic order wins, so [-3, -2, -1] in two groups gives {-2, -1}.

    Works by a dynamic programme over suffixes of the sorted values: O(clusters * B * K^2) work, a
    Python loop over ``clusters`` only.
    """
    size = values.shape[1]
    order = values.double().masked_fill(~mask, -torch.inf).argsort(dim=1, stable=True)
    ascending = values.double().gather(1, order)
    present = mask.gather(1, order)  # absent negatives come first
    first = (~present).sum(dim=1)  # (B,) where the real values start
    fill = ascending.gather(1, first.clamp(max=size - 1)[:, None])
    ascending = torch.where(present, ascending, fill)

    steps_up = (ascending[:, 1:] != ascending[:, :-1]) & present[:, 1:] & present[:, :-1]
    wanted = (1 + steps_up.sum(dim=1)).clamp(max=clusters)  # (B,) groups that the row can have
    cost = _segment_cost(ascending)
    suffix = _suffix_costs(cost, clusters)
    start = _last_cut(cost, suffix, first, wanted, clusters)
    chosen = torch.arange(size, device=values.device) >= start[:, None]
    return torch.zeros_like(mask).scatter(1, order, chosen & present)


def _segment_cost(ascending: Tensor) -> Tensor:
    """Return (B, K, K + 1): squared deviation from the mean of values i..j-1; inf where j <= i.

    Uses sum (x - mean)^2 = sum over pairs (x_a - x_b)^2 / n: only non-negative terms are added, so
    nothing cancels.
    """
    batch, size = ascending.shape
    squares = (ascending[:, :, None] - ascending[:, None, :]).square().triu()
    below = squares.flip(1).cumsum(dim=1).flip(1)  # [i, j] = sum over a in i..j of (x_a - x_j)^2
    pairs = below.triu().cumsum(dim=2)
    index = torch.arange(size, device=ascending.device)
    count = (index[None, :] - index[:, None] + 1).clamp(min=1)
    cost = pairs / count
    cost = cost.masked_fill(index[None, :] < index[:, None], torch.inf)
    return torch.cat([cost.new_full((batch, size, 1), torch.inf), cost], dim=2)


def _suffix_costs(cost: Tensor, clusters: int) -> Tensor:
    """Return (B, clusters, K + 1): least cost of cutting values i.. into m + 1 non-empty groups."""
    batch, size, _ = cost.shape
    impossible = cost.new_full((batch, 1), torch.inf)
    levels = [torch.cat([cost[:, :, size], impossible], dim=1)]
    for _ in range(clusters - 1):
        best = (cost + levels[-1][:, None, :]).amin(dim=2)
        levels.append(torch.cat([best, impossible], dim=1))
    return torch.stack(levels, dim=1)


def _last_cut(cost: Tensor, suffix: Tensor, first: Tensor, wanted: Tensor, clusters: int) -> Tensor:
    """Return (B,) where the highest group starts, taking the earliest cut that stays optimal."""
    rows = torch.arange(cost.shape[0], device=cost.device)
    best = suffix[rows, wanted - 1, first]
    spread = suffix[rows, 0, first]
    limit = best + TIE_TOLERANCE * spread.clamp(min=1.0)
    start, spent, left = first, torch.zeros_like(best), wanted
    for _ in range(clusters - 1):
        rest = suffix[rows, (left - 2).clamp(min=0)]  # (B, K + 1)
        total = spent[:, None] + cost[rows, start] + rest
        cut = (total <= limit[:, None]).int().argmax(dim=1)
        more = left > 1
        spent = torch.where(more, spent + cost[rows, start, cut], spent)
        start = torch.where(more, cut, start)
        left = torch.where(more, left - 1, left)
    return start
