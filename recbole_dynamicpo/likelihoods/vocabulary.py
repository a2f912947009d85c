"""What a title's log-probability is: under the model's vocabulary, or under the catalogue."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.data.interaction import Interaction
from torch import Tensor

from ..dataset.dataset import DynamicPODataset
from ..language_model.packed import on_device
from ..language_model.policy import Policy
from ..scoring.collate import Collator
from ..scoring.scorer import Scorer
from ..scoring.token_budget import TokenBudget

logger = logging.getLogger(__name__)

IntArray = NDArray[np.int64]


class Likelihood(Protocol):
    """Scores items of rows; both kinds are asked alike.

    Attributes:
        tokens: of the last training pass, padding left out.
        pass_size: into how many parts it could have been split, and its padded tokens.
        digest: of the catalogue's title trie; empty where scores do not depend on one.
    """

    digest: str
    tokens: int
    pass_size: tuple[int, int]

    def logps(self, rows: Interaction, items: IntArray) -> tuple[Tensor, Tensor]:
        """Return (B, C) log-probabilities in nats with gradient, and (B, C) terms that each sums over.

        Args:
            rows: B rows with their candidates.
            items: (B, C) to score; 0 where there is none, which gets 0.
        """

    def in_voices(self, rows: Interaction, items: IntArray, voices: Sequence[str]) -> dict[str, Tensor]:
        """Return each voice's (B, C) log-probabilities, nats, without gradient; -inf where there is none."""

    def keys(self, rows: Interaction, items: IntArray) -> list[str]:
        """Return a hash a row of everything but the adapter that its log-probabilities depend on."""


class VocabularyLikelihood:
    """A title's tokens are chosen among all that the tokenizer has; the published way."""

    def __init__(
        self, dataset: DynamicPODataset, policy: Policy, collator: Collator, budget: TokenBudget
    ) -> None:
        self.dataset, self.policy, self.collator, self.budget = dataset, policy, collator, budget
        self.scorer = Scorer(policy, collator, budget)
        self.tokens, self.pass_size = 0, (1, 0)
        self.digest, self.priors = "", None

    def logps(self, rows: Interaction, items: IntArray) -> tuple[Tensor, Tensor]:
        """See ``Likelihood``; the terms are tokens."""
        batch = self.collator(self.dataset.prompt_rows(rows, items))
        self.tokens, self.pass_size = batch.tokens(), self.policy.pass_size(batch)
        places = _places(items, batch.completions.shape[1])
        terms = _in_place(batch.completion_length, places, 0)
        places, terms = on_device((places, terms), self.policy.device)
        return _in_place(self.policy.logps(batch, self.budget.tokens), places, 0.0), terms

    def in_voices(self, rows: Interaction, items: IntArray, voices: Sequence[str]) -> dict[str, Tensor]:
        """See ``Likelihood``."""
        found = self.scorer.in_voices(self.dataset.prompt_rows(rows, items), voices)
        places = _places(items, next(iter(found.values())).shape[1])
        return {voice: _in_place(logps, places, -torch.inf) for voice, logps in found.items()}

    def keys(self, rows: Interaction, items: IntArray) -> list[str]:
        """See ``Likelihood``."""
        shortened = self.collator.truncated_rows
        tokens = zip(*self.collator.token_ids(self.dataset.prompt_rows(rows, items)), strict=True)
        self.collator.truncated_rows = shortened  # looking rows up is no use of them
        return [row_hash([list(prompt), list(map(list, titles))]) for prompt, titles in tokens]


class _Places(NamedTuple):
    """Where the items of rows, which may have gaps, find what lies at the beginning of their rows."""

    place: Tensor  # (B, C) int64
    absent: Tensor  # (B, C) bool: no item


def _places(items: IntArray, width: int) -> _Places:
    present = torch.from_numpy(items > 0)
    return _Places((present.cumsum(dim=1) - 1).clamp(0, width - 1), ~present)


def _in_place(values: Tensor, places: _Places, absent: float) -> Tensor:
    """Return (B, C) values at the places of the items, and ``absent`` where there is none."""
    return values.gather(1, places.place).masked_fill(places.absent, absent)


def row_hash(said: object) -> str:
    """Return the SHA-256 of what a row's log-probabilities depend on."""
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
