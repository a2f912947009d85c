"""A catalogue in two stages: the priors choose some titles of it, and the language model ranks these.

A title's log-probability is the same as in one stage, normalised over the whole catalogue; only which titles
are asked about differs, so that with all of them chosen the ranking is the exact one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..language_model.policy import POLICY
from ..scoring.batches import PromptRow
from .catalogue_likelihood import Mixture, catalogue_logps
from .catalogue_scorer import CatalogueScorer
from .title_layout import Layout
from .trie import Integers


@torch.no_grad()
def prior_logps(scorer: CatalogueScorer, rows: Sequence[PromptRow], layout: Layout) -> Tensor:
    """Return (B, C) log-probabilities by the priors with the policy's weights alone, nats.

    Args:
        scorer: of the catalogue.
        rows: B histories.
        layout: of the C titles asked about, one query that the rows share.
    """
    ratios = scorer.log_ratios(layout.edges, scorer.histories(rows), many=True)
    silent = Mixture(0.0, scorer.mixtures[POLICY].weights.tolist())
    logits = silent.logits(torch.zeros(ratios.shape[1:], dtype=ratios.dtype), ratios, layout.edges.edge)
    return catalogue_logps(logits, layout).reshape(len(rows), -1)


def first_stage(scorer: CatalogueScorer, rows: Sequence[PromptRow], count: int, left_out: Tensor) -> Integers:
    """Return (B, count) numbers of the titles that the priors find likeliest, -1 behind the last one.

    Args:
        scorer: of the catalogue.
        rows: B histories.
        count: titles of each, at most.
        left_out: (B, Y) titles that are not chosen.
    """
    found = prior_logps(scorer, rows, scorer.whole).masked_fill(left_out, -torch.inf)
    best = found.sort(dim=1, descending=True, stable=True)
    titles: Integers = best.indices.masked_fill(best.values == -torch.inf, -1)[:, :count].numpy()
    return titles


def in_two_stages(
    scorer: CatalogueScorer, rows: Sequence[PromptRow], voices: Sequence[str], count: int, left_out: Tensor
) -> dict[str, Tensor]:
    """Return each voice's (B, Y) scores of all distinct titles, in nats of those that were chosen.

    The others stand below the lowest of these, in the order that the priors gave them.

    Args:
        scorer: of the catalogue.
        rows: B histories.
        voices: who speaks, of the same titles.
        count: titles that are chosen.
        left_out: (B, Y) titles that are not chosen.
    """
    titles = first_stage(scorer, rows, count, left_out)
    behind = prior_logps(scorer, rows, scorer.whole)
    row, column = (torch.from_numpy(titles) >= 0).nonzero(as_tuple=True)
    chosen = torch.from_numpy(titles)[row, column]
    found = {}
    for voice, logps in scorer.in_voices(rows, titles, voices).items():
        known = logps[row, column]
        lowest = logps.masked_fill(logps == -torch.inf, torch.inf).amin(dim=1, keepdim=True)
        below = torch.where(lowest.isfinite(), lowest, 0.0) - 1.0
        table = (behind - behind.amax(dim=1, keepdim=True)).to(logps) + below
        table[row, chosen] = known
        found[voice] = table
    return found
