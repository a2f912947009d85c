"""One's own: PYTHONPATH=examples run_recbole --model=DynamicPO --objective=own_objective.Hinge"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from recbole_dynamicpo.objectives import Objective


class Hinge(Objective):
    """The mean over the negatives of max(0, 1 - beta_i (r_w - r_i)): no push once a gap is wide enough."""

    def loss(
        self, policy: Tensor, reference: Tensor | None, mask: Tensor, extras: Mapping[str, Tensor]
    ) -> Tensor:
        assert reference is not None
        ratios = policy - reference
        short = (1 - extras["beta"] * (ratios[:, :1] - ratios[:, 1:])).clamp(min=0)
        return torch.where(mask, short, 0.0).sum(dim=1) / mask.sum(dim=1)
