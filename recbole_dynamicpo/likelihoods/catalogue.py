"""The catalogue likelihood of a run's rows, and what it begins with: fitted priors, the mean opinion."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from ..data.counting import Sequences
from ..dataset.columns import ROW_ID
from ..dataset.dataset import DynamicPODataset
from ..dataset.sampling import IntArray, row_generator
from ..hub import find_adapter
from ..language_model.adapter_folder import SCALARS_FILE, stored_scalars
from ..language_model.policy import Policy
from ..parallel import here
from ..retrievers.fitted import fit_retrievers
from ..retrievers.training import Host
from ..scoring.batches import PromptRow
from ..scoring.collate import Collator
from ..scoring.token_budget import TokenBudget
from ..serving.catalogue_ranking import Voices
from ..serving.priors import Priors, RetrieverPrior
from ..settings import Settings
from ..title_trie.catalogue_likelihood import Mixture
from ..title_trie.catalogue_scorer import CatalogueScorer
from ..title_trie.fitted_counts import fit_experts, fit_weights, sample_positions
from ..title_trie.prior import Histories
from .vocabulary import Asked, row_hash
from .windows import WindowScores, size_of

logger = logging.getLogger(__name__)

# Training titles that the priors' weights are fitted to, and that the mean opinion is taken over.
FITTED_ROWS, CENTRED_ROWS = 1000, 32
# The language model's weight is fitted from here where it has all but vanished.
_LEAST_START = 1e-3


def title_sequences(data: DynamicPODataset) -> Sequences:
    """Return what each user took in training as numbers of distinct titles, from 1 on."""
    known = {title: number for number, title in enumerate(data.catalogue.distinct_titles, start=1)}
    numbers = np.array([0, *(known[title] for title in data.catalogue.titles)])
    parts: dict[int, list[IntArray]] = {}
    for user, items in zip(data.chains.users.tolist(), data.chains.items, strict=True):
        parts.setdefault(user, []).append(numbers[items])
    return Sequences(len(known) + 1, {user: np.concatenate(chains) for user, chains in parts.items()})


class CatalogueLikelihood:
    """A title's tokens are chosen among those of the catalogue's titles; see ``title_trie``."""

    def __init__(
        self,
        dataset: DynamicPODataset,
        policy: Policy,
        collator: Collator,
        budget: TokenBudget,
        settings: Settings,
    ) -> None:
        self.dataset, self.collator = dataset, collator
        taken = title_sequences(dataset)
        # The item that stands for each distinct title, where models of RecBole's know items.
        first = {title: item for item, title in reversed([*enumerate(dataset.catalogue.titles, start=1)])}
        items = np.array([first[title] for title in dataset.catalogue.distinct_titles])
        retrievers = fit_retrievers(taken, items, Host(dataset.config, dataset), settings)
        self.priors = Priors.count(settings.catalogue_prior, taken, retrievers)
        self.voices = Voices(policy, [1.0] * len(self.priors.names))
        policy.train_beside(Mixture(settings.lm_scale, [1.0] * len(self.priors.names)))
        self.scorer = CatalogueScorer(
            policy,
            collator,
            dataset.catalogue.titles,
            priors=self.priors,
            mixtures=self.voices,
            budget=budget,
        )
        # (item_num,) the trie's number of each item's title; -1 for no item.
        self.numbers = np.concatenate([[-1], self.scorer.trie.title_of_item])
        self.longest = int(dataset.config["MAX_ITEM_LIST_LENGTH"])  # of histories, as evaluation has them
        self.digest = self.scorer.trie.digest
        self.identity = (self.digest, self.priors.digest())
        self.windows = WindowScores(
            dataset, self.scorer, numbers=self.numbers, longest=self.longest, pool=settings.hard_pool,
            identity=self.identity,
        )  # fmt: skip
        self._begin(policy, settings)

    def _begin(self, policy: Policy, settings: Settings) -> None:
        """Let training begin with fitted weights of the priors, and without what the model thinks of all."""
        chains = self.dataset.chains
        lengths = [len(items) for items in chains.items]
        if not sum(lengths):
            return
        fitted: list[float] = []
        if self.priors.names:
            asked, targets = self._sample(lengths, FITTED_ROWS, settings.seed)
            fitted, loss = here().decide(
                lambda: fit_weights(self.scorer.trie, self.scorer.priors, asked, targets)
            )
            said = ", ".join(f"{n} {w:.3f}" for n, w in zip(self.priors.names, fitted, strict=True))
            logger.info(
                "priors: weights %s fitted to %d training titles, loss %.4f", said, len(targets), loss
            )
        given = settings.prior_weight
        weights = fitted if given is None else [given] * len(fitted)
        centre = self._kept_centre(settings)
        if settings.centre and centre is None:
            sampled = sample_positions(lengths, CENTRED_ROWS, row_generator(settings.seed, 37))
            rows = [
                PromptRow([self.dataset.titles[item] for item in chains.items[chain][:at]], [], [])
                for chain, at in sampled
            ]
            centre = here().decide(lambda: self.scorer.mean_logits(rows))
        self.voices.counts = Mixture(0.0, fitted)
        policy.train_beside(Mixture(settings.lm_scale, weights, centre))

    def _kept_centre(self, settings: Settings) -> Tensor | None:
        """Return the mean opinion that an SFT adapter was trained with, which takes long to find again."""
        if not settings.centre or not settings.sft_adapter:
            return None
        folder = find_adapter(settings.sft_adapter)
        kept = stored_scalars(folder).get("centre") if (folder / SCALARS_FILE).is_file() else None
        return kept if kept is not None and len(kept) == len(self.scorer.trie.edge_node) else None

    @torch.no_grad()
    def fit_mixture(self, rows: Interaction) -> None:
        """Give language model and priors their weights of greatest likelihood of the titles of windows."""
        mixture = self.voices["policy"]
        start = [max(mixture.scale.item(), _LEAST_START), *mixture.weights.tolist()]
        parts = self.windows.said(rows)
        (scale, *weights), loss = here().decide(lambda: fit_experts(parts, start, positive=1))
        mixture.scale.fill_(scale)
        mixture.weights.copy_(torch.tensor(weights))
        named = zip(self.priors.names, weights, strict=True)
        said = ", ".join([f"language model {scale:.3f}", *(f"{name} {weight:.3f}" for name, weight in named)])
        logger.info("weights %s fitted to training titles, loss %.4f", said, loss)

    def _sample(self, lengths: list[int], count: int, seed: int) -> tuple[Histories, IntArray]:
        """Return training histories and the titles chosen behind them, drawn by the seed."""
        chains, taken, users, targets = self.dataset.chains, [], [], []
        for chain, at in sample_positions(lengths, count, row_generator(seed, 41)):
            numbers = self.numbers[chains.items[chain]]
            taken.append(numbers[max(0, at - self.longest) : at])
            users.append(int(chains.users[chain]))
            targets.append(numbers[at])
        return Histories(taken, np.array(users)), np.array(targets)

    def lay_out(self, rows: Interaction, items: IntArray) -> Asked:
        """See ``Likelihood``; a title is one term, so that none counts more for being long."""
        asked = self.scorer.of_rows(self.prompt_rows(rows), self.numbers[items]).ready()
        present = torch.from_numpy(items > 0)
        return Asked(asked, present.long(), present, size_of(asked.batch))

    def logps(self, asked: Asked) -> Tensor:
        """See ``Likelihood``; the same for windows."""
        return self.scorer.logps(asked.of)

    def in_voices(self, rows: Interaction, items: IntArray, voices: Sequence[str]) -> dict[str, Tensor]:
        """See ``Likelihood``."""
        return self.scorer.in_voices(self.prompt_rows(rows), self.numbers[items], voices)

    def all_in_voices(self, rows: Interaction, voices: Sequence[str]) -> dict[str, Tensor]:
        """Return each voice's (B, Y) log-probabilities of all distinct titles, nats."""
        return self.scorer.all_in_voices(self.prompt_rows(rows), voices)

    def retrieved(self, name: str, rows: Interaction) -> Tensor:
        """Return (B, Y) what one of the retrievers among the priors gives all distinct titles."""
        source = self.scorer.priors[self.priors.names.index(name)]
        assert isinstance(source, RetrieverPrior)
        return torch.from_numpy(source.likelihoods(self.scorer.histories(self.prompt_rows(rows))))

    def keys(self, rows: Interaction, items: IntArray) -> list[str]:
        """See ``Likelihood``."""
        shortened = self.collator.truncated_rows
        asked = self.prompt_rows(rows)
        prompts = self.scorer.prompts(asked)
        self.collator.truncated_rows = shortened
        parts = zip(prompts, (row.user for row in asked), self.numbers[items].tolist(), strict=True)
        return [row_hash([*self.identity, *part]) for part in parts]

    def prompt_rows(self, rows: Interaction) -> list[PromptRow]:
        """Return the rows' prompts; those of training name their user, whose own part priors leave out."""
        training = rows[ROW_ID] < len(self.dataset.built["train"].inter_feat)
        users = torch.where(training, rows[self.dataset.uid_field], -1).tolist()
        found = self.dataset.prompt_rows(rows, np.zeros((len(rows), 0), np.int64))
        return [row._replace(user=user) for row, user in zip(found, users, strict=True)]
