"""A recommender's catalogue: who speaks in which mixture, over which priors, and the titles ranked by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..data.catalogue import Catalogue
from ..errors import AdapterError, DataError, short
from ..language_model.adapter_folder import SCALARS_FILE
from ..language_model.policy import POLICY, REFERENCE, Policy
from ..scoring.batches import PromptRow
from ..scoring.collate import Collator
from ..scoring.token_budget import TokenBudget
from ..title_trie.catalogue_likelihood import Mixture
from ..title_trie.catalogue_scorer import CatalogueScorer
from ..title_trie.catalogue_search import CatalogueSearch
from ..title_trie.title_layout import lay_out
from ..title_trie.two_stages import first_stage, prior_logps
from .folder import RECOMMENDER_FILE, Card
from .priors import Priors
from .ranking import Question, Ranked, is_whole

# Nodes of a trie that are all read for one history; a larger one is searched best first.
READ_WHOLE = 2_000
BACKBONE, ALONE, COUNTS = "backbone", "policy alone", "policy counts"


class Voices(Mapping[str, Mixture]):
    """How much the language model and the priors have to say in each voice.

    The policy and the reference have what was trained beside their adapters. The bare backbone speaks without
    priors, and so does ``policy alone``, the policy's language model; ``policy counts`` is the priors with
    fitted weights, and no language model.

    Args:
        policy: holds what is trained.
        fitted: (J,) weights of the priors without a language model.
    """

    def __init__(self, policy: Policy, fitted: Sequence[float]) -> None:
        self.policy = policy
        self.counts = Mixture(0.0, fitted)
        self.bare = Mixture(1.0, [0.0] * len(fitted))

    def __getitem__(self, voice: str) -> Mixture:
        fixed = {BACKBONE: self.bare, COUNTS: self.counts}
        if voice in fixed:
            return fixed[voice]
        mixture = self.policy.beside[REFERENCE if voice == REFERENCE else POLICY]
        assert isinstance(mixture, Mixture)
        if voice == ALONE:
            return Mixture(mixture.scale.item(), self.bare.weights.tolist(), mixture.centre)
        return mixture

    def __iter__(self) -> Iterator[str]:
        return iter((POLICY, REFERENCE, BACKBONE, ALONE, COUNTS))

    def __len__(self) -> int:
        return 5


class CatalogueRanker:
    """Ranks what questions ask for by the catalogue likelihood.

    Raises:
        AdapterError: what is beside the policy belongs to another catalogue.

    Args:
        policy: with its mixture beside it.
        collator: writes the prompts.
        catalogue: known items.
        priors: of its titles.
        budget: of one pass.
        trie_sha256: of the trie that the policy was trained on; empty where nobody knows.
    """

    def __init__(
        self,
        policy: Policy,
        collator: Collator,
        catalogue: Catalogue,
        priors: Priors,
        budget: TokenBudget,
        trie_sha256: str = "",
    ) -> None:
        self.titles = catalogue.distinct_titles
        self.scorer = CatalogueScorer(
            policy,
            collator,
            catalogue.titles,
            priors=priors,
            mixtures=Voices(policy, [1.0] * len(priors.names)),
            budget=budget,
        )
        if trie_sha256 not in ("", self.scorer.trie.digest):
            raise AdapterError(
                f"{RECOMMENDER_FILE}: its trie_sha256 is {trie_sha256[:12]}..., but the catalogue's titles "
                f"make the trie {self.scorer.trie.digest[:12]}..."
            )
        edges, centre = len(self.scorer.trie.edge_node), self.scorer.mixtures[POLICY].centre
        if len(centre) not in (0, edges):
            raise AdapterError(f"{SCALARS_FILE}: centre has {len(centre)} numbers, wanted {edges} or none")
        self._search = CatalogueSearch(self.scorer)
        self._reads_whole = len(self.scorer.trie.forward_nodes()) <= READ_WHOLE

    def knows(self, titles: Sequence[str]) -> bool:
        """Say whether all titles are in the catalogue."""
        return all(title in self.scorer.number for title in titles)

    def narrowed(self, questions: Sequence[Question]) -> list[Question]:
        """Return questions, where those with a first stage show what the priors choose of the catalogue."""
        found = list(questions)
        by_count: dict[int, list[int]] = {}
        for place, question in enumerate(questions):
            if question.first_stage and not question.shown:
                by_count.setdefault(question.first_stage, []).append(place)
        for count, places in by_count.items():
            for place, shown in zip(places, self._chosen([questions[p] for p in places], count), strict=True):
                found[place] = replace(questions[place], shown=shown)
        return found

    def _chosen(self, questions: Sequence[Question], count: int) -> list[list[str]]:
        left_out = torch.zeros(len(questions), len(self.titles), dtype=torch.bool)
        for row, question in enumerate(questions):
            left_out[row, [self.scorer.number[t] for t in question.left_out if t in self.scorer.number]] = (
                True
            )
        chosen = first_stage(self.scorer, [_row(question) for question in questions], count, left_out)
        return [[self.titles[number] for number in row if number >= 0] for row in chosen.tolist()]

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

    def explained(self, question: Question, ranked: Sequence[Ranked]) -> list[Ranked]:
        """Return ranked titles with their scores in two parts, of priors and language model.

        The prior's part is the log-probability by the priors with their trained weights alone, which sums to
        1 over the catalogue too. It is a float32 number, as scores are, so that the difference of the two in
        Python's floats loses nothing.
        """
        layout = lay_out(self.scorer.trie, self.scorer.numbers([[item.title for item in ranked]]))
        priors = prior_logps(self.scorer, [_row(question)], layout)[0].float().tolist()
        return [
            replace(item, prior=prior, language_model=item.score - prior)
            for item, prior in zip(ranked, priors, strict=True)
        ]

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


def stage_size(card: Card, first_stage: int | None) -> int:
    """Return how many titles of the catalogue the priors choose to be ranked; 0: all.

    Args:
        card: of the model.
        first_stage: what a request asks for; None: as the card says.

    Raises:
        DataError: no whole number of at least 0, or the model has no prior.
    """
    count = card.first_stage if first_stage is None else first_stage
    if not is_whole(count) or count < 0:
        raise DataError(
            f"first_stage: got {short(count)}, wanted a whole number of at least 0 (0: all titles)"
        )
    if count and not card.priors:
        raise DataError(
            f"first_stage: got {count}, but this model has no prior that could choose titles (setting "
            "catalogue_prior); wanted 0"
        )
    return int(count)


def check_prior(ranker: CatalogueRanker | None, question: Question) -> None:
    """See that the scores of a question have a prior in them.

    Args:
        ranker: of the recommender; None where the likelihood is the vocabulary's.
        question: to be explained.

    Raises:
        DataError: they have none.
    """
    wanted = "wanted a model with likelihood catalogue and a prior below it (setting catalogue_prior)"
    if ranker is None:
        raise DataError(f"explain: {wanted}; this one has likelihood vocabulary, and no prior")
    if not ranker.scorer.priors:
        raise DataError(f"explain: {wanted}; this one has no prior")
    foreign = [title for title in question.shown if title not in ranker.scorer.number]
    if foreign:
        raise DataError(
            f"explain: candidate {short(foreign[0])} is not in the catalogue, so that the list is scored by "
            "the vocabulary, without a prior; wanted titles of the catalogue"
        )


def _row(question: Question) -> PromptRow:
    return PromptRow(question.history, question.shown, [])
