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


class SequenceBatch(NamedTuple):
    """Each completion behind a copy of its prompt, padded on the right; S present completions."""

    input_ids: Tensor  # (S, T) int64
    present: Tensor  # (S, T) bool: no padding
    scored: Tensor  # (S, T) bool: tokens of the completion
    owner: Tensor  # (S,) int64: flat (B * C) completion of each sequence


def pack(batch: TokenBatch) -> PackedBatch:
    """Lay out each row as prompt, completion inputs, padding; runs where the batch lies."""
    rows, count, length = batch.completions.shape
    width = batch.prompt.shape[1]
    device = batch.prompt.device
    step = torch.arange(length, device=device)
    is_input = step[:-1] + 1 < batch.completion_length[:, :, None]  # the last token is never an input
    in_prompt = torch.arange(width, device=device) < batch.prompt_length[:, None]
    present = torch.cat([in_prompt, is_input.flatten(1)], dim=1)
    order = (~present).int().argsort(dim=1, stable=True)[:, : int(present.sum(dim=1).max())]

    tokens = torch.cat([batch.prompt, batch.completions[:, :, :-1].flatten(1)], dim=1)
    places = batch.prompt_length[:, None, None] + step[:-1].expand(rows, count, -1)
    positions = torch.cat([torch.arange(width, device=device).expand(rows, -1), places.flatten(1)], dim=1)
    numbers = torch.arange(1, count + 1, device=device)[:, None].expand(rows, -1, length - 1)
    segments = torch.cat([torch.zeros_like(batch.prompt), numbers.flatten(1)], dim=1)
    segments = segments.masked_fill(~present, -1)
    sources, source_of, targets, owner = _predictions(batch, present, order.shape[1])
    return PackedBatch(
        tokens.gather(1, order),
        positions.gather(1, order),
        segments.gather(1, order),
        sources,
        source_of,
        targets,
        owner,
    )


def _predictions(batch: TokenBatch, present: Tensor, packed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Say which packed position predicts which token of which completion."""
    rows, count, length = batch.completions.shape
    width = batch.prompt.shape[1]
    device = batch.prompt.device
    row_start = torch.arange(rows, device=device) * packed
    place = (present.cumsum(dim=1) - 1) + row_start[:, None]  # flat packed position of a present token
    last_prompt = (row_start + batch.prompt_length - 1)[:, None, None].expand(-1, count, 1)
    before = torch.cat([last_prompt, place[:, width:].view(rows, count, length - 1)], dim=2)
    scored = torch.arange(length, device=device) < batch.completion_length[:, :, None]
    owner = torch.arange(rows * count, device=device).view(rows, count, 1).expand_as(scored)
    sources, source_of = before[scored].unique(return_inverse=True)
    return sources, source_of, batch.completions[scored], owner[scored]


def block_mask(segment: Tensor) -> Tensor:
    """Return (B, 1, T, T) bool: may the query (row) attend to the key (column)?

    Padding attends to itself alone, which keeps its softmax finite.
    """
    length = segment.shape[1]
    query, key = segment[:, :, None], segment[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment.device).tril()
    visible = ((key == 0) | (key == query)) & (key >= 0) & causal
    return (visible | torch.eye(length, dtype=torch.bool, device=segment.device))[:, None]


def unpack(batch: TokenBatch) -> SequenceBatch:
    """Lay out each completion that is there as a sequence of its own; runs where the batch lies."""
    _, count, length = batch.completions.shape
    width = batch.prompt.shape[1]
    device = batch.prompt.device
    owner = batch.completion_length.flatten().nonzero().squeeze(1)
    prompt_end = batch.prompt_length.repeat_interleave(count)[owner][:, None]
    end = batch.completion_length.flatten()[owner][:, None]
    row = owner // count
    ids = torch.cat([batch.prompt[row], batch.completions.flatten(0, 1)[owner]], dim=1)
    in_prompt = torch.arange(width, device=device) < prompt_end
    in_completion = torch.arange(length, device=device) < end
    present = torch.cat([in_prompt, in_completion], dim=1)
    order = (~present).int().argsort(dim=1, stable=True)  # padding inside goes to the end
    order = order[:, : int(present.sum(dim=1).max())]
    ids, present = ids.gather(1, order), present.gather(1, order)
    scored = present & (torch.arange(ids.shape[1], device=device) >= prompt_end)
    return SequenceBatch(ids, present, scored, owner)
