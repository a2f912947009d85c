"""Preference objectives as strategies: a class each, one table of names, a user's own by its dotted path.

With lp the policy's and lp_ref the frozen SFT policy's summed log-probability of a title in nats,
r = lp - lp_ref, p = exp(lp), w the positive and S the negatives that count, each with a beta_i:

- ``dmpo``:     -log sigma( mean over S of beta_i (r_w - r_i) )
- ``sdpo``:     -log sigma( -log sum over S of exp(beta_i (r_i - r_w)) )
- ``mppo``:     -log sigma( sum over S of beta_i (p_w - p_i) ), no reference
- ``listwise``: -log softmax of the positive among S with logits beta_i (lp_i - lp_w), no reference
- ``recpo``:    S-DPO with a margin a negative, made of ratings and time; see ``RecPO``
- ``simpo``:    the softmax over log-probabilities by length, with one margin, no reference; see ``SimPO``

With K = 1 the first two are DPO. S-DPO is softplus(logsumexp(...)), which stays finite at any gap, unlike the
published code's ``-log(sum(exp(x)))``.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingsError, nearest
from ..names import NEEDS, OBJECTIVES
from .losses import dmpo_loss, mppo_loss, preference_scores, sdpo_loss


class Objective:
    """What a preference stage minimises; selection of negatives and their betas are decided before.

    Attributes:
        needs_reference: whether it reads the reference's log-probabilities.
        needs: further tensors that it wants in ``extras``, (B, 1 + K) each, the positive first. ``ratings``:
            the user's, and the middle of the training rows' scale for negatives, which the user did not
            rate. ``times``: days since the title that the user took before, 0 for the first one; inf for
            negatives, which the user did not take. ``lengths``: terms that a title's log-probability sums
            over: its tokens, or under the catalogue likelihood the nodes of its path that branch.
        reads: names of the settings that its ``__init__`` takes, by keyword, with defaults.
    """

    needs_reference = True
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()

    def loss(
        self, policy: Tensor, reference: Tensor | None, mask: Tensor, extras: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the (B,) losses, nats.

        Args:
            policy: (B, 1 + K) summed log-probabilities, the positive first, nats; 0 where there is none.
            reference: the same under the frozen reference; None for an objective without one.
            mask: (B, K) bool, the negatives that count; at least one a row.
            extras: ``beta``, (B, K): the strength of each negative, 0 where it does not count; and what
                ``needs`` names.
        """
        raise NotImplementedError

    def gradient_weight(
        self, policy: Tensor, reference: Tensor | None, mask: Tensor, extras: Mapping[str, Tensor]
    ) -> Tensor:
        """Return (B, K) each negative's share of sum |dL / d lp(y_i)| of its row.

        It is what the diagnostics show, with all negatives that there are and one ``beta`` for all of them;
        found by autograd here.
        """
        with torch.enable_grad():
            logps = policy.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.loss(logps, reference, mask, extras).sum(), logps)
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

    def gradient_weight(
        self, policy: Tensor, reference: Tensor | None, mask: Tensor, extras: Mapping[str, Tensor]
    ) -> Tensor:
        """Uniform: what all negatives of a row have in common cancels."""
        return mask / mask.sum(dim=1, keepdim=True)


class SDPO(_Ratios):
    """Softmax DPO: the hardest negatives weigh most."""

    def loss(
        self, policy: Tensor, reference: Tensor | None, mask: Tensor, extras: Mapping[str, Tensor]
    ) -> Tensor:
        """See ``Objective``."""
        return sdpo_loss(*self._ratios(policy, reference), extras["beta"], mask, self._margin(extras))

    def gradient_weight(
        self, policy: Tensor, reference: Tensor | None, mask: Tensor, extras: Mapping[str, Tensor]
    ) -> Tensor:
        """Softmax of beta r_i and the margins."""
        _, ratios = self._ratios(policy, reference)
        logits = extras["beta"] * ratios + self._margin(extras)
        return logits.masked_fill(~mask, -torch.inf).softmax(dim=1)

    def _margin(self, extras: Mapping[str, Tensor]) -> Tensor | float:
        """Return how far ahead of each negative the positive shall be, nats."""
        return 0.0


class ListWise(SDPO):
    """The same softmax over the policy's own log-probabilities: no reference."""

    needs_reference = False

    def _ratios(self, policy: Tensor, reference: Tensor | None) -> tuple[Tensor, Tensor]:
        return policy[:, 0], policy[:, 1:]


class RecPO(SDPO):
    """S-DPO with a margin of its own for each negative, wider for what was liked and taken soon.

    -log sigma( -log sum over S of exp(beta_i (r_i - r_w) + lambda phi_w / phi_i) ), with
    phi = rating / (1 + min(days, 10)) ** 0.5.

    Our reading of RecPO (arXiv 2506.02261) after its public code, github.com/HoytWen/RecPO: the margin of
    ``trainer/rec_dpo_trainer.py`` with ``ratio``, exponent and horizon of ``data/movielens_data.py``. There
    delay counts places in what the user took later, 10 where a title was never taken; here it counts days, as
    the positive is the very next title. A negative that the user did not rate has the middle of the scale
    there, 3 of 1 to 5, and here. With lambda = 0 it is S-DPO, to the last bit.

    Args:
        rating_margin: lambda.
    """

    needs = ("ratings", "times")
    reads = ("rating_margin",)

    def __init__(self, rating_margin: float = 1.0) -> None:
        self.rating_margin = rating_margin

    def _margin(self, extras: Mapping[str, Tensor]) -> Tensor:
        ratings = extras["ratings"]
        if not (ratings > 0).all():
            raise SettingsError(
                f"objective recpo: got the rating {float(ratings.min()):g}, wanted positive ratings"
            )
        scores = preference_scores(ratings, extras["times"])
        return self.rating_margin * (scores[:, :1] / scores[:, 1:])


class SimPO(SDPO):
    """The softmax over the policy's log-probabilities by length, the positive to be a margin ahead.

    -log sigma( -log sum over S of exp(beta_i (lp_i / |y_i| - lp_w / |y_w|) + gamma) ), |y| the terms that a
    log-probability sums over. With K = 1 it is SimPO (arXiv 2405.14734); more negatives as S-DPO has them.

    Args:
        target_margin: gamma, nats.
    """

    needs_reference = False
    needs = ("lengths",)
    reads = ("target_margin",)

    def __init__(self, target_margin: float = 1.0) -> None:
        self.target_margin = target_margin

    def loss(
        self, policy: Tensor, reference: Tensor | None, mask: Tensor, extras: Mapping[str, Tensor]
    ) -> Tensor:
        """See ``Objective``."""
        return super().loss(policy / extras["lengths"].clamp(min=1), None, mask, extras)

    def gradient_weight(
        self, policy: Tensor, reference: Tensor | None, mask: Tensor, extras: Mapping[str, Tensor]
    ) -> Tensor:
        """Softmax of beta lp_i / |y_i|, each by its length."""
        lengths = extras["lengths"].clamp(min=1)
        share = super().gradient_weight(policy / lengths, None, mask, extras) / lengths[:, 1:]
        return share / share.sum(dim=1, keepdim=True)

    def _margin(self, extras: Mapping[str, Tensor]) -> float:
        return self.target_margin


class MPPO(Objective):
    """Gaps of probabilities, no reference."""

    needs_reference = False

    def loss(
        self, policy: Tensor, reference: Tensor | None, mask: Tensor, extras: Mapping[str, Tensor]
    ) -> Tensor:
        """See ``Objective``."""
        chance = policy.exp()
        return mppo_loss(chance[:, 0], chance[:, 1:], extras["beta"])

    def gradient_weight(
        self, policy: Tensor, reference: Tensor | None, mask: Tensor, extras: Mapping[str, Tensor]
    ) -> Tensor:
        """Softmax of lp_i, the probabilities themselves."""
        return policy[:, 1:].masked_fill(~mask, -torch.inf).softmax(dim=1)


STRATEGIES: dict[str, type[Objective]] = {
    "dmpo": DMPO, "mppo": MPPO, "sdpo": SDPO, "listwise": ListWise, "recpo": RecPO, "simpo": SimPO,
}  # fmt: skip


def find_objective(name: str, settings: Mapping[str, Any] | None = None) -> Objective:
    """Return the objective of a name: one of ours, or a user's class by its dotted path.

    Args:
        name: of the objective.
        settings: of a run, of which it gets what it ``reads``; None leaves it its defaults.

    Raises:
        SettingsError: there is none, it is no ``Objective``, or it asks for what there is not.
    """
    found = STRATEGIES.get(name) or _own(name)
    for asked, what, known in (
        (found.needs, "needs", NEEDS),
        (found.reads if settings is not None else (), "reads the setting", tuple(settings or ())),
    ):
        for one in asked:
            if one not in known:
                raise SettingsError(
                    f"objective: '{name}' {what} '{one}', which there is not{nearest(one, known)}"
                )
    return found() if settings is None else found(**{one: settings[one] for one in found.reads})


def source_digest(name: str) -> str | None:
    """Return the SHA-256 of the code of a user's own objective: of its module's file and its bases'.

    None for one of ours, whose code is this package's.

    Raises:
        SettingsError: there is no such class.
    """
    if name in STRATEGIES:
        return None
    home = __name__.partition(".")[0]
    modules = {name.rpartition(".")[0], *(kind.__module__ for kind in _own(name).__mro__)}
    own = sorted(module for module in modules if module.partition(".")[0] != home)
    files = [getattr(sys.modules[module], "__file__", None) for module in own]
    digest = hashlib.sha256()
    for file in filter(None, files):
        digest.update(Path(file).read_bytes() + b"\0")
    return digest.hexdigest()


def _own(name: str) -> type[Objective]:
    """Return a user's class by its dotted path."""
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
    return found
