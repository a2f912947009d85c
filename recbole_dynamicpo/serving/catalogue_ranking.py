"""A recommender's catalogue: who speaks in which mixture, over which priors, and the titles ranked by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor

from ..data.catalogue import Catalogue
from ..language_model.policy import POLICY, REFERENCE, Policy
from ..scoring.batches import PromptRow
from ..scoring.collate import Collator
from ..scoring.token_budget import TokenBudget
from ..title_trie.catalogue_likelihood import Mixture
from ..title_trie.catalogue_scorer import CatalogueScorer
from ..title_trie.catalogue_search import CatalogueSearch
from ..title_trie.prior import Background, PriorSource
from ..title_trie.trie import Trie
from .ranking import Question

# Nodes of a trie that are all read for one history; a larger one is searched best first.
READ_WHOLE = 2_000
BACKBONE, ALONE = "backbone", "policy alone"


class Voices(Mapping[str, Mixture]):
    """How much the language model and the priors have to say in each voice.

    The policy and the reference have what was trained beside their adapters. The bare backbone speaks without
    priors, and so does ``policy alone``, which is the policy's language model.

    Args:
        policy: holds what is trained.
        priors: how many there are.
    """

    def __init__(self, policy: Policy, priors: int) -> None:
        self.policy = policy
        self.bare = Mixture(1.0, [0.0] * priors)

    def __getitem__(self, voice: str) -> Mixture:
        if voice == BACKBONE:
            return self.bare
        mixture = self.policy.beside[REFERENCE if voice == REFERENCE else POLICY]
        assert isinstance(mixture, Mixture)
        return Mixture(mixture.scale.item(), self.bare.weights.tolist()) if voice == ALONE else mixture

    def __iter__(self) -> Iterator[str]:
        return iter((POLICY, REFERENCE, BACKBONE, ALONE))

    def __len__(self) -> int:
        return 4


def prior_sources(trie: Trie, names: Sequence[str], popularity: Sequence[int]) -> list[PriorSource]:
    """Return the priors of these names.

    Args:
        trie: of the catalogue.
        names: of ``names.PRIORS``.
        popularity: (I,) training interactions of each item; those of one title are added up.
    """
    made: dict[str, PriorSource] = {}
    if "popularity" in names:
        counts = np.bincount(trie.title_of_item, weights=np.asarray(popularity), minlength=trie.num_titles)
        made["popularity"] = Background(trie, counts + 0.5)
    return [made[name] for name in names]


class CatalogueRanker:
    """Ranks what questions ask for by the catalogue likelihood.

    Args:
        policy: with its mixture beside it.
        collator: writes the prompts.
        catalogue: known items.
        priors: names of ``names.PRIORS``.
        budget: of one pass.
    """

    def __init__(
        self,
        policy: Policy,
        collator: Collator,
        catalogue: Catalogue,
        priors: Sequence[str],
        budget: TokenBudget,
    ) -> None:
        self.titles = catalogue.distinct_titles
        self.scorer = CatalogueScorer(
            policy,
            collator,
            catalogue.titles,
            priors=lambda trie: prior_sources(trie, priors, catalogue.popularity),
            mixtures=Voices(policy, len(priors)),
            budget=budget,
        )
        self._search = CatalogueSearch(self.scorer)
        self._reads_whole = len(self.scorer.trie.forward_nodes()) <= READ_WHOLE

    def knows(self, titles: Sequence[str]) -> bool:
        """Say whether all titles are in the catalogue."""
        return all(title in self.scorer.number for title in titles)

    def scores(self, questions: Sequence[Question]) -> list[dict[str, float]]:
        """Return title -> log-probability in nats: of the titles shown, or of the catalogue's best."""
        found: list[dict[str, float]] = [{} for _ in questions]
        listed = [place for place, question in enumerate(questions) if question.shown]
        whole = [place for place, question in enumerate(questions) if not question.shown]
        if listed:
            rows = [_row(questions[place]) for place in listed]
            numbers = self.scorer.numbers([questions[place].shown for place in listed])
            logps = self.scorer.in_voices(rows, numbers, [POLICY])[POLICY]
            for place, values in zip(listed, logps.tolist(), strict=True):
                found[place] = dict(zip(questions[place].shown, values, strict=False))
        if whole and self._reads_whole:
            logps = self.all_logps([questions[place] for place in whole])
            for place, values in zip(whole, logps.tolist(), strict=True):
                left_out = questions[place].left_out
                pairs = zip(self.titles, values, strict=True)
                found[place] = {title: value for title, value in pairs if title not in left_out}
        elif whole:
            for place in whole:
                found[place] = self._best(questions[place])
        return found

    def all_logps(self, questions: Sequence[Question]) -> Tensor:
        """Return (B, Y) log-probabilities of all distinct titles, nats."""
        return self.scorer.all_in_voices([_row(question) for question in questions], [POLICY])[POLICY]

    def check(self, question: Question) -> None:
        """See whether the prompt of a question can be written.

        Raises:
            DataError: it does not fit.
        """
        self.scorer.prompts([_row(question)])

    def _best(self, question: Question) -> dict[str, float]:
        left_out = {self.scorer.number[title] for title in question.left_out if title in self.scorer.number}
        best = self._search.top(_row(question), question.k, left_out=left_out)
        return {
            self.titles[title]: logp
            for title, logp in zip(best.titles.tolist(), best.logps.tolist(), strict=True)
        }


def _row(question: Question) -> PromptRow:
    return PromptRow(question.history, question.shown, [])
