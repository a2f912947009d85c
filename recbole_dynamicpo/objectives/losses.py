"""The preference objectives and the SFT loss as plain functions of tensors, one value a row."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dmpo_loss(positive: Tensor, negatives: Tensor, strength: Tensor, used: Tensor) -> Tensor:
    """Return (B,) -log sigma of the mean weighted log-ratio gap over the ``used`` negatives."""
    gaps = strength * (positive[:, None] - negatives)
    margin = torch.where(used, gaps, 0.0).sum(dim=1) / used.sum(dim=1)
    return F.softplus(-margin)


def sdpo_loss(positive: Tensor, negatives: Tensor, strength: Tensor, used: Tensor) -> Tensor:
    """Return (B,) softplus(logsumexp of beta_i (r_i - r_w)) over the ``used`` negatives."""
    gaps = strength * (negatives - positive[:, None])
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
