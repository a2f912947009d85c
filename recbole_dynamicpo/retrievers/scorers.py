"""What a trained retriever is once RecBole has gone: scores of all items behind a history, in one file.

Shape letters: B histories, N items (ids from 1 to N - 1, as RecBole has them; 0 is none).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import AdapterError
from .graph import Node, run

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

# Histories that are encoded at once.
_AT_ONCE = 256


class Scorer(Protocol):
    """Scores all items behind histories; any order of magnitude, higher is likelier."""

    items: int  # N
    logits: bool  # whether scores are those of a softmax; else sums over the history, as counting models have

    def scores(self, histories: Sequence[IntArray]) -> Tensor:
        """Return (B, N) float32 scores; item 0's mean nothing. Histories are items, oldest first."""

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors, and the rest as JSON values."""


class HistoryEncoder:
    """A sequential model: its forward pass over padded histories.

    Args:
        nodes: of ``graph.trace``; takes (B, L) items, zeros behind the last one, and (B,) lengths.
        tensors: of it.
        length: L; older items are left out.
        items: N.
    """

    logits = True

    def __init__(self, nodes: list[Node], tensors: Mapping[str, Tensor], length: int, items: int) -> None:
        self.nodes, self.tensors, self.length, self.items = nodes, dict(tensors), length, items

    @torch.no_grad()
    def scores(self, histories: Sequence[IntArray]) -> Tensor:
        """See ``Scorer``; what is said of an empty history means nothing."""
        parts = [
            run(self.nodes, self.tensors, self._padded(histories[start : start + _AT_ONCE]))
            for start in range(0, len(histories), _AT_ONCE)
        ]
        return torch.cat([torch.zeros(0, self.items), *parts])

    def _padded(self, histories: Sequence[IntArray]) -> tuple[Tensor, Tensor]:
        table = np.zeros((len(histories), self.length), dtype=np.int64)
        for row, history in enumerate(histories):
            newest = history[-self.length :]
            table[row, : len(newest)] = newest
        lengths = np.array([min(max(1, len(history)), self.length) for history in histories])
        return torch.from_numpy(table), torch.from_numpy(lengths)

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See ``Scorer``."""
        return self.tensors, {"kind": "encoder", "length": self.length, "nodes": self.nodes}


class ItemMatrix:
    """An item-item model: what each item of a history, counted once, says of every other, and a constant.

    Args:
        weights: (N, N) float32, the row of an item of the history.
        constant: (N,) float32, whatever the history.
    """

    logits = False

    def __init__(self, weights: Tensor, constant: Tensor) -> None:
        self.weights, self.constant, self.items = weights, constant, len(constant)

    def scores(self, histories: Sequence[IntArray]) -> Tensor:
        """See ``Scorer``."""
        taken = torch.zeros(len(histories), self.items)
        for row, history in enumerate(histories):
            taken[row, torch.from_numpy(history)] = 1.0
        return taken @ self.weights + self.constant

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See ``Scorer``."""
        return {"weights": self.weights, "constant": self.constant}, {"kind": "matrix"}


def to_bytes(scorer: Scorer, about: Mapping[str, Any]) -> bytes:
    """Return a scorer as the content of a file.

    Args:
        scorer: to keep.
        about: more that is to be kept with it, JSON values.
    """
    from safetensors.torch import save

    tensors, own = scorer.parts()
    said = {**about, **own, "items": scorer.items}
    text = json.dumps({**said, "sha256": _digest(tensors, said)}, sort_keys=True)
    content: bytes = save(tensors, {"scorer": text})
    return content


def from_bytes(content: bytes, items: int, place: str) -> tuple[Scorer, dict[str, Any]]:
    """Return a scorer, and what was kept with it, from the content of a file; nothing in it is executed.

    Args:
        content: of ``to_bytes``.
        items: N, of the catalogue that it is to score.
        place: where it is from, for messages.

    Raises:
        AdapterError: it is damaged, or scores other items.
    """
    from safetensors.torch import load

    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about = json.loads(header["__metadata__"]["scorer"])
        if about.pop("sha256") != (digest := _digest(tensors, about)):
            raise ValueError("its content is not what was written")
        if about["items"] != items:
            raise ValueError(f"it scores {about['items'] - 1} items, wanted {items - 1}")
        scorer = _SCORERS[about["kind"]](tensors, about)
        found = scorer.scores([np.array([items - 1])])
        if found.shape != (1, items) or not found[:, 1:].isfinite().all():
            raise ValueError(f"wanted finite scores of {items - 1} items")
    except Exception as error:  # torch and safetensors raise whatever a damaged file leads them to
        raise AdapterError(f"{place}: not a retriever of this catalogue ({error})") from error
    return scorer, {**about, "sha256": digest}


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _encoder(tensors: dict[str, Tensor], about: Mapping[str, Any]) -> Scorer:
    return HistoryEncoder(about["nodes"], tensors, about["length"], about["items"])


def _matrix(tensors: dict[str, Tensor], about: Mapping[str, Any]) -> Scorer:
    return ItemMatrix(tensors["weights"], tensors["constant"])


_SCORERS = {"encoder": _encoder, "matrix": _matrix}
