"""Rank titles with a saved adapter; needs neither RecBole nor a data set.

A recommender folder is a PEFT adapter folder with three more files: ``recommender.json`` (backbone,
limits), ``catalogue.json`` (ids, titles, popularity) and ``templates.json`` (prompt templates).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.catalogue import Catalogue
from ..errors import AdapterError, DataError, short
from ..language_model.adapter_folder import (
    WEIGHTS_FILE,
    adapter_digest,
    read_lora_shape,
    stored_scalars,
)
from ..language_model.policy import Policy
from ..scoring.batches import PromptRow
from ..scoring.collate import Collator
from ..scoring.prompts import Templates
from ..scoring.scorer import Scorer
from ..scoring.token_budget import TokenBudget, beside_on
from ..storage import atomic_folder, write_json
from ..title_trie.catalogue_likelihood import Mixture
from .catalogue_ranking import CatalogueRanker, check_prior, stage_size
from .folder import (
    CATALOGUE_FILE,
    RECOMMENDER_FILE,
    TEMPLATES_FILE,
    Card,
    check_retrievers,
    load_card_backbone,
    read_card,
    read_json,
    write_card,
)
from .mlflow_store import opened_recommender
from .model_card import write_model_card
from .priors import Priors
from .ranking import Question, Ranked, Ranking, in_groups, is_whole, merge, titles_of

DEFAULT_K = 10
_NOTHING_LEFT = "candidates: none given, and every title of the catalogue is in the history"


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
        priors: below a catalogue likelihood; None where the likelihood is the vocabulary's.
    """

    def __init__(
        self,
        policy: Policy,
        templates: Templates,
        catalogue: Catalogue,
        card: Card,
        priors: Priors | None = None,
    ) -> None:
        self.catalogue = catalogue
        self.card = card
        stage_size(card, None)  # a card that asks for what the model cannot do
        self._lock = threading.Lock()  # scoring switches the tokenizer's modes to and fro
        length = min(card.max_length, policy.backbone.max_length)
        collator = Collator(
            policy.backbone.tokenizer, templates, max_length=length, max_history=card.max_history
        )
        budget = TokenBudget(card.tokens_per_batch, beside=beside_on(policy.device))
        self.ranker: CatalogueRanker | None = None
        if priors is not None:
            parts = (policy, collator, catalogue, priors, budget)
            self.ranker = CatalogueRanker(*parts, trie_sha256=card.trie_sha256)
        self.scorer = Scorer(policy, collator, budget)

    def rank(
        self,
        history: Sequence[str | int],
        candidates: Sequence[str | int] | None = None,
        k: int = DEFAULT_K,
        *,
        exclude_history: bool = True,
        explain: bool = False,
        first_stage: int | None = None,
    ) -> list[Ranked]:
        """Return the ``k`` best titles, best first. A text is a title, else an id; a whole number an id.

        A recommender of catalogue likelihood gives candidates that are all in the catalogue their shares of
        it; a list with one that is not is scored as a whole by the vocabulary, without priors.

        Args:
            history: what the user took, oldest first; unknown titles are allowed. May be empty.
            candidates: what to rank; an unknown title is scored as text, a title that comes twice
                or that several items bear is ranked once. None takes the whole catalogue, or, where
                the likelihood is the vocabulary's, the card's ``popular_candidates`` most popular titles.
            k: how many to return.
            exclude_history: leave the history's titles out, where no candidates are given.
            explain: part each score into what the prior and what the language model say; see ``Ranked``.
            first_stage: where no candidates are given, titles of the catalogue that the priors choose to be
                ranked; 0: all; None: as the model was made.

        Raises:
            DataError: no candidates, an empty title, an unknown id, k below 1, titles that are too
                long for a prompt, or no prior that could explain or choose.
        """
        return self.ranking(
            history, candidates, k, exclude_history=exclude_history, explain=explain, first_stage=first_stage
        ).ranked

    def ranking(
        self,
        history: Sequence[str | int],
        candidates: Sequence[str | int] | None = None,
        k: int = DEFAULT_K,
        *,
        exclude_history: bool = True,
        explain: bool = False,
        first_stage: int | None = None,
    ) -> Ranking:
        """Return what ``rank`` returns, together with what the candidates were."""
        question = self.question(
            history, candidates, k, exclude_history=exclude_history, first_stage=first_stage
        )
        if explain:
            check_prior(self.ranker, question)
        return self.answer([replace(question, explain=explain)])[0]

    def catalogue_logps(self, history: Sequence[str | int]) -> NDArray[np.floating]:
        """Return (Y,) nats in the order of ``catalogue.distinct_titles``: log-shares, whose exp sums to 1.

        Raises:
            DataError: the likelihood is the vocabulary's, or see ``rank``.
        """
        if self.ranker is None:
            raise DataError("catalogue_logps: wanted a model with likelihood catalogue, got vocabulary")
        taken = titles_of(self.catalogue, "history", history, at_least=0)
        with self._lock:
            return self.ranker.all_logps([Question(taken, [], 1, "catalogue")])[0].numpy()

    def question(
        self,
        history: Sequence[str | int],
        candidates: Sequence[str | int] | None = None,
        k: int = DEFAULT_K,
        *,
        exclude_history: bool = True,
        first_stage: int | None = None,
    ) -> Question:
        """Return the arguments of ``rank`` as a question; raises what ``rank`` raises of them."""
        if not is_whole(k) or k < 1:
            raise DataError(f"k: got {short(k)}, wanted a whole number of at least 1")
        taken = titles_of(self.catalogue, "history", history, at_least=0)
        if candidates is not None:
            shown = list(dict.fromkeys(titles_of(self.catalogue, "candidates", candidates, at_least=1)))
            return Question(taken, shown, k, "given")
        count = stage_size(self.card, first_stage)
        left_out = frozenset(taken) if exclude_history else frozenset()
        if self.ranker is not None:
            if left_out >= set(self.catalogue.distinct_titles):
                raise DataError(_NOTHING_LEFT)
            return Question(taken, [], k, "catalogue", left_out, count)
        popular = self.catalogue.popular(self.card.popular_candidates, without=sorted(left_out))
        if not popular:
            raise DataError(_NOTHING_LEFT)
        return Question(taken, popular, k, "popular", left_out)

    def answer(self, questions: Sequence[Question]) -> list[Ranking]:
        """Return the answer to each question; their prompts are scored together.

        Raises:
            DataError: titles that are too long for a prompt.
        """
        if self.ranker is not None:
            questions = self.ranker.narrowed(questions)
        by_catalogue = [place for place, question in enumerate(questions) if self._is_shares(question)]
        by_words = [place for place in range(len(questions)) if place not in set(by_catalogue)]
        scores: dict[int, Mapping[str, float]] = {}
        with self._lock:
            if self.ranker is not None and by_catalogue:
                shares = self.ranker.scores([questions[place] for place in by_catalogue])
                scores.update(zip(by_catalogue, shares, strict=True))
            if by_words:
                words = self._by_vocabulary([questions[place] for place in by_words])
                scores.update(zip(by_words, words, strict=True))
        return [self._ranking(question, scores[place]) for place, question in enumerate(questions)]

    def _is_shares(self, question: Question) -> bool:
        """Say whether a question is answered by shares of the catalogue."""
        return self.ranker is not None and self.ranker.knows(question.shown)

    def _by_vocabulary(self, questions: Sequence[Question]) -> list[Mapping[str, float]]:
        rows = [self._rows(question) for question in questions]
        scores = self.scorer([row for group in rows for row in group])
        parts = scores.split([len(group) for group in rows])
        return [merge(group, part) for group, part in zip(rows, parts, strict=True)]

    def check(self, question: Question) -> None:
        """See whether a question's prompts can be written; DataError where titles are too long for them."""
        with self._lock:
            if self.ranker is not None and self._is_shares(question):
                self.ranker.check(question)
            else:
                self.scorer.collator.token_ids(self._rows(question))

    def _rows(self, question: Question) -> list[PromptRow]:
        groups = in_groups(question.shown, self.card.num_candidates)
        return [PromptRow(question.history, group, group) for group in groups]

    def _ranking(self, question: Question, scores: Mapping[str, float]) -> Ranking:
        best = sorted(scores, key=scores.__getitem__, reverse=True)[: question.k]
        ranked = [Ranked(title, self.catalogue.items(title), scores[title]) for title in best]
        if question.explain and self.ranker is not None:
            ranked = self.ranker.explained(question, ranked)
        compared = len(question.shown) or len(set(self.catalogue.distinct_titles) - question.left_out)
        likelihood = "catalogue" if self._is_shares(question) else "vocabulary"
        return Ranking(ranked, question.source, compared, likelihood)


def save_recommender(
    folder: Path,
    policy: Policy,
    templates: Templates,
    catalogue: Catalogue,
    card: Card,
    priors: Priors | None = None,
) -> None:
    """Write what a ``Recommender`` is made of as a recommender folder, whole or not at all."""
    with atomic_folder(folder) as work:
        policy.save(work)
        if priors is not None:
            priors.save(work)
        catalogue.save(work / CATALOGUE_FILE)
        write_json(work / TEMPLATES_FILE, templates.texts)
        write_card(work, card)
        write_model_card(work)


def load_recommender(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: str | None = None,
    tracking_uri: str | None = None,
    load_in_4bit: bool | None = None,
) -> Recommender:
    """Load a recommender.

    Args:
        source: the folder of a run, a recommender folder like ``saved/<run>/preference``, or what MLflow
            calls it: ``models:/name@alias``, ``models:/name/version``, ``models:/m-...``, ``runs:/id/path``;
            or an id of the Hugging Face hub, ``owner/repository/folder@revision``.
        device: where to compute.
        dtype: of the backbone's weights; None takes the one it was trained with.
        tracking_uri: where MLflow's URIs are looked up; None takes MLFLOW_TRACKING_URI, else
            ``mlflow.db`` of this folder.
        load_in_4bit: whether to cut the backbone's weights to 4 bits; None: as in training. False ranks with
            the whole weights of a model that was trained on cut ones, where these cannot be had.

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
        backbone = load_card_backbone(card, str(source), dtype or card.dtype, device, load_in_4bit)
        policy = Policy(backbone, shape, seed=0)
        priors = None
        if card.likelihood == "catalogue":
            centre = stored_scalars(folder).get("centre")
            policy.train_beside(Mixture(1.0, [1.0] * len(card.priors), centre))
            check_retrievers(folder, card)
            counts = np.array(catalogue.title_counts())
            priors = Priors.load(folder, card.priors, counts, len(catalogue.titles))
        policy.load(folder)
        if adapter_digest(folder) != card.adapter_sha256:
            weights = folder / WEIGHTS_FILE
            raise AdapterError(f"{weights}: not the file that {RECOMMENDER_FILE} was written for")
    return Recommender(policy, templates, catalogue, card, priors)
