"""What a title's log-probability is: under the model's vocabulary, or under the catalogue."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

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


class PassSize(NamedTuple):
    """How much a pass forwards."""

    tokens: int  # padding left out
    parts: int  # that it could be split into
    padded: int  # tokens with padding


class Asked(NamedTuple):
    """Titles of rows, or at all positions of windows, laid out on the host for a pass with gradient."""

    of: Any  # what the likelihood made
    terms: Tensor  # (B, C) that each log-probability sums over
    present: Tensor  # (B, C) bool: where there is a title
    size: PassSize


class Likelihood(Protocol):
    """Scores items of rows; both kinds are asked alike.

    Attributes:
        digest: of the catalogue's title trie; empty where scores do not depend on one.
    """

    digest: str

    def lay_out(self, rows: Interaction, items: IntArray) -> Asked:
        """Return what ``logps`` passes; all of it is the host's work, in whatever thread.

        Args:
            rows: B rows with their candidates.
            items: (B, C) to score; 0 where there is none, which gets 0.
        """

    def logps(self, asked: Asked) -> Tensor:
        """Return (B, C) log-probabilities in nats, with gradient."""

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
        self.digest, self.priors = "", None

    def lay_out(self, rows: Interaction, items: IntArray) -> Asked:
        """See ``Likelihood``; the terms are tokens."""
        batch = self.collator(self.dataset.prompt_rows(rows, items))
        places = _places(items, batch.completions.shape[1])
        terms = _in_place(batch.completion_length, places, 0)
        size = PassSize(batch.tokens(), *self.policy.pass_size(batch))
        return Asked((batch, self.policy.pack(batch), places), terms, torch.from_numpy(items > 0), size)

    def logps(self, asked: Asked) -> Tensor:
        """See ``Likelihood``."""
        batch, packed, places = asked.of
        found = self.policy.logps(batch, self.budget.tokens, packed)
        return _in_place(found, on_device(places, found.device), 0.0)

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
