"""The preference objectives and the SFT loss as plain functions of tensors, one value a row."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Of a title's score rating / (1 + delay) ** DECAY, whose delay ends at HORIZON: those of RecPO's public code.
DECAY, HORIZON = 0.5, 10.0


def dmpo_loss(positive: Tensor, negatives: Tensor, strength: Tensor, used: Tensor) -> Tensor:
    """Return (B,) -log sigma of the mean weighted log-ratio gap over the ``used`` negatives."""
    gaps = strength * (positive[:, None] - negatives)
    margin = torch.where(used, gaps, 0.0).sum(dim=1) / used.sum(dim=1)
    return F.softplus(-margin)


def sdpo_loss(
    positive: Tensor, negatives: Tensor, strength: Tensor, used: Tensor, margin: Tensor | float = 0.0
) -> Tensor:
    """Return (B,) softplus(logsumexp of beta_i (r_i - r_w) + margin_i) over the ``used`` negatives.

    ``margin``, (B, K) or one number, nats: how far ahead of each negative the positive shall be.
    """
    gaps = strength * (negatives - positive[:, None]) + margin
    return F.softplus(gaps.masked_fill(~used, -torch.inf).logsumexp(dim=1))


def mppo_loss(positive: Tensor, negatives: Tensor, strength: Tensor) -> Tensor:
    """Return (B,) -log sigma of the weighted sum of probability gaps; strength 0 leaves one out."""
    return F.softplus(-(strength * (positive[:, None] - negatives)).sum(dim=1))


def sft_loss(logps: Tensor, token_counts: Tensor) -> Tensor:
    """Return (B,) negative log-probability per token of the positives, nats per token.

    Args:
        logps: (B,) summed log-probabilities of the positive titles, nats.
        token_counts: (B,) completion tokens of each, end-of-sequence included.
    """
    return -logps / token_counts


def preference_scores(ratings: Tensor, days: Tensor) -> Tensor:
    """Return how much titles were wanted, of the shape of ``ratings``: less for what came late.

    Args:
        ratings: positive, on the scale of the data set.
        days: that passed before the title was taken; inf where it never was, which counts as ``HORIZON``.
    """
    return ratings * (1.0 + days.clamp(0.0, HORIZON)) ** -DECAY
