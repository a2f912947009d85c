"""Rows as the language model takes them: token ids row by row, then each row as one sequence.

Shape letters everywhere: B rows, K negatives, C candidates (the positive and the negatives), P
prompt tokens, L completion tokens, T tokens of a packed row, V vocabulary entries, N predicted
tokens of a batch. Log-probabilities are in nats and summed over a completion's tokens,
end-of-sequence included.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TokenBatch(NamedTuple):
    """Rows as token ids: one prompt each and its C completions, padded on the right with 0.

    A completion is a title with its leading space, then the end-of-sequence token.
    """

    prompt: Tensor  # (B, P) int64
    prompt_length: Tensor  # (B,) int64, at least 1
    completions: Tensor  # (B, C, L) int64
    completion_length: Tensor  # (B, C) int64; 0 marks an absent candidate

    def tokens(self) -> int:
        """Return the tokens in the batch without padding; it lies on the CPU, where it was made."""
        return int(self.prompt_length.sum() + self.completion_length.sum())

    def padded_tokens(self) -> int:
        """Return the tokens of the packed batch, padding included."""
        widest = (self.prompt_length + self.completion_length.sum(dim=1)).max()
        return int(widest) * len(self.prompt_length)

    def to(self, device: torch.device) -> TokenBatch:
        return TokenBatch(*(tensor.to(device) for tensor in self))


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
