"""Summed log-probabilities of all completions of a prompt, from one pass over prompt and completions.

The completions of a row lie behind its prompt in one sequence. A completion attends to the prompt
and to itself only, and its positions restart after the prompt, so that every completion sees just
what it would see alone. The output layer runs only where a completion token is predicted, and its
normaliser is built up over slices of the vocabulary, so no (T, V) tensor ever exists.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from .packed import PackedBatch, TokenBatch

logger = logging.getLogger(__name__)

# Slice of the vocabulary per matrix product: wide enough for full speed, 16 MB for 512 tokens.
VOCABULARY_SLICE = 8192

# Largest difference per token, in nats, between the shared pass and one sequence per completion
# that rounding explains. A completion that sees its neighbours is off by whole nats.
PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.1}


def shared_logps(model: Any, batch: TokenBatch) -> Tensor:
    """Return (B, C) summed log-probabilities in nats from one pass; absent candidates get 0.

    Args:
        model: a Hugging Face causal language model (with or without LoRA layers) whose decoder
            takes a 4-D mask, and whose head is a bias-free linear layer without soft-capping.
        batch: prompts and completions, on any device.
    """
    weight = model.get_output_embeddings().weight
    packed = pack(batch).to(weight.device)
    hidden = model.get_decoder()(
        input_ids=packed.input_ids,
        attention_mask=block_mask(packed.segment),
        position_ids=packed.position_ids,
        use_cache=False,
    ).last_hidden_state
    states = hidden.flatten(0, 1)[packed.sources]  # (U, D)
    normaliser = vocabulary_logsumexp(states, weight)  # (U,)
    logits = _rowwise_dot(states[packed.source_of], weight[packed.targets])
    token_logps = logits - normaliser[packed.source_of]
    total = token_logps.new_zeros(batch.completion_length.numel())
    return total.index_add(0, packed.owner, token_logps).view(batch.completion_length.shape)


def separate_logps(model: Any, batch: TokenBatch) -> Tensor:
    """Return what ``shared_logps`` returns, from one ordinary sequence per completion.

    Slower by about the number of candidates and right for any causal language model. ``batch`` lies
    on the CPU, as the collator makes it.
    """
    device = model.get_output_embeddings().weight.device
    ids, targets, scored = _sequences(batch)
    logits = model(
        input_ids=ids.to(device), attention_mask=(targets >= 0).long().to(device), use_cache=False
    ).logits[:, :-1]
    wide = logits if logits.dtype == torch.float64 else logits.float()
    goal = ids[:, 1:, None].to(device)
    token_logps = wide.gather(2, goal).squeeze(2) - wide.logsumexp(dim=2)
    total = (token_logps * scored[:, 1:].to(device)).sum(dim=1)
    result: Tensor = total.view(batch.completion_length.shape)
    return result


def _sequences(batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return (B * C, P + L) ids, the same with -1 as padding, and which tokens are scored."""
    _, count, length = batch.completions.shape
    width = batch.prompt.shape[1]
    ids = torch.cat([batch.prompt[:, None].expand(-1, count, -1), batch.completions], dim=2).flatten(0, 1)
    in_prompt = torch.arange(width) < batch.prompt_length[:, None]
    in_completion = torch.arange(length) < batch.completion_length[:, :, None]
    present = torch.cat([in_prompt[:, None].expand(-1, count, -1), in_completion], dim=2).flatten(0, 1)
    order = (~present).int().argsort(dim=1, stable=True)  # padding inside goes to the end
    ids, present = ids.gather(1, order), present.gather(1, order)
    prompt_end = batch.prompt_length.repeat_interleave(count)[:, None]
    scored = present & (torch.arange(width + length) >= prompt_end)
    return ids, ids.masked_fill(~present, -1), scored


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


def _rowwise_dot(states: Tensor, weight: Tensor) -> Tensor:
    """Return (N,) dot products of matching rows, at least in float32."""
    wide = torch.promote_types(states.dtype, torch.float32)
    return (states.to(wide) * weight.to(wide)).sum(dim=1)


class _VocabularyLogSumExp(torch.autograd.Function):
    """log sum exp of states @ weight.T, slice by slice; the gradient is made in the same sweep.

    d lse / d state = softmax @ weight is the weight's mean under the running softmax, so it can be
    accumulated beside the running maximum and sum. The weight itself is frozen.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        wide = torch.promote_types(states.dtype, torch.float32)
        top = states.new_full((states.shape[0], 1), -torch.inf, dtype=wide)
        total = torch.zeros_like(top)
        wants_gradient = ctx.needs_input_grad[0]
        mean = states.new_zeros(states.shape, dtype=wide) if wants_gradient else None
        for piece in weight.split(VOCABULARY_SLICE):
            logits = (states @ piece.T).to(wide)
            new_top = torch.maximum(top, logits.amax(dim=1, keepdim=True))
            shrink = (top - new_top).exp()
            logits.sub_(new_top).exp_()
            total = total * shrink + logits.sum(dim=1, keepdim=True)
            if mean is not None:
                mean = mean.mul_(shrink).add_(logits.to(piece.dtype) @ piece)
            top = new_top
        if mean is not None:
            ctx.save_for_backward(mean.div_(total).to(states.dtype))
        return (top + total.log()).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (mean,) = ctx.saved_tensors
        return gradients[0].to(mean.dtype)[:, None] * mean, None


def vocabulary_logsumexp(states: Tensor, weight: Tensor) -> Tensor:
    """Return (U,) log of the sum over the vocabulary of exp(state . weight), at least float32.

    Args:
        states: (U, D) decoder outputs.
        weight: (V, D) frozen output embedding; no gradient flows into it.
    """
    result: Tensor = _VocabularyLogSumExp.apply(states, weight)
    return result


@torch.no_grad()
def sharing_works(model: Any) -> bool:
    """Say whether ``shared_logps`` gives what ``separate_logps`` gives on this model.

    Tried on a small ragged batch of arbitrary tokens, with equal completions beside each other, so
    that a completion that sees its neighbour is plainly off.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        return False
    size = min(head.weight.shape[0], 1000)
    draw = torch.Generator().manual_seed(0)
    prompt = torch.randint(1, size, (2, 7), generator=draw)
    completions = torch.randint(1, size, (2, 1, 5), generator=draw).repeat(1, 3, 1)
    lengths = torch.tensor([[5, 5, 3], [4, 4, 0]])
    probe = TokenBatch(prompt, torch.tensor([7, 4]), completions, lengths)
    try:
        shared = shared_logps(model, probe)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        logger.info("the shared pass raised %s: %s", type(error).__name__, error)
        return False
    gap = (shared - separate_logps(model, probe)).abs() / lengths.clamp(min=1).to(shared.device)
    return bool((gap <= PROBE_TOLERANCE.get(head.weight.dtype, 0.25)).all())
