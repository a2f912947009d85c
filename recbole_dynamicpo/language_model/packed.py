"""The layout of sequences as the language model takes them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PackedBatch(NamedTuple):
    """Each row as one sequence: the prompt, then the inputs of every completion, then padding."""

    input_ids: Tensor  # (B, T) int64
    position_ids: Tensor  # (B, T) int64; every completion restarts after the prompt
    segment: Tensor  # (B, T) int64: 0 prompt, 1 + c completion c, -1 padding
    sources: Tensor  # (U,) int64: flat (B * T) positions whose output predicts something
    source_of: Tensor  # (N,) int64: index into ``sources`` of each predicted token
    targets: Tensor  # (N,) int64: the predicted tokens
    owner: Tensor  # (N,) int64: flat (B * C) completion of each predicted token

    def to(self, device: torch.device) -> PackedBatch:
        return PackedBatch(*(tensor.to(device) for tensor in self))
