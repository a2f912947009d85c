"""The exact top of a catalogue for one history, and the exact rank of one title: from few nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..language_model.packed import on_device
from ..scoring.batches import PromptRow
from .best_first import ChildLogits, TitleRank, TopTitles, title_rank, top_titles
from .catalogue_scorer import CatalogueScorer, speaker_of
from .kept_history import GrowingTree
from .title_layout import child_edges
from .trie import Integers

Found = TypeVar("Found")


class CatalogueSearch:
    """Searches a catalogue best first.

    Attributes:
        forwarded: tokens of the last search that passed the model, those of the prompt included.

    Args:
        scorer: of the catalogue.
    """

    def __init__(self, scorer: CatalogueScorer) -> None:
        self.scorer = scorer
        self.forwarded = 0

    def top(self, row: PromptRow, k: int, voice: str = "policy", **search: Any) -> TopTitles:
        """Return the most probable titles of one history.

        Args:
            row: the history.
            k: how many titles.
            voice: who speaks.
            search: of ``top_titles``: ``left_out``, ``at_once``, ``max_nodes``, ``exact``.
        """
        trie = self.scorer.trie
        return self._search(row, voice, lambda ask: top_titles(trie, ask, k, **search))

    def rank(self, row: PromptRow, target: int, voice: str = "policy", **search: Any) -> TitleRank:
        """Return the rank of one title among all.

        Args:
            row: the history.
            target: number of the title.
            voice: who speaks.
            search: of ``title_rank``: ``left_out``, ``tie_keys``, ``at_once``, ``max_nodes``, ``exact``.
        """
        trie = self.scorer.trie
        return self._search(row, voice, lambda ask: title_rank(trie, ask, target, **search))

    @torch.no_grad()
    def _search(self, row: PromptRow, voice: str, search: Callable[[ChildLogits], Found]) -> Found:
        scorer, policy = self.scorer, self.scorer.policy
        (prompt,) = scorer.prompts([row])
        tree = GrowingTree(policy, scorer.trie, prompt)
        histories = scorer.histories([row])
        priors = [prior(histories) for prior in scorer.priors]

        def child_logits(numbers: Integers) -> Tensor:
            edges = child_edges(scorer.trie, np.zeros_like(numbers), numbers)
            said = [prior.log_ratios(edges, np.zeros(1, np.int64)) for prior in priors]
            ratios = torch.stack(said) if said else torch.zeros(0, 1)
            where = on_device(edges, policy.device)
            products = scorer.products(tree(numbers), where, 1)[0]
            return scorer.mixtures[voice].logits(products, ratios, where.edge)

        training = policy.training
        policy.eval()
        with policy.speaking_as(speaker_of(voice)):
            found = search(child_logits)
        policy.train(training)
        self.forwarded = tree.forwarded
        return found
