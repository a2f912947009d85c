"""What a batch says of itself beside its loss: win rate, violations, boundary, betas, gradient share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .boundary import Boundary

BETA_BINS = 20  # of the histogram of beta_i / beta0, which lies within 1 -+ TANH_SCALE
BETA_EDGE = 0.001  # that the histogram reaches further, so that rounding loses no beta


class Diagnostics(NamedTuple):
    """Scalars of one batch, detached, as 0-d tensors."""

    reward_win_rate: Tensor  # rows whose positive's reward is above every negative's, share
    reward_margin: Tensor  # mean of reward(positive) - mean reward of the negatives, nats
    violation_rate: Tensor  # rows with at least one violation, share
    violation_share: Tensor  # mean of violations / K
    boundary_size: Tensor  # mean size of the boundary set
    boundary_gradient_share: Tensor  # share of the plain objective's gradient on the boundary set
    violation_gradient_share: Tensor  # the same on the violations
    beta_mean: Tensor  # of the dynamic betas over the boundary sets
    beta_min: Tensor
    beta_max: Tensor


def merge_diagnostics(parts: Sequence[Diagnostics], rows: Sequence[int], total: int) -> Diagnostics:
    """Return what several batches add to the diagnostics of a step of ``total`` rows.

    Means are weighted by ``rows``, so that what processes return adds up to those of the step; ``beta_mean``
    becomes the betas' sum by ``total``, which the step's ``boundary_size`` divides. Minimum and maximum stay
    what they say.
    """
    said = [part._replace(beta_mean=part.beta_mean * part.boundary_size) for part in parts]
    stacked = torch.stack([torch.stack([value.float() for value in part]) for part in said])
    shares = [part * (count / total) for part, count in zip(stacked, rows, strict=True)]
    merged = Diagnostics(*torch.stack(shares).sum(dim=0))
    low, high = Diagnostics._fields.index("beta_min"), Diagnostics._fields.index("beta_max")
    return merged._replace(beta_min=stacked[:, low].amin(), beta_max=stacked[:, high].amax())


def diagnose(rewards: Tensor, mask: Tensor, boundary: Boundary, weight: Tensor) -> Diagnostics:
    """Reduce a batch to its diagnostics. ``rewards``: (B, 1 + K), beta0 r or beta0 lp."""
    others = rewards[:, 1:].masked_fill(~mask, -torch.inf)
    count = mask.sum(dim=1)
    mean_other = torch.where(mask, rewards[:, 1:], 0.0).sum(dim=1) / count
    members = boundary.members
    beta_total = boundary.beta.sum() / members.sum()
    return Diagnostics(
        reward_win_rate=(rewards[:, 0] > others.amax(dim=1)).double().mean(),
        reward_margin=(rewards[:, 0] - mean_other).mean(),
        violation_rate=boundary.violations.any(dim=1).double().mean(),
        violation_share=(boundary.violations.sum(dim=1) / count).mean(),
        boundary_size=members.sum(dim=1).double().mean(),
        boundary_gradient_share=(weight * members).sum(dim=1).mean(),
        violation_gradient_share=(weight * boundary.violations).sum(dim=1).mean(),
        beta_mean=beta_total,
        beta_min=boundary.beta.masked_fill(~members, torch.inf).amin(),
        beta_max=boundary.beta.masked_fill(~members, -torch.inf).amax(),
    )
