"""Weights fitted by likelihood: of the priors alone, and of a language model with them.

A model that is compared with priors of given weights is credited with what belongs to the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .catalogue_likelihood import catalogue_logps
from .prior import Histories, PriorSource
from .title_layout import Layout, lay_out
from .trie import Integers, Trie

# Rounds of L-BFGS at most; the loss is convex and has a handful of weights.
ROUNDS = 50


class Said(NamedTuple):
    """What experts say where some titles are decided."""

    experts: Tensor  # (N, E) logits at the layout's edges; of a prior, nats
    layout: Layout  # with one candidate a query: the title chosen


def fit_weights(
    trie: Trie, priors: Sequence[PriorSource], histories: Histories, targets: Integers
) -> tuple[list[float], float]:
    """Return (J,) weights of greatest likelihood with s = 0, and the loss under them, nats a title.

    Args:
        trie: of the catalogue.
        priors: J of them.
        histories: B training histories, their users left out of what was counted.
        targets: (B,) the title chosen behind each.
    """
    layout = lay_out(trie, targets[:, None])
    history = layout.edges.query.numpy()[layout.edges.source.numpy()]
    said = torch.stack([prior(histories).log_ratios(layout.edges, history) for prior in priors])
    return fit_experts([Said(said, layout)], [1.0 / len(priors)] * len(priors))


def fit_experts(
    parts: Sequence[Said], start: Sequence[float], positive: int = 0
) -> tuple[list[float], float]:
    """Return (N,) weights of greatest likelihood, and the loss under them, nats a title.

    The loss is convex in the weights, so that where they start decides nothing but the time.

    Args:
        parts: what is said of all titles that are fitted to.
        start: (N,) weights to begin with; those that stay positive have to be.
        positive: how many of the first experts can not be turned round.
    """
    raw = torch.tensor(start, dtype=torch.float64)
    raw[:positive] = raw[:positive].log()
    raw.requires_grad_()
    count = sum(part.layout.steps.queries for part in parts)
    optimizer = torch.optim.LBFGS([raw], max_iter=ROUNDS, line_search_fn="strong_wolfe")

    def weights() -> Tensor:
        return torch.cat([raw[:positive].exp(), raw[positive:]])

    def loss() -> Tensor:
        found = [torch.einsum("n,ne->e", weights(), part.experts.double())[None] for part in parts]
        logps = [catalogue_logps(logits, part.layout) for logits, part in zip(found, parts, strict=True)]
        return -torch.stack([one.sum() for one in logps]).sum() / count

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        return weights().tolist(), loss().item()


def sample_positions(lengths: Sequence[int], count: int, draw: np.random.Generator) -> list[tuple[int, int]]:
    """Return up to ``count`` distinct places of sequences as (sequence, position), drawn at random."""
    ends = np.cumsum(lengths)
    chosen = np.sort(draw.choice(int(ends[-1]), size=min(count, int(ends[-1])), replace=False))
    of = np.searchsorted(ends, chosen, side="right")
    return [(int(one), int(at - (ends[one] - lengths[one]))) for one, at in zip(of, chosen, strict=True)]
