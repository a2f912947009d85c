"""From rows to the losses of a stage: what is scored, and which objective takes it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from ..dataset.columns import CANDIDATE_IDS, REFERENCE_LOGPS, SCORED, START, STOP, is_dense
from ..language_model.packed import on_device
from ..objectives.losses import sft_loss
from ..objectives.preference import PreferenceLoss, preference_loss
from ..objectives.strategies import Objective
from ..settings import Settings
from .catalogue import CatalogueLikelihood
from .extras import Extras
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


class Scored(NamedTuple):
    """What an objective takes: B rows, or the B positions of windows."""

    logps: Tensor  # (B, 1 + K) of positives and negatives, nats, with gradient
    reference: Tensor | None  # the same under the reference
    present: Tensor  # (B, K) bool, which negatives there are
    extras: dict[str, Tensor]  # (B, 1 + K) of each name that the objective needs
    terms: Tensor  # (B,) of the positives, as ``sft_loss`` takes them


def scored_pairs(
    likelihood: Likelihoods, rows: Interaction, titles: Tensor, extras: Extras, *, asks: bool
) -> Scored:
    """Return the log-probabilities of positives and negatives, and what the objective takes beside them.

    Args:
        likelihood: scores titles.
        rows: with the columns to score, or windows with negatives, which have P positions for B rows.
        titles: (items,) a number of each item's title; another item of the positive's title is no negative.
        extras: makes what the objective needs beside log-probabilities.
        asks: whether the objective has a reference.
    """
    known: Tensor | None = None
    if is_dense(rows):
        assert isinstance(likelihood, CatalogueLikelihood)
        logps, there = likelihood.windows.logps(rows)
        present, terms = there[:, 1:], torch.ones_like(logps[:, 0])
        more = extras.of_windows(rows)
        if asks:
            lengths = ((rows[STOP] - rows[START]) * logps.shape[1]).tolist()
            kept = [line[:length] for line, length in zip(rows[REFERENCE_LOGPS], lengths, strict=True)]
            known = torch.cat(kept).view(logps.shape)
    else:
        columns = rows[SCORED].cpu()
        ids = rows[CANDIDATE_IDS].cpu().gather(1, columns)
        named = titles[ids]
        ids[:, 1:][named[:, 1:] == named[:, :1]] = 0
        logps, counts = likelihood.logps(rows, ids.numpy())
        present, terms = on_device((ids > 0)[:, 1:], logps.device), counts[:, 0]
        more = extras.of_rows(rows, ids, counts)
        if asks:
            known = rows[REFERENCE_LOGPS].cpu().gather(1, columns)
    if known is not None:
        known = on_device(known.to(logps.dtype), logps.device)
    beside = {name: on_device(values.to(logps.dtype), logps.device) for name, values in more.items()}
    return Scored(logps, known, present, beside, terms)


def preference_losses(scored: Scored, objective: Objective, settings: Settings) -> PreferenceLoss:
    """Return what an objective makes of ``scored_pairs``, and with ``sft_weight`` so much of the SFT loss."""
    found = preference_loss(
        scored.logps,
        scored.reference,
        objective=objective,
        dynamic=settings.dynamic,
        beta=settings.beta,
        margin=settings.margin,
        clusters=settings.num_clusters,
        mask=scored.present,
        extras=scored.extras,
    )
    if not settings.sft_weight:
        return found
    beside = settings.sft_weight * sft_loss(scored.logps[:, 0], scored.terms)
    return found._replace(loss=found.loss + beside)
