"""A retriever: one model on all users' training rows, and one a fold of users, trained without that fold.

Whoever trains beside a retriever asks about training rows with the user's name, and is answered by the model
that has not seen this user; everybody else is answered by the one of all users.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..errors import AdapterError
from ..names import RETRIEVER
from .scorers import FloatArray, IntArray, Scorer, from_bytes, to_bytes

# Halvings of the interval in which the sharpness is looked for, and its upper end.
_HALVINGS, _SHARPEST = 40, 1024.0


@dataclass(frozen=True)
class Retriever:
    """Says how likely each item is next.

    Attributes:
        whole: trained on all users.
        sharpness: what logits are multiplied with before their softmax; fitted to users not trained on.
        folds: each trained on all users but those of its fold; none in a saved recommender.
        fold_of: user -> fold.
    """

    whole: Scorer
    sharpness: float = 1.0
    folds: tuple[Scorer, ...] = ()
    fold_of: Mapping[int, int] = field(default_factory=dict)

    def scores(self, histories: Sequence[IntArray], users: IntArray) -> FloatArray:
        """Return (B, N) scores of items.

        Args:
            histories: B lists of items, oldest first.
            users: (B,) whose own training rows no asked model may have seen; -1: nobody's.
        """
        found = np.zeros((len(histories), self.whole.items))
        fold = np.array([self.fold_of.get(user, -1) for user in users.tolist()], dtype=np.int64)
        for number in np.unique(fold):
            asked = np.flatnonzero(fold == number)
            scorer = self.whole if number < 0 else self.folds[number]
            found[asked] = scorer.scores([histories[row] for row in asked]).numpy()
        return found

    def likelihoods(self, histories: Sequence[IntArray], users: IntArray) -> FloatArray:
        """Return (B, N) likelihoods that sum to 1; 0 throughout where nothing is known, and for item 0.

        They are a softmax of logits; of other scores the shares, those below 0 left out.
        """
        scores = self.scores(histories, users)
        found: FloatArray = np.zeros_like(scores)
        if self.whole.logits:
            found[:, 1:] = (self.sharpness * torch.from_numpy(scores[:, 1:])).softmax(dim=1).numpy()
        else:
            found[:, 1:] = scores[:, 1:].clip(min=0.0)
            found /= np.maximum(found.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        found[np.array([len(history) == 0 for history in histories], dtype=bool)] = 0.0
        return found

    def content(self) -> bytes:
        """Return the file of what a saved recommender needs: the model of all users."""
        return to_bytes(self.whole, {"sharpness": self.sharpness})

    def digest(self) -> str:
        """Return the SHA-256 of all that it says, of training rows too."""
        found = hashlib.sha256(self.content() + repr(sorted(self.fold_of.items())).encode())
        for fold in self.folds:
            found.update(to_bytes(fold, {}))
        return found.hexdigest()


def deal_users(users: Sequence[int], folds: int, draw: np.random.Generator) -> dict[int, int]:
    """Return user -> fold; folds differ by one user at most."""
    order = draw.permutation(len(users))
    return {users[place]: number % folds for number, place in enumerate(order.tolist())}


def fit_sharpness(scores: FloatArray, targets: IntArray) -> float:
    """Return the factor of scores under whose softmax the targets are likeliest.

    A model trained for many epochs is too sure of itself. The likelihood is concave in the factor, so
    that halving finds where its slope is 0; scores that say nothing of the targets get a factor near 0.

    Args:
        scores: (B, N) logits; item 0 is none.
        targets: (B,) items.
    """
    table = torch.from_numpy(scores[:, 1:])
    chosen = table.gather(1, torch.from_numpy(targets - 1)[:, None])[:, 0]

    def slope(factor: float) -> float:
        return (chosen - ((factor * table).softmax(dim=1) * table).sum(dim=1)).mean().item()

    low, high = 0.0, 1.0
    while high < _SHARPEST and slope(high) > 0:
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return (low + high) / 2


def file_of(name: str) -> str:
    """Return the name of a retriever's file in a recommender folder; ``name`` as the setting calls it."""
    return f"retriever-{name.removeprefix(RETRIEVER)}.safetensors"


def load_retriever(path: Path, items: int) -> Retriever:
    """Return what ``Retriever.content`` returned, from a file.

    Args:
        path: of the file.
        items: N, of the catalogue.

    Raises:
        AdapterError: the file is missing, damaged, or scores other items.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read ({error.strerror}); wanted a retriever") from error
    whole, about = from_bytes(content, items, str(path))
    return Retriever(whole, float(about["sharpness"]))
