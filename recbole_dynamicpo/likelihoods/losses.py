"""From rows to the losses of a stage: what is scored, and which objective takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from ..dataset.columns import CANDIDATE_IDS, REFERENCE_LOGPS, SCORED, START, STOP, is_dense, losses_of
from ..language_model.packed import on_device
from ..objectives.losses import sft_loss
from ..objectives.preference import PreferenceLoss, preference_loss
from ..objectives.strategies import Objective
from ..settings import Settings
from .catalogue import CatalogueLikelihood
from .extras import Extras
from .vocabulary import Asked, VocabularyLikelihood

Likelihoods = VocabularyLikelihood | CatalogueLikelihood


class LaidOut(NamedTuple):
    """A pass with gradient over B rows, or over windows with P positions, laid out on the host."""

    asked: Asked  # of a likelihood
    losses: int  # how many it has: B or P
    reference: Tensor | None = None  # (losses, 1 + K) log-probabilities under the reference
    extras: Mapping[str, Tensor] = {}  # (losses, 1 + K) of each name that the objective needs


class Scored(NamedTuple):
    """What an objective takes: B rows, or the B positions of windows."""

    logps: Tensor  # (B, 1 + K) of positives and negatives, nats, with gradient
    reference: Tensor | None  # the same under the reference
    present: Tensor  # (B, K) bool, which negatives there are
    extras: dict[str, Tensor]  # (B, 1 + K) of each name that the objective needs
    terms: Tensor  # (B,) of the positives, as ``sft_loss`` takes them


def lay_out_positives(likelihood: Likelihoods, rows: Interaction, item_field: str) -> LaidOut:
    """Return a pass of the SFT stage.

    Args:
        likelihood: scores titles.
        rows: with the item chosen, or windows.
        item_field: name of the column of the item chosen.
    """
    if is_dense(rows):
        assert isinstance(likelihood, CatalogueLikelihood)
        return LaidOut(likelihood.windows.lay_out(rows), losses_of(rows))
    target = rows[item_field].cpu().numpy()[:, None]
    return LaidOut(likelihood.lay_out(rows, target), losses_of(rows))


def lay_out_pairs(
    likelihood: Likelihoods, rows: Interaction, titles: Tensor, extras: Extras, *, asks: bool
) -> LaidOut:
    """Return a pass of the preference stage.

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
        asked = likelihood.windows.lay_out(rows)
        more = extras.of_windows(rows)
        if asks:
            shape = asked.present.shape
            lengths = ((rows[STOP] - rows[START]) * shape[1]).tolist()
            kept = [line[:length] for line, length in zip(rows[REFERENCE_LOGPS], lengths, strict=True)]
            known = torch.cat(kept).view(shape)
    else:
        columns = rows[SCORED].cpu()
        ids = rows[CANDIDATE_IDS].cpu().gather(1, columns)
        named = titles[ids]
        ids[:, 1:][named[:, 1:] == named[:, :1]] = 0
        asked = likelihood.lay_out(rows, ids.numpy())
        more = extras.of_rows(rows, ids, asked.terms)
        if asks:
            known = rows[REFERENCE_LOGPS].cpu().gather(1, columns)
    return LaidOut(asked, losses_of(rows), known, more)


def sft_losses(likelihood: Likelihoods, laid_out: LaidOut) -> Tensor:
    """Return (losses,) of ``lay_out_positives``: each a mean over the terms of the title."""
    logps = likelihood.logps(laid_out.asked)[:, 0]
    return sft_loss(logps, on_device(laid_out.asked.terms[:, 0], logps.device))


def scored_pairs(likelihood: Likelihoods, laid_out: LaidOut) -> Scored:
    """Return what an objective takes of ``lay_out_pairs``."""
    asked = laid_out.asked
    logps = likelihood.logps(asked)
    named = [(name, values.to(logps.dtype)) for name, values in laid_out.extras.items()]
    known = None if laid_out.reference is None else laid_out.reference.to(logps.dtype)
    there = (asked.present[:, 1:], asked.terms[:, 0], known, tuple(values for _, values in named))
    present, terms, known, beside = on_device(there, logps.device)
    more = {name: values for (name, _), values in zip(named, beside, strict=True)}
    return Scored(logps, known, present, more, terms)


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
