"""Records that travel between the steps.

Shape letters everywhere: B rows, K negatives, C candidates (the positive and the negatives), P
prompt tokens, L completion tokens, T tokens of a packed row, V vocabulary entries, N predicted
tokens of a batch. Log-probabilities are in nats and summed over a completion's tokens,
end-of-sequence included.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PromptRow(NamedTuple):
    """One row before tokenization: what the prompt shows and which titles are scored."""

    history: list[str]  # titles, oldest first
    candidates: list[str]  # titles in prompt order
    completions: list[str]  # the titles to score
    template: int = 0  # which template to write the prompt with


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
