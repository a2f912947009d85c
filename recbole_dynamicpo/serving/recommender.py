"""Rank titles with a saved adapter; needs neither RecBole nor a data set.

A recommender folder is a PEFT adapter folder with three more files: ``recommender.json`` (backbone,
limits), ``catalogue.json`` (ids, titles, popularity) and ``templates.json`` (prompt templates).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch

from ..data.catalogue import Catalogue
from ..errors import AdapterError, DataError, short
from ..language_model.adapter_folder import WEIGHTS_FILE, adapter_digest, read_lora_shape
from ..language_model.policy import Policy
from ..scoring.batches import PromptRow
from ..scoring.collate import Collator
from ..scoring.prompts import Templates
from ..scoring.scorer import Scorer
from ..scoring.token_budget import TokenBudget
from ..storage import atomic_folder, write_json
from .folder import (
    CATALOGUE_FILE,
    RECOMMENDER_FILE,
    TEMPLATES_FILE,
    Card,
    load_card_backbone,
    read_card,
    read_json,
    write_card,
)
from .mlflow_store import opened_recommender
from .ranking import Question, Ranked, Ranking, in_groups, merge

DEFAULT_K = 10


class Recommender:
    """A backbone with an adapter that ranks candidate titles; threads may share it.

    Prompts are those of training, and show no more candidates. A longer list is ranked in groups, so that
    time and memory grow with its length and not with the square. Each group holds the same few titles
    beside its own: if the choice between two titles does not depend on the others (Luce 1959), the scores of
    all groups can be compared once they are moved by what those few titles differ.

    Args:
        policy: backbone and adapter.
        templates: prompt templates; the first one is used.
        catalogue: known items.
        card: limits of the prompts.
    """

    def __init__(self, policy: Policy, templates: Templates, catalogue: Catalogue, card: Card) -> None:
        self.catalogue = catalogue
        self.card = card
        self._lock = threading.Lock()  # scoring switches the tokenizer's modes to and fro
        length = min(card.max_length, policy.backbone.max_length)
        collator = Collator(
            policy.backbone.tokenizer, templates, max_length=length, max_history=card.max_history
        )
        self.scorer = Scorer(policy, collator, TokenBudget(card.tokens_per_batch))

    def rank(
        self,
        history: Sequence[str | int],
        candidates: Sequence[str | int] | None = None,
        k: int = DEFAULT_K,
    ) -> list[Ranked]:
        """Return the ``k`` best candidates, best first. A text is a title, a whole number an item id.

        Args:
            history: what the user took, oldest first; unknown titles are allowed. May be empty.
            candidates: what to rank; an unknown title is scored as text, a title that comes twice
                or that several items bear is ranked once. None takes the card's
                ``popular_candidates`` most popular titles that are not in the history.
            k: how many to return.

        Raises:
            DataError: no candidates, an empty title, an unknown id, k below 1, or titles that are too
                long for a prompt.
        """
        return self.ranking(history, candidates, k).ranked

    def ranking(
        self,
        history: Sequence[str | int],
        candidates: Sequence[str | int] | None = None,
        k: int = DEFAULT_K,
    ) -> Ranking:
        """Return what ``rank`` returns, together with what the candidates were."""
        return self.answer([self.question(history, candidates, k)])[0]

    def question(
        self,
        history: Sequence[str | int],
        candidates: Sequence[str | int] | None = None,
        k: int = DEFAULT_K,
    ) -> Question:
        """Return the arguments of ``rank`` as a question; raises what ``rank`` raises of them."""
        if not _whole(k) or k < 1:
            raise DataError(f"k: got {short(k)}, wanted a whole number of at least 1")
        taken = self._titles("history", history, at_least=0)
        if candidates is not None:
            shown = list(dict.fromkeys(self._titles("candidates", candidates, at_least=1)))
            return Question(taken, shown, k, "given")
        popular = self.catalogue.popular(self.card.popular_candidates, without=taken)
        if not popular:
            raise DataError("candidates: none given, and every title of the catalogue is in the history")
        return Question(taken, popular, k, "popular")

    def answer(self, questions: Sequence[Question]) -> list[Ranking]:
        """Return the answer to each question; their prompts are scored together.

        Raises:
            DataError: titles that are too long for a prompt.
        """
        rows = [self._rows(question) for question in questions]
        with self._lock:
            scores = self.scorer([row for group in rows for row in group]) if rows else torch.empty(0)
        parts = scores.split([len(group) for group in rows])
        return [
            self._ranking(question, merge(group, part))
            for question, group, part in zip(questions, rows, parts, strict=True)
        ]

    def check(self, question: Question) -> None:
        """See whether the prompts of a question can be written.

        Raises:
            DataError: titles that are too long for a prompt.
        """
        with self._lock:
            self.scorer.collator.token_ids(self._rows(question))

    def _rows(self, question: Question) -> list[PromptRow]:
        groups = in_groups(question.shown, self.card.num_candidates)
        return [PromptRow(question.history, group, group) for group in groups]

    def _ranking(self, question: Question, scores: Mapping[str, float]) -> Ranking:
        shown = question.shown
        best = sorted(shown, key=scores.__getitem__, reverse=True)[: question.k]
        ranked = [Ranked(title, self.catalogue.items(title), scores[title]) for title in best]
        return Ranking(ranked, question.source, len(shown))

    def _titles(self, name: str, entries: Any, at_least: int) -> list[str]:
        """Return the titles that the entries of an argument stand for."""
        if isinstance(entries, str) or not isinstance(entries, Sequence) or len(entries) < at_least:
            some = "of at least one title or item id" if at_least else "of titles and item ids"
            raise DataError(f"{name}: got {short(entries)}, wanted a list {some}")
        return [self._title(f"{name}[{place}]", entry) for place, entry in enumerate(entries)]

    def _title(self, place: str, entry: Any) -> str:
        if _whole(entry):
            title = self.catalogue.title(str(int(entry)))
            if title is None:
                raise DataError(f"{place}: got item id {short(entry)}, which the catalogue does not have")
            return title
        if not isinstance(entry, str) or not entry.strip() or not _encodable(entry):
            raise DataError(f"{place}: got {short(entry)}, wanted a non-empty title or an item id")
        return entry


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _encodable(text: str) -> bool:
    """Return whether a text is one; JSON can bring half of a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def save_recommender(
    folder: Path, policy: Policy, templates: Templates, catalogue: Catalogue, card: Card
) -> None:
    """Write what a ``Recommender`` is made of as a recommender folder, whole or not at all."""
    with atomic_folder(folder) as work:
        policy.save(work)
        catalogue.save(work / CATALOGUE_FILE)
        write_json(work / TEMPLATES_FILE, templates.texts)
        write_card(work, card)


def load_recommender(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: str | None = None,
    tracking_uri: str | None = None,
) -> Recommender:
    """Load a recommender.

    Args:
        source: the folder of a run, a recommender folder like ``saved/<run>/preference``, or what MLflow
            calls it: ``models:/name@alias``, ``models:/name/version``, ``models:/m-...``, ``runs:/id/path``.
        device: where to compute.
        dtype: of the backbone's weights; None takes the one it was trained with.
        tracking_uri: where MLflow's URIs are looked up; None takes MLFLOW_TRACKING_URI, else
            ``mlflow.db`` of this folder.

    Raises:
        AdapterError: no recommender there, a damaged one, or the backbone's weights are others than
            those the adapter was trained on.
        BackboneError: the backbone cannot be loaded.
    """
    with opened_recommender(source, tracking_uri) as folder:
        card = read_card(folder)
        shape = read_lora_shape(folder)
        templates = Templates(read_json(folder / TEMPLATES_FILE), str(folder / TEMPLATES_FILE))
        catalogue = Catalogue.load(folder / CATALOGUE_FILE)
        policy = Policy(load_card_backbone(card, str(source), dtype or card.dtype, device), shape, seed=0)
        policy.load(folder)
        if adapter_digest(folder) != card.adapter_sha256:
            weights = folder / WEIGHTS_FILE
            raise AdapterError(f"{weights}: not the file that {RECOMMENDER_FILE} was written for")
    return Recommender(policy, templates, catalogue, card)
