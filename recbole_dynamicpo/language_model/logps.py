"""Summed log-probabilities of all completions of a prompt.

In the shared pass the completions of a row lie behind its prompt in one sequence. A completion attends
to the prompt and to itself only, and its positions restart after the prompt, so that every completion sees
just what it would see alone. Where a model cannot do that, each completion is a sequence of its own. The
output layer runs only where a completion token is predicted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .decoder import ONE, as_taken, decoder_of
from .heads import own_token_logps, plain_token_logps
from .packed import SequenceBatch, TokenBatch, block_mask, pack, unpack


def shared_logps(model: Any, batch: TokenBatch, *, plain_head: bool = True, form: str = ONE) -> Tensor:
    """Return (B, C) summed log-probabilities in nats from one pass; absent candidates get 0.

    Args:
        model: a Hugging Face causal language model (with or without LoRA layers) whose decoder
            takes a 4-D mask.
        batch: prompts and completions, on any device.
        plain_head: whether the logits are the states times the output embedding, and nothing more.
        form: of the mask; see ``decoder.mask_forms``.
    """
    packed = pack(batch).to(_device(model))
    output = decoder_of(model)(
        input_ids=packed.input_ids,
        attention_mask=as_taken(model, block_mask(packed.segment), packed.position_ids, form=form),
        position_ids=packed.position_ids,
        use_cache=False,
    )
    states = output.last_hidden_state.flatten(0, 1)[packed.sources]  # (U, D)
    token_logps = _token_logps(model, output, states, packed.source_of, packed.targets, plain_head)
    total = token_logps.new_zeros(batch.completion_length.numel())
    return total.index_add(0, packed.owner, token_logps).view(batch.completion_length.shape)


def separate_logps(
    model: Any, batch: TokenBatch, *, plain_head: bool = True, most_tokens: int | None = None
) -> Tensor:
    """Return what ``shared_logps`` returns, from one ordinary sequence per completion.

    Slower by about the number of candidates and right for any causal language model.

    Args:
        model: a Hugging Face causal language model.
        batch: prompts and completions, on any device.
        plain_head: whether the logits are the states times the output embedding, and nothing more.
        most_tokens: padded tokens that pass the decoder at once, though never less than one sequence; the
            backward pass computes such parts again. None: all.
    """
    sequences = unpack(batch)
    tokens = sequences.input_ids.numel() if most_tokens is None else most_tokens
    rows = max(1, tokens // sequences.input_ids.shape[1])
    parts = [SequenceBatch(*part) for part in zip(*(t.split(rows) for t in sequences), strict=True)]
    again = len(parts) > 1 and torch.is_grad_enabled()
    values = [
        checkpoint(_score_sequences, model, part, plain_head, use_reentrant=False)
        if again
        else _score_sequences(model, part, plain_head)
        for part in parts
    ]
    scores = torch.cat(values)
    total = scores.new_zeros(batch.completion_length.numel())
    owner = sequences.owner.to(scores.device)
    return total.index_add(0, owner, scores).view(batch.completion_length.shape)


def _score_sequences(model: Any, part: SequenceBatch, plain_head: bool) -> Tensor:
    """Return (S,) summed log-probabilities of the scored tokens."""
    device = _device(model)
    ids = part.input_ids.to(device)
    output = decoder_of(model)(input_ids=ids, attention_mask=part.present.long().to(device), use_cache=False)
    scored = part.scored[:, 1:].to(device)
    states = output.last_hidden_state[:, :-1][scored]  # (N, D)
    each = torch.arange(len(states), device=device)
    token_logps = _token_logps(model, output, states, each, ids[:, 1:][scored], plain_head)
    total = token_logps.new_zeros(len(ids))
    return total.index_add(0, scored.nonzero()[:, 0], token_logps)


def _token_logps(
    model: Any, output: Any, states: Tensor, source_of: Tensor, targets: Tensor, plain_head: bool
) -> Tensor:
    if plain_head:
        return plain_token_logps(states, model.get_output_embeddings().weight, source_of, targets)
    return own_token_logps(model, output, states, source_of, targets)


def _device(model: Any) -> torch.device:
    device: torch.device = model.get_output_embeddings().weight.device
    return device
