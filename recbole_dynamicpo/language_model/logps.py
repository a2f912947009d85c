"""Summed log-probabilities of all completions of a prompt, without a tensor of tokens by vocabulary.

In the shared pass the completions of a row lie behind its prompt in one sequence. A completion attends
to the prompt and to itself only, and its positions restart after the prompt, so that every completion sees
just what it would see alone. Where a model cannot do that, each completion is a sequence of its own.

The output layer runs only where a completion token is predicted. A plain head is one matrix: its normaliser
is built up over slices of the vocabulary. Any other head (scaled, soft-capped, with a bias) is the model's
own, which sees some rows at a time. Either way a token's logit and its normaliser come from the same product,
so that no log-probability is above 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .decoder import ONE, as_taken, decoder_of, decoder_returns
from .packed import PackedBatch, SequenceBatch, TokenBatch, block_mask, on_device, pack, unpack

# Slice of the vocabulary per matrix product: wide enough for full speed, 16 MB for 512 tokens.
VOCABULARY_SLICE = 8192
# Logits that a head of the model's own makes at once: 64 MB in float32.
OWN_HEAD_LOGITS = 1 << 24


class _PlainHead(torch.autograd.Function):
    """Log-probabilities under softmax(states @ weight.T), slice by slice; half the gradient on the way.

    d lse / d state = softmax @ weight is the weight's mean under the running softmax, so it can be
    accumulated beside the running maximum and sum. The weight itself is frozen.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, source_of: Tensor, targets: Tensor) -> Tensor:
        wide = torch.promote_types(states.dtype, torch.float32)
        top = states.new_full((states.shape[0], 1), -torch.inf, dtype=wide)
        total = torch.zeros_like(top)
        chosen = states.new_zeros(targets.shape, dtype=wide)
        wants_gradient = ctx.needs_input_grad[0]
        mean = states.new_zeros(states.shape, dtype=wide) if wants_gradient else None
        for start in range(0, weight.shape[0], VOCABULARY_SLICE):
            piece = weight[start : start + VOCABULARY_SLICE]
            logits = _wide_product(states, piece, wide)
            place = targets - start
            here = (place >= 0) & (place < piece.shape[0])
            found = logits[source_of, place.clamp(0, piece.shape[0] - 1)]
            chosen = torch.where(here, found, chosen)
            new_top = torch.maximum(top, logits.amax(dim=1, keepdim=True))
            shrink = (top - new_top).exp()
            logits.sub_(new_top).exp_()
            total = total * shrink + logits.sum(dim=1, keepdim=True)
            if mean is not None:
                mean = mean.mul_(shrink).add_(logits.to(piece.dtype) @ piece)
            top = new_top
        if mean is not None:
            ctx.save_for_backward(mean.div_(total), weight, source_of, targets)
        return chosen - (top + total.log()).squeeze(1)[source_of]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        mean, weight, source_of, targets = ctx.saved_tensors
        share = gradients[0].to(mean.dtype)[:, None]
        result = torch.zeros_like(mean)
        result.index_add_(0, source_of, share * (weight[targets].to(mean.dtype) - mean[source_of]))
        return result.to(weight.dtype), None, None, None


def _wide_product(states: Tensor, piece: Tensor, wide: torch.dtype) -> Tensor:
    """Return (U, slice) products, accumulated and left in ``wide``."""
    if states.dtype != wide and states.is_cuda and hasattr(torch.ops.aten.mm, "dtype"):
        return torch.mm(states, piece.T, out_dtype=wide)
    return states.to(wide) @ piece.to(wide).T


def plain_token_logps(states: Tensor, weight: Tensor, source_of: Tensor, targets: Tensor) -> Tensor:
    """Return (N,) log-probabilities of tokens under softmax(states @ weight.T), at least float32.

    Args:
        states: (U, D) decoder outputs.
        weight: (V, D) frozen output embedding; no gradient flows into it.
        source_of: (N,) the state that predicts each token.
        targets: (N,) the tokens.
    """
    result: Tensor = _PlainHead.apply(states, weight, source_of, targets)
    return result


def own_token_logps(model: Any, output: Any, states: Tensor, source_of: Tensor, targets: Tensor) -> Tensor:
    """Return what ``plain_token_logps`` returns for the head of ``model``, whatever it is.

    Args:
        model: a Hugging Face causal language model.
        output: what its decoder returned; its kind is handed to the head.
        states: (U, D) chosen from it.
        source_of: (N,) the state that predicts each token.
        targets: (N,) the tokens.
    """
    rows = max(1, OWN_HEAD_LOGITS // model.get_output_embeddings().weight.shape[0])

    def part(states: Tensor, targets: Tensor) -> Tensor:
        logits = _own_logits(model, type(output), states)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return wide.gather(1, targets[:, None]).squeeze(1) - wide.logsumexp(dim=1)

    pairs = zip(states[source_of].split(rows), targets.split(rows), strict=True)
    if torch.is_grad_enabled():  # the logits of all parts would stay until the backward pass
        return torch.cat([checkpoint(part, *pair, use_reentrant=False) for pair in pairs])
    return torch.cat([part(*pair) for pair in pairs])


def own_child_logits(
    model: Any, kind: Any, states: Tensor, start: Sequence[int], source: Tensor, token: Tensor
) -> Tensor:
    """Return (E,) logits of chosen tokens by the head of ``model``, whatever it is, at least float32.

    Args:
        model: a Hugging Face causal language model.
        kind: of its decoder's output.
        states: (S, D) outputs of the decoder.
        start: (S + 1,) where the logits of each state begin.
        source: (E,) ascending: the state that each logit is read from.
        token: (E,) the tokens.
    """
    rows = max(1, OWN_HEAD_LOGITS // model.get_output_embeddings().weight.shape[0])

    def part(states: Tensor, source: Tensor, token: Tensor) -> Tensor:
        logits = _own_logits(model, kind, states)[source, token]
        return logits if logits.dtype == torch.float64 else logits.float()

    found = []
    for begin in range(0, len(states), rows):
        end = min(begin + rows, len(states))
        here = slice(int(start[begin]), int(start[end]))
        own = (states[begin:end], source[here] - begin, token[here])
        again = torch.is_grad_enabled()
        found.append(checkpoint(part, *own, use_reentrant=False) if again else part(*own))
    return torch.cat(found) if found else states.new_zeros(0)


def _own_logits(model: Any, kind: Any, states: Tensor) -> Tensor:
    """Return (n, V) logits that the model makes of (n, D) states, its decoder passed over."""
    with decoder_returns(model, kind(last_hidden_state=states[None])):
        ids = torch.zeros(1, len(states), dtype=torch.int64, device=states.device)
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits[0]


def shared_logps(
    model: Any,
    batch: TokenBatch,
    *,
    plain_head: bool = True,
    form: str = ONE,
    packed: PackedBatch | None = None,
) -> Tensor:
    """Return (B, C) summed log-probabilities in nats from one pass; absent candidates get 0.

    Args:
        model: a Hugging Face causal language model (with or without LoRA layers) whose decoder
            takes a 4-D mask.
        batch: prompts and completions, on any device.
        plain_head: whether the logits are the states times the output embedding, and nothing more.
        form: of the mask; see ``decoder.mask_forms``.
        packed: ``pack(batch)``, where that was done already.
    """
    packed = on_device(pack(batch) if packed is None else packed, _device(model))
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
    sequences, completion = unpack(batch)
    tokens = sequences.input_ids.numel() if most_tokens is None else most_tokens
    rows = max(1, tokens // sequences.input_ids.shape[1])
    parts, owner = on_device((sequences.split(rows), completion), _device(model))
    again = len(parts) > 1 and torch.is_grad_enabled()
    values = [
        checkpoint(_score_sequences, model, part, plain_head, use_reentrant=False)
        if again
        else _score_sequences(model, part, plain_head)
        for part in parts
    ]
    scores = torch.cat(values)
    total = scores.new_zeros(batch.completion_length.numel())
    return total.index_add(0, owner, scores).view(batch.completion_length.shape)


def _score_sequences(model: Any, part: SequenceBatch, plain_head: bool) -> Tensor:
    """Return (S,) summed log-probabilities of the scored tokens."""
    output = decoder_of(model)(input_ids=part.input_ids, attention_mask=part.present, use_cache=False)
    states = output.last_hidden_state.flatten(0, 1)[part.sources]  # (N, D)
    each = torch.arange(len(states), device=states.device)
    token_logps = _token_logps(model, output, states, each, part.targets, plain_head)
    total = token_logps.new_zeros(len(part.input_ids))
    return total.index_add(0, part.row, token_logps)


def _token_logps(
    model: Any, output: Any, states: Tensor, source_of: Tensor, targets: Tensor, plain_head: bool
) -> Tensor:
    if plain_head:
        return plain_token_logps(states, model.get_output_embeddings().weight, source_of, targets)
    return own_token_logps(model, output, states, source_of, targets)


def _device(model: Any) -> torch.device:
    device: torch.device = model.get_output_embeddings().weight.device
    return device
