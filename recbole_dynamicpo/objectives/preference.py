"""Preference objectives and the SFT loss, as pure functions of summed log-probabilities.

With lp the policy's and lp_ref the frozen SFT policy's summed log-probability of a title in nats,
r = lp - lp_ref, p = exp(lp), w the positive and S the negatives that count, each with a beta_i:

- ``dmpo``:  -log sigma( mean over S of beta_i (r_w - r_i) )
- ``sdpo``:  -log sigma( -log sum over S of exp(beta_i (r_i - r_w)) )
- ``mppo``:  -log sigma( sum over S of beta_i (p_w - p_i) ), no reference

The plain form takes all K negatives with beta_i = beta0; the dynamic form (DynamicPO, arXiv
2605.00327) takes the boundary negatives with their dual-margin betas. With K = 1 the first two are
DPO. Differs from the published code: S-DPO is softplus(logsumexp(...)), which stays finite at any
gap, and a row's negatives are one tensor instead of a dictionary of K.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SettingsError, nearest
from ..names import OBJECTIVES
from .boundary import find_boundary
from .diagnostics import Diagnostics, diagnose, gradient_weight
from .losses import dmpo_loss, mppo_loss, sdpo_loss


class PreferenceLoss(NamedTuple):
    """Result of a preference objective."""

    loss: Tensor  # (B,), nats
    boundary: Tensor  # (B, K) bool: the selected set, in the plain form too
    beta: Tensor  # (B, K): strength of each negative in the loss, 0 where the loss does not use it
    diagnostics: Diagnostics


def preference_loss(
    policy_logps: Tensor,
    reference_logps: Tensor | None,
    *,
    objective: str = "dmpo",
    dynamic: bool = True,
    beta: float = 1.0,
    margin: float = 6.0,
    clusters: int = 3,
    mask: Tensor | None = None,
) -> PreferenceLoss:
    """Return the loss of each row, the boundary set, the betas and the batch's diagnostics.

    Args:
        policy_logps: (B, 1 + K) summed log-probabilities, the positive in column 0, nats.
        reference_logps: the same under the frozen reference; may be None for ``mppo`` only.
        objective: one of ``dmpo``, ``mppo``, ``sdpo``.
        dynamic: boundary negatives with dual-margin betas; otherwise all K with ``beta``.
        beta: base strength beta0, positive.
        margin: gamma of the dual margin, nats.
        clusters: groups that the negatives are cut into where none violates the preference.
        mask: (B, K) bool, true where a negative exists; None means everywhere.

    Raises:
        SettingsError: unknown objective, or no reference where one is needed.
        ValueError: shapes that do not fit.
    """
    _check(policy_logps, reference_logps, objective, mask)
    if mask is not None:  # absent ones may hold anything, -inf too
        absent = F.pad(~mask, (1, 0))
        policy_logps = policy_logps.masked_fill(absent, 0.0)
        reference_logps = None if reference_logps is None else reference_logps.masked_fill(absent, 0.0)
    positive, negatives = policy_logps[:, 0], policy_logps[:, 1:]
    if mask is None:
        mask = torch.ones_like(negatives, dtype=torch.bool)
    boundary = find_boundary(positive, negatives, mask, beta=beta, margin=margin, clusters=clusters)
    used = boundary.members if dynamic else mask
    strength = boundary.beta if dynamic else beta * mask.to(negatives.dtype)

    ratios = policy_logps if reference_logps is None else policy_logps - reference_logps
    if objective == "mppo":
        chance = policy_logps.exp()
        loss = mppo_loss(chance[:, 0], chance[:, 1:], strength)
    elif objective == "sdpo":
        loss = sdpo_loss(ratios[:, 0], ratios[:, 1:], strength, used)
    else:
        loss = dmpo_loss(ratios[:, 0], ratios[:, 1:], strength, used)
    with torch.no_grad():
        weight = gradient_weight(policy_logps[:, 1:], ratios[:, 1:], mask, objective, beta)
        diagnostics = diagnose(beta * ratios, mask, boundary, weight)
    return PreferenceLoss(loss, boundary.members, strength, diagnostics)


def _check(policy_logps: Tensor, reference_logps: Tensor | None, objective: str, mask: Tensor | None) -> None:
    if objective not in OBJECTIVES:
        hint = nearest(objective, OBJECTIVES)
        raise SettingsError(f"objective: got '{objective}', wanted one of {', '.join(OBJECTIVES)}{hint}")
    if policy_logps.dim() != 2 or policy_logps.shape[1] < 2:
        raise ValueError(f"policy_logps: wanted (B, 1 + K) with K >= 1, got {tuple(policy_logps.shape)}")
    if reference_logps is None and objective != "mppo":
        raise SettingsError(f"objective '{objective}' needs reference_logps; only mppo has no reference")
    if reference_logps is not None and reference_logps.shape != policy_logps.shape:
        raise ValueError(
            f"reference_logps: wanted {tuple(policy_logps.shape)}, got {tuple(reference_logps.shape)}"
        )
    if mask is not None and mask.shape != policy_logps[:, 1:].shape:
        raise ValueError(f"mask: wanted {tuple(policy_logps[:, 1:].shape)}, got {tuple(mask.shape)}")
