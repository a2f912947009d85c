"""Summed log-probabilities of all completions of a prompt.

In the shared pass the completions of a row lie behind its prompt in one sequence. A completion attends
to the prompt and to itself only, and its positions restart after the prompt, so that every completion sees
just what it would see alone. Where a model cannot do that, each completion is a sequence of its own. The
output layer runs only where a completion token is predicted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .configuration import look_back
from .decoder import decoder_of
from .heads import own_token_logps, plain_token_logps
from .packed import PackedBatch, SequenceBatch, TokenBatch, additive_mask, block_mask, near_mask, pack, unpack

# How a decoder takes the block mask: one for all layers, one for each kind of layer, or one in whose window
# all layers look.
ONE, BY_KIND, WINDOWED = "one", "by_kind", "windowed"


def mask_forms(config: Any) -> tuple[str, ...]:
    """Return the forms of the mask that may fit a model of this configuration, simplest first."""
    reach = look_back(config)
    kinds = getattr(config.get_text_config(decoder=True), "layer_types", None)
    return (ONE, *((BY_KIND,) if reach and kinds else ()), *((WINDOWED,) if reach else ()))


def shared_logps(model: Any, batch: TokenBatch, *, plain_head: bool = True, form: str = ONE) -> Tensor:
    """Return (B, C) summed log-probabilities in nats from one pass; absent candidates get 0.

    Args:
        model: a Hugging Face causal language model (with or without LoRA layers) whose decoder
            takes a 4-D mask.
        batch: prompts and completions, on any device.
        plain_head: whether the logits are the states times the output embedding, and nothing more.
        form: of the mask, one of ``mask_forms``.
    """
    packed = pack(batch).to(_device(model))
    output = decoder_of(model)(
        input_ids=packed.input_ids,
        attention_mask=_mask(model, packed, form),
        position_ids=packed.position_ids,
        use_cache=False,
    )
    states = output.last_hidden_state.flatten(0, 1)[packed.sources]  # (U, D)
    token_logps = _token_logps(model, output, states, packed.source_of, packed.targets, plain_head)
    total = token_logps.new_zeros(batch.completion_length.numel())
    return total.index_add(0, packed.owner, token_logps).view(batch.completion_length.shape)


def _mask(model: Any, packed: PackedBatch, form: str) -> Tensor | dict[str, Tensor]:
    """Return the mask in the form that the decoder takes."""
    block, reach = block_mask(packed.segment), look_back(model.config)

    def ready(mask: Tensor) -> Tensor:
        # Eager attention adds the mask to the scores.
        eager = model.config._attn_implementation == "eager"
        return additive_mask(mask, model.dtype) if eager else mask

    def narrowed(kinds: Iterable[str]) -> Tensor:
        limits = {kind: reach[kind][0] for kind in kinds if kind in reach}
        if not limits:
            return ready(block)
        near = near_mask(
            packed.position_ids, limits.get("sliding_attention"), limits.get("chunked_attention")
        )
        return ready(block & near)

    if form == BY_KIND:
        kinds = {*model.config.get_text_config(decoder=True).layer_types}
        return {kind: narrowed([kind]) for kind in kinds}
    return narrowed(reach if form == WINDOWED else ())


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
