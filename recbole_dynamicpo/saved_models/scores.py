"""Scores of test rows by a saved model: by its catalogue, or by the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor
from tqdm import tqdm

from ..dataset.columns import CANDIDATE_IDS
from ..dataset.sampling import IntArray
from ..evaluation.exposure import Exposure
from ..language_model.policy import POLICY
from ..parallel import here
from ..serving.priors import RetrieverPrior
from ..serving.recommender import Recommender
from ..title_trie.catalogue_scorer import CatalogueScorer
from ..title_trie.two_stages import in_two_stages
from ..training.contestants import all_by_counting, name_of_retriever
from ..training.whole_catalogue import Scores, WholeCatalogue
from .rows import EvaluationRows


def rank_others_among_all(
    rows: EvaluationRows, titles: WholeCatalogue, retrieving: Mapping[str, Scores]
) -> dict[str, Counted]:
    """Return name -> what counting models, and retrievers, are found to rank among all titles.

    Args:
        rows: to rank.
        titles: all of them.
        retrieving: what each retriever gives them.
    """
    found, data = {}, rows.data.inter_feat
    batches = [data[start : start + rows.rows_at_once] for start in range(0, len(data), rows.rows_at_once)]
    for name, scores in [*all_by_counting(titles), *retrieving.items()]:
        shown = titles.exposure()
        ranks = [titles.judge(batch, scores(batch), 1, shown)[0] for batch in batches]
        found[name] = Counted(torch.cat(ranks).numpy(), data[rows.data.uid_field].numpy(), shown)
    return found


class Counted(NamedTuple):
    """What a contestant without a language model is found to rank among all titles.

    Attributes:
        ranks: n.
        users: (n,) whose rows they are.
        shown: what its first titles show.
    """

    ranks: np.ndarray[Any, Any]
    users: np.ndarray[Any, Any]
    shown: Exposure


class _Part(NamedTuple):
    """What is found of some rows."""

    scores: Tensor  # (n, C) of their candidates
    ranks: Sequence[int] = ()  # of the titles chosen among all titles, where asked for


class SavedScores:
    """Scores rows as a saved recommender does: by its catalogue, where that knows all of their titles.

    Attributes:
        notes: what a reader has to know of the scores.
        logps: (n,) of the titles chosen among all titles, nats; None where the vocabulary scores.
        ranks_all: of the titles chosen among all titles, where settings ask for them.
        shown: how often each title was then among the first of a row.
        titles: that all titles are.
    """

    def __init__(self, recommender: Recommender, rows: EvaluationRows, progress: bool) -> None:
        self.scorer, self.rows, self.progress = recommender.scorer, rows, progress
        self._priors = recommender.card.priors
        self.notes: list[str] = []
        self.logps: np.ndarray[Any, Any] | None = None
        self.ranks_all: list[int] = []
        self.titles = WholeCatalogue(rows.whole)
        self.shown = self.titles.exposure()
        self.catalogue = recommender.ranker.scorer if recommender.ranker is not None else None
        titles = rows.whole.catalogue.distinct_titles
        if self.catalogue is not None and list(self.catalogue.number) != list(titles):
            self.catalogue = None
            self.notes.append(
                "scored by the vocabulary: the model's catalogue is another one than the data set's"
            )

    def scores(self) -> Tensor:
        """Return (n, C) log-probabilities of the candidates in prompt order, -inf where a row has fewer."""
        prompts, step, processes = self.rows.prompts, self.rows.rows_at_once, here()
        score = self._by_vocabulary
        if self.catalogue is not None:
            everything = "all" in self.rows.data.settings.rank_among
            score = self._among_all if everything else self._by_catalogue
        scores = torch.full((len(prompts), max(len(row.completions) for row in prompts)), -torch.inf)
        starts, own, shows = range(0, len(prompts), step), {}, self.progress and processes.first
        quiet = None if shows else True
        with tqdm(total=len(prompts), desc="likelihood", unit=" rows", disable=quiet) as bar:
            for start in starts[processes.rank :: processes.world]:
                own[start] = score(slice(start, start + step))
                bar.update(len(prompts[start : start + step * processes.world]))
        found = processes.merge(own)
        for start in starts:
            part, ranks = found[start]
            scores[start : start + len(part), : part.shape[1]] = part
            self.ranks_all += ranks
        if self.ranks_all:
            self.shown.join(processes.gather((self.shown.shown, self.shown.rows)))
        if self.catalogue is not None:
            interaction = self.rows.data.inter_feat
            chosen = interaction[CANDIDATE_IDS] == interaction[self.rows.data.iid_field][:, None]
            self.logps = scores.gather(1, chosen.int().argmax(dim=1)[:, None])[:, 0].numpy()
        return scores

    def retrieving(self) -> dict[str, Scores]:
        """Return name -> what a retriever among the saved priors gives all titles behind some rows."""
        if self.catalogue is None:
            return {}
        return {
            name_of_retriever(name): partial(self._retrieved, self.catalogue, source)
            for name, source in zip(self._priors, self.catalogue.priors, strict=True)
            if isinstance(source, RetrieverPrior)
        }

    def _retrieved(self, catalogue: CatalogueScorer, source: RetrieverPrior, rows: Interaction) -> Tensor:
        prompts = self.rows.data.prompt_rows(rows, np.zeros((len(rows), 0), np.int64))
        return torch.from_numpy(source.likelihoods(catalogue.histories(prompts)))

    def _by_vocabulary(self, part: slice) -> _Part:
        return _Part(self.scorer(self.rows.prompts[part]))

    def _numbers(self, part: slice) -> IntArray:
        assert self.catalogue is not None
        return self.catalogue.numbers([row.completions for row in self.rows.prompts[part]])

    def _by_catalogue(self, part: slice) -> _Part:
        assert self.catalogue is not None
        return _Part(self.catalogue.in_voices(self.rows.prompts[part], self._numbers(part), [POLICY])[POLICY])

    def _among_all(self, part: slice) -> _Part:
        assert self.catalogue is not None
        prompts, rows = self.rows.prompts[part], self.rows.data.inter_feat[part]
        if count := self.rows.whole.settings.first_stage:
            left_out = self.titles.left_out(rows)
            found = in_two_stages(self.catalogue, prompts, [POLICY], count, left_out)[POLICY]
            own = self._by_catalogue(part).scores
        else:
            found = self.catalogue.all_in_voices(prompts, [POLICY])[POLICY]
            numbers = torch.from_numpy(self._numbers(part))
            own = found.gather(1, numbers.clamp(min=0)).masked_fill(numbers < 0, -torch.inf)
        return _Part(own, self.titles.judge(rows, found, 1, self.shown)[0].tolist())
