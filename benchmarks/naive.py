"""One preference step the naive way, as the published code works, written from the method's equations.

The prompt is copied for the positive and each negative, logits of the whole vocabulary are made in float32
at every position, the reference is a second model, and the loss goes through the rows one by one with the
negatives in a dictionary. It is slow on purpose and shares no computation with the package.
"""

from __future__ import annotations

import copy
import itertools
import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_dynamicpo.language_model.packed import TokenBatch
from recbole_dynamicpo.language_model.policy import REFERENCE, Policy

if TYPE_CHECKING:
    from recbole_dynamicpo.settings import Settings

TANH_SCALE = 0.5
TIE = 1e-12  # costs of two groupings closer than this are equal: the earlier one counts


def second_model(policy: Policy) -> Any:
    """Return a frozen copy of the whole model that speaks as the reference."""
    model = copy.deepcopy(policy.peft)
    model.set_adapter(REFERENCE)
    return model.requires_grad_(False).eval()


def copies(batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, attention mask and which tokens are scored, each (B * C, T): the prompt once per title."""
    sequences, starts = [], []
    for row, prompt in enumerate(batch.prompt):
        length = int(batch.prompt_length[row])
        for title, tokens in zip(batch.completions[row], batch.completion_length[row].tolist(), strict=True):
            sequences.append(torch.cat([prompt[:length], title[:tokens]]))
            starts.append(length)
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    place = torch.arange(ids.shape[1])
    present = place < torch.tensor([len(sequence) for sequence in sequences])[:, None]
    return ids, present.long(), present & (place >= torch.tensor(starts)[:, None])


def logps(model: Any, batch: TokenBatch, device: str) -> Tensor:
    """Return (B, C) log-probabilities in nats from logits at all positions over the whole vocabulary."""
    ids, mask, scored = (tensor.to(device) for tensor in copies(batch))
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    every = logits[:, :-1].log_softmax(dim=-1)
    tokens = every.gather(2, ids[:, 1:, None]).squeeze(2)
    total: Tensor = (tokens * scored[:, 1:]).sum(dim=1)
    return total.view(batch.completion_length.shape)


def loss(policy_logps: Tensor, reference_logps: Tensor, settings: Settings) -> Tensor:
    """Return the mean DMPO loss of the rows, in the dynamic form or the plain one.

    Args:
        policy_logps: (B, 1 + K), the positive first, nats.
        reference_logps: the same under the reference.
        settings: ``dynamic``, ``beta``, ``margin`` and ``num_clusters`` are read.
    """
    negatives = {f"negative{k}": policy_logps[:, k] for k in range(1, policy_logps.shape[1])}
    references = {f"negative{k}": reference_logps[:, k] for k in range(1, policy_logps.shape[1])}
    losses = []
    for row in range(len(policy_logps)):
        values = {name: value[row].item() for name, value in negatives.items()}
        positive = policy_logps[row, 0].item()
        betas = dict.fromkeys(values, settings.beta)
        if settings.dynamic:
            members = boundary(positive, values, settings.num_clusters)
            betas = {name: beta(positive, values, members, name, settings) for name in members}
        ratio = policy_logps[row, 0] - reference_logps[row, 0]
        gaps = [
            strength * (ratio - (negatives[name][row] - references[name][row]))
            for name, strength in betas.items()
        ]
        losses.append(-F.logsigmoid(torch.stack(gaps).mean()))
    return torch.stack(losses).mean()


def boundary(positive: float, negatives: dict[str, float], clusters: int) -> list[str]:
    """Return the names of the violating negatives or, without any, of the best grouping's top group."""
    violating = [name for name, value in negatives.items() if value >= positive]
    if violating:
        return violating
    names = sorted(negatives, key=lambda name: negatives[name])
    values = [negatives[name] for name in names]
    best, start = math.inf, 0
    for cuts in itertools.combinations(range(1, len(values)), min(clusters, len(set(values))) - 1):
        edges = [0, *cuts, len(values)]
        cost = sum(_spread(values[low:high]) for low, high in itertools.pairwise(edges))
        if cost < best - TIE:
            best, start = cost, edges[-2]
    return names[start:]


def _spread(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values)


def beta(
    positive: float, negatives: dict[str, float], members: list[str], name: str, settings: Settings
) -> float:
    """Return the dual-margin strength of one boundary negative."""
    rest = [value for other, value in negatives.items() if other not in members]
    rest = rest or [negatives[other] for other in members]
    to_positive = positive - negatives[name]
    to_rest = sum(negatives[name] - value for value in rest) / len(rest)
    ratio = (to_positive - to_rest - settings.margin) / (abs(to_positive) + abs(to_rest))
    return settings.beta * (1 + TANH_SCALE * math.tanh(ratio))
