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


class Boundary(NamedTuple):
    """What the policy alone decides about the negatives of each row; carries no gradient."""

    violations: Tensor  # (B, K) bool: at least as likely as the positive
    members: Tensor  # (B, K) bool: the boundary set
    beta: Tensor  # (B, K): dual-margin strength on the boundary set, 0 elsewhere


class Diagnostics(NamedTuple):
    """Scalars of one batch, detached, as 0-d tensors."""

    reward_win_rate: Tensor  # rows whose positive's reward is above every negative's, share
    reward_margin: Tensor  # mean of reward(positive) - mean reward of the negatives, nats
    violation_rate: Tensor  # rows with at least one violation, share
    violation_share: Tensor  # mean of violations / K
    boundary_size: Tensor  # mean size of the boundary set
    boundary_gradient_share: Tensor  # share of the plain objective's gradient on the boundary set
    beta_mean: Tensor  # of the dynamic betas over the boundary sets
    beta_min: Tensor
    beta_max: Tensor


class PreferenceLoss(NamedTuple):
    """Result of a preference objective."""

    loss: Tensor  # (B,), nats
    boundary: Tensor  # (B, K) bool: the selected set, in the plain form too
    beta: Tensor  # (B, K): strength of each negative in the loss, 0 where the loss does not use it
    diagnostics: Diagnostics


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
