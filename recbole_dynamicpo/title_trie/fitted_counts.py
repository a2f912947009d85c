"""The priors without a language model, their weights fitted: what a language model has to beat.

A model that is compared with priors of given weights is credited with what belongs to the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .catalogue_likelihood import catalogue_logps
from .prior import Histories, PriorSource
from .title_layout import lay_out
from .trie import Integers, Trie

# Rounds of L-BFGS at most; the loss is convex and has a handful of weights.
ROUNDS = 50


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
    weights = torch.full((len(priors),), 1.0 / len(priors), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=ROUNDS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        logits = torch.einsum("j,je->e", weights, said)
        return -catalogue_logps(logits[None], layout).mean()

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    with torch.no_grad():
        return weights.tolist(), loss().item()


def sample_positions(lengths: Sequence[int], count: int, draw: np.random.Generator) -> list[tuple[int, int]]:
    """Return up to ``count`` distinct places of sequences as (sequence, position), drawn at random."""
    ends = np.cumsum(lengths)
    chosen = np.sort(draw.choice(int(ends[-1]), size=min(count, int(ends[-1])), replace=False))
    of = np.searchsorted(ends, chosen, side="right")
    return [(int(one), int(at - (ends[one] - lengths[one]))) for one, at in zip(of, chosen, strict=True)]
