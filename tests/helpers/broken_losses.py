"""A loss that is not finite, once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from recbole_dynamicpo.training.model import DynamicPO


def break_losses(monkeypatch: pytest.MonkeyPatch, at: int) -> list[int]:
    """Let the losses of pass ``at``, counted from 1, be nan; return a list that grows by one entry a pass."""
    losses: Any = DynamicPO.losses_of
    calls: list[int] = []

    def broken(self: DynamicPO, laid_out: Any) -> torch.Tensor:
        calls.append(1)
        found: torch.Tensor = losses(self, laid_out) * (float("nan") if len(calls) == at else 1.0)
        return found

    monkeypatch.setattr(DynamicPO, "losses_of", broken)
    return calls
