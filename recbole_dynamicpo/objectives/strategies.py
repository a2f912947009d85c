"""Preference objectives as strategies: a class each, one table of names, a user's own by its dotted path.

With lp the policy's and lp_ref the frozen SFT policy's summed log-probability of a title in nats,
r = lp - lp_ref, p = exp(lp), w the positive and S the negatives that count, each with a beta_i:

- ``dmpo``:     -log sigma( mean over S of beta_i (r_w - r_i) )
- ``sdpo``:     -log sigma( -log sum over S of exp(beta_i (r_i - r_w)) )
- ``mppo``:     -log sigma( sum over S of beta_i (p_w - p_i) ), no reference
- ``listwise``: -log softmax of the positive among S with logits beta_i (lp_i - lp_w), no reference

With K = 1 the first two are DPO. S-DPO is softplus(logsumexp(...)), which stays finite at any gap, unlike the
published code's ``-log(sum(exp(x)))``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import SettingsError, nearest
from ..names import OBJECTIVES
from .losses import dmpo_loss, mppo_loss, sdpo_loss


class Objective:
    """What a preference stage minimises; selection of negatives and their betas are decided before.

    Attributes:
        needs_reference: whether it reads the reference's log-probabilities.
    """

    needs_reference = True

    def loss(
        self, policy: Tensor, reference: Tensor | None, mask: Tensor, extras: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the (B,) losses, nats.

        Args:
            policy: (B, 1 + K) summed log-probabilities, the positive first, nats; 0 where there is none.
            reference: the same under the frozen reference; None for an objective without one.
            mask: (B, K) bool, the negatives that count; at least one a row.
            extras: ``beta``, (B, K): the strength of each negative, 0 where it does not count.
        """
        raise NotImplementedError

    def gradient_weight(self, policy: Tensor, reference: Tensor | None, mask: Tensor, beta: float) -> Tensor:
        """Return (B, K) each negative's share of sum |dL / d lp(y_i)| of its row, all with strength ``beta``.

        It is what the diagnostics show, with all negatives that there are; found by autograd here.
        """
        with torch.enable_grad():
            logps = policy.detach().requires_grad_()
            strength = beta * mask.to(logps.dtype)
            (gradient,) = torch.autograd.grad(
                self.loss(logps, reference, mask, {"beta": strength}).sum(), logps
            )
        size = gradient[:, 1:].abs()
        total = size.sum(dim=1, keepdim=True)
        return torch.where(total > 0, size / total, mask / mask.sum(dim=1, keepdim=True))


class _Ratios(Objective):
    """Reads log-ratios of the policy over the reference."""

    def _ratios(self, policy: Tensor, reference: Tensor | None) -> tuple[Tensor, Tensor]:
        ratios = policy if reference is None else policy - reference
        return ratios[:, 0], ratios[:, 1:]


class DMPO(_Ratios):
    """The mean gap to the negatives (arXiv 2605.00327 takes it as its first objective)."""

    def loss(
        self, policy: Tensor, reference: Tensor | None, mask: Tensor, extras: Mapping[str, Tensor]
    ) -> Tensor:
        """See ``Objective``."""
        return dmpo_loss(*self._ratios(policy, reference), extras["beta"], mask)

    def gradient_weight(self, policy: Tensor, reference: Tensor | None, mask: Tensor, beta: float) -> Tensor:
        """Uniform: what all negatives of a row have in common cancels."""
        return mask / mask.sum(dim=1, keepdim=True)


class SDPO(_Ratios):
    """Softmax DPO: the hardest negatives weigh most."""

    def loss(
        self, policy: Tensor, reference: Tensor | None, mask: Tensor, extras: Mapping[str, Tensor]
    ) -> Tensor:
        """See ``Objective``."""
        return sdpo_loss(*self._ratios(policy, reference), extras["beta"], mask)

    def gradient_weight(self, policy: Tensor, reference: Tensor | None, mask: Tensor, beta: float) -> Tensor:
        """Softmax of beta r_i."""
        _, ratios = self._ratios(policy, reference)
        return (beta * ratios).masked_fill(~mask, -torch.inf).softmax(dim=1)


class ListWise(SDPO):
    """The same softmax over the policy's own log-probabilities: no reference."""

    needs_reference = False

    def _ratios(self, policy: Tensor, reference: Tensor | None) -> tuple[Tensor, Tensor]:
        return policy[:, 0], policy[:, 1:]


class MPPO(Objective):
    """Gaps of probabilities, no reference."""

    needs_reference = False

    def loss(
        self, policy: Tensor, reference: Tensor | None, mask: Tensor, extras: Mapping[str, Tensor]
    ) -> Tensor:
        """See ``Objective``."""
        chance = policy.exp()
        return mppo_loss(chance[:, 0], chance[:, 1:], extras["beta"])

    def gradient_weight(self, policy: Tensor, reference: Tensor | None, mask: Tensor, beta: float) -> Tensor:
        """Softmax of lp_i, the probabilities themselves."""
        return policy[:, 1:].masked_fill(~mask, -torch.inf).softmax(dim=1)


STRATEGIES: dict[str, type[Objective]] = {"dmpo": DMPO, "mppo": MPPO, "sdpo": SDPO, "listwise": ListWise}


def find_objective(name: str) -> Objective:
    """Return the objective of a name: one of ours, or a user's class by its dotted path.

    Raises:
        SettingsError: there is none, or it is no ``Objective``.
    """
    if name in STRATEGIES:
        return STRATEGIES[name]()
    module, _, attribute = name.rpartition(".")
    if not module:
        hint = nearest(name, OBJECTIVES)
        raise SettingsError(f"objective: got '{name}', wanted one of {', '.join(OBJECTIVES)}{hint}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SettingsError(
            f"objective: '{name}' cannot be imported ({error}); is it on PYTHONPATH?"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise SettingsError(f"objective: '{name}' is no subclass of recbole_dynamicpo.objectives.Objective")
    return found()
