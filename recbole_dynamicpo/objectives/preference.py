"""From log-probabilities to the loss of a preference stage: boundary, betas, objective, diagnostics.

The plain form takes all K negatives with beta_i = beta0; the dynamic form (DynamicPO, arXiv 2605.00327)
takes the boundary negatives with their dual-margin betas. Differs from the published code: a row's
negatives are one tensor instead of a dictionary of K.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SettingsError
from .boundary import find_boundary
from .diagnostics import Diagnostics, diagnose
from .strategies import Objective, find_objective


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
    objective: str | Objective = "dmpo",
    dynamic: bool = True,
    beta: float = 1.0,
    margin: float = 6.0,
    clusters: int = 3,
    mask: Tensor | None = None,
    extras: Mapping[str, Tensor] | None = None,
) -> PreferenceLoss:
    """Return the loss of each row, the boundary set, the betas and the batch's diagnostics.

    Args:
        policy_logps: (B, 1 + K) summed log-probabilities, the positive in column 0, nats.
        reference_logps: the same under the frozen reference; may be None where the objective has none.
        objective: by name, by its dotted path, or itself; see ``strategies``.
        dynamic: boundary negatives with dual-margin betas; otherwise all K with ``beta``.
        beta: base strength beta0, positive.
        margin: gamma of the dual margin, nats.
        clusters: groups that the negatives are cut into where none violates the preference.
        mask: (B, K) bool, true where a negative exists; None means everywhere.
        extras: (B, 1 + K) tensors that the objective ``needs``, by name.

    Raises:
        SettingsError: unknown objective, or no reference or tensor where one is needed.
        ValueError: shapes that do not fit.
    """
    strategy = find_objective(objective) if isinstance(objective, str) else objective
    _check(policy_logps, reference_logps, strategy, mask, extras or {})
    more = {name: (extras or {})[name] for name in strategy.needs}
    if mask is not None:  # absent ones may hold anything, -inf too
        absent = F.pad(~mask, (1, 0))
        more = {name: values.masked_fill(absent, 1.0) for name, values in more.items()}
        policy_logps = policy_logps.masked_fill(absent, 0.0)
        reference_logps = None if reference_logps is None else reference_logps.masked_fill(absent, 0.0)
    positive, negatives = policy_logps[:, 0], policy_logps[:, 1:]
    if mask is None:
        mask = torch.ones_like(negatives, dtype=torch.bool)
    boundary = find_boundary(positive, negatives, mask, beta=beta, margin=margin, clusters=clusters)
    plain = beta * mask.to(negatives.dtype)
    used, strength = (boundary.members, boundary.beta) if dynamic else (mask, plain)

    loss = strategy.loss(policy_logps, reference_logps, used, {**more, "beta": strength})
    if loss.shape != mask.shape[:1]:
        name = type(strategy).__name__
        raise ValueError(f"objective {name}: wanted losses ({len(mask)},), got {tuple(loss.shape)}")
    with torch.no_grad():
        ratios = policy_logps if reference_logps is None else policy_logps - reference_logps
        weight = strategy.gradient_weight(policy_logps, reference_logps, mask, {**more, "beta": plain})
        diagnostics = diagnose(beta * ratios, mask, boundary, weight)
    return PreferenceLoss(loss, boundary.members, strength, diagnostics)


def _check(
    policy_logps: Tensor,
    reference_logps: Tensor | None,
    objective: Objective,
    mask: Tensor | None,
    extras: Mapping[str, Tensor],
) -> None:
    if policy_logps.dim() != 2 or policy_logps.shape[1] < 2:
        raise ValueError(f"policy_logps: wanted (B, 1 + K) with K >= 1, got {tuple(policy_logps.shape)}")
    if reference_logps is None and objective.needs_reference:
        raise SettingsError(f"objective '{type(objective).__name__.lower()}' needs reference_logps")
    if reference_logps is not None and reference_logps.shape != policy_logps.shape:
        raise ValueError(
            f"reference_logps: wanted {tuple(policy_logps.shape)}, got {tuple(reference_logps.shape)}"
        )
    if mask is not None and mask.shape != policy_logps[:, 1:].shape:
        raise ValueError(f"mask: wanted {tuple(policy_logps[:, 1:].shape)}, got {tuple(mask.shape)}")
    for name in objective.needs:
        if name not in extras:
            raise SettingsError(f"objective '{type(objective).__name__.lower()}' needs extras['{name}']")
        if extras[name].shape != policy_logps.shape:
            raise ValueError(
                f"extras['{name}']: wanted {tuple(policy_logps.shape)}, got {tuple(extras[name].shape)}"
            )
