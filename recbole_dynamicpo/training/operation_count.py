"""What RecBole's counter of operations is told of a language model."""

from __future__ import annotations

from typing import Any

from recbole.data.interaction import Interaction
from torch import Tensor, nn


class OperationCount(nn.Module):
    """Reports the operations of scoring one row to RecBole's counter.

    The counter hooks every submodule, which a PEFT model refuses. This module has none: it states
    2 operations per weight and token, the usual estimate of a forward pass.
    """

    total_ops: Tensor  # made by the counter

    def __init__(self, model: Any) -> None:
        super().__init__()
        weights = sum(p.numel() for p in model.policy.parameters())
        self.operations = 2.0 * weights * model.collator.max_length

    def predict(self, interaction: Interaction) -> None:
        """Add one row's operations to the counter."""
        self.total_ops = self.total_ops + self.operations
