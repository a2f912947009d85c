"""From rows to the losses of a stage: what is scored, and which objective takes it."""

from __future__ import annotations

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from ..dataset.columns import CANDIDATE_IDS, REFERENCE_LOGPS, SCORED, START, STOP, is_dense
from ..language_model.packed import on_device
from ..objectives.losses import sft_loss
from ..objectives.preference import PreferenceLoss, preference_loss
from ..objectives.strategies import find_objective
from ..settings import Settings
from .catalogue import CatalogueLikelihood
from .vocabulary import VocabularyLikelihood

Likelihoods = VocabularyLikelihood | CatalogueLikelihood


def sft_losses(likelihood: Likelihoods, rows: Interaction, item_field: str) -> Tensor:
    """Return (B,) losses of rows, a mean over the terms of the title, or (P,) of positions of windows.

    Args:
        likelihood: scores titles.
        rows: with the item chosen, or windows.
        item_field: name of the column of the item chosen.
    """
    if is_dense(rows):
        assert isinstance(likelihood, CatalogueLikelihood)
        return -likelihood.windows.logps(rows)[0][:, 0]
    target = rows[item_field].cpu().numpy()[:, None]
    logps, terms = likelihood.logps(rows, target)
    return sft_loss(logps[:, 0], terms[:, 0])


def scored_pairs(
    likelihood: Likelihoods, rows: Interaction, titles: Tensor, settings: Settings
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return (B, 1 + K) log-probabilities of positives and negatives, those of the reference, (B, K) mask.

    Args:
        likelihood: scores titles.
        rows: with the columns to score, or windows with negatives, which have P positions for B rows.
        titles: (items,) a number of each item's title; another item of the positive's title is no negative.
        settings: say whether the objective has a reference.
    """
    asks = find_objective(settings.objective).needs_reference
    known: Tensor | None = None
    if is_dense(rows):
        assert isinstance(likelihood, CatalogueLikelihood)
        logps, there = likelihood.windows.logps(rows)
        present = there[:, 1:]
        if asks:
            lengths = ((rows[STOP] - rows[START]) * logps.shape[1]).tolist()
            kept = [line[:length] for line, length in zip(rows[REFERENCE_LOGPS], lengths, strict=True)]
            known = torch.cat(kept).view(logps.shape)
    else:
        columns = rows[SCORED].cpu()
        ids = rows[CANDIDATE_IDS].cpu().gather(1, columns)
        named = titles[ids]
        ids[:, 1:][named[:, 1:] == named[:, :1]] = 0
        logps, _ = likelihood.logps(rows, ids.numpy())
        present = on_device((ids > 0)[:, 1:], logps.device)
        if asks:
            known = rows[REFERENCE_LOGPS].cpu().gather(1, columns)
    return logps, None if known is None else on_device(known.to(logps.dtype), logps.device), present


def preference_losses(
    logps: Tensor, reference: Tensor | None, present: Tensor, settings: Settings
) -> PreferenceLoss:
    """Return what the objective of the settings makes of ``scored_pairs``."""
    return preference_loss(
        logps,
        reference,
        objective=settings.objective,
        dynamic=settings.dynamic,
        beta=settings.beta,
        margin=settings.margin,
        clusters=settings.num_clusters,
        mask=present,
    )
