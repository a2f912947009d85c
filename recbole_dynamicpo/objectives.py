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

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .batches import Boundary, Diagnostics, PreferenceLoss
from .boundary import find_boundary
from .errors import SettingsError, nearest
from .names import OBJECTIVES


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
        weight = _gradient_weight(policy_logps[:, 1:], ratios[:, 1:], mask, objective, beta)
        diagnostics = _diagnose(beta * ratios, mask, boundary, weight)
    return PreferenceLoss(loss, boundary.members, strength, diagnostics)


def dmpo_loss(positive: Tensor, negatives: Tensor, strength: Tensor, used: Tensor) -> Tensor:
    """Return (B,) -log sigma of the mean weighted log-ratio gap over the ``used`` negatives."""
    gaps = strength * (positive[:, None] - negatives)
    margin = torch.where(used, gaps, 0.0).sum(dim=1) / used.sum(dim=1)
    return F.softplus(-margin)


def sdpo_loss(positive: Tensor, negatives: Tensor, strength: Tensor, used: Tensor) -> Tensor:
    """Return (B,) softplus(logsumexp of beta_i (r_i - r_w)) over the ``used`` negatives."""
    gaps = strength * (negatives - positive[:, None])
    return F.softplus(gaps.masked_fill(~used, -torch.inf).logsumexp(dim=1))


def mppo_loss(positive: Tensor, negatives: Tensor, strength: Tensor) -> Tensor:
    """Return (B,) -log sigma of the weighted sum of probability gaps; strength 0 leaves one out."""
    return F.softplus(-(strength * (positive[:, None] - negatives)).sum(dim=1))


def sft_loss(logps: Tensor, token_counts: Tensor) -> Tensor:
    """Return (B,) negative log-probability per token of the positives, nats per token.

    Args:
        logps: (B,) summed log-probabilities of the positive titles, nats.
        token_counts: (B,) completion tokens of each, end-of-sequence included.
    """
    return -logps / token_counts


def merge_diagnostics(parts: Sequence[Diagnostics], rows: Sequence[int]) -> Diagnostics:
    """Return the diagnostics of several batches of one step.

    Means are weighted by ``rows``; minimum and maximum stay what they say. (The mean beta is then a
    mean over rows' batches, not over boundary sets; the difference is nil for batches of one size.)
    """
    stacked = torch.stack([torch.stack([value.float() for value in part]) for part in parts])
    share = torch.tensor(rows, dtype=torch.float32, device=stacked.device) / sum(rows)
    merged = Diagnostics(*(share @ stacked))
    low, high = Diagnostics._fields.index("beta_min"), Diagnostics._fields.index("beta_max")
    return merged._replace(beta_min=stacked[:, low].amin(), beta_max=stacked[:, high].amax())


def _gradient_weight(logps: Tensor, ratios: Tensor, mask: Tensor, objective: str, beta: float) -> Tensor:
    """Return (B, K) each negative's share of sum |dL_plain / d lp(y_i)| of its row.

    The factor that all negatives of a row have in common cancels: what is left is uniform for
    DMPO, softmax(beta r_i) for S-DPO and softmax(lp_i), the probabilities themselves, for MPPO.
    """
    if objective == "dmpo":
        return mask / mask.sum(dim=1, keepdim=True)
    logits = beta * ratios if objective == "sdpo" else logps
    return logits.masked_fill(~mask, -torch.inf).softmax(dim=1)


def _diagnose(rewards: Tensor, mask: Tensor, boundary: Boundary, weight: Tensor) -> Diagnostics:
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
        beta_mean=beta_total,
        beta_min=boundary.beta.masked_fill(~members, torch.inf).amin(),
        beta_max=boundary.beta.masked_fill(~members, -torch.inf).amax(),
    )


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
