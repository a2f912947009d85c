"""A slow, obvious oracle for tries and the catalogue likelihood: prefixes as tuples, Python numbers.

Shares no code with the package. A title is a tuple of tokens with its terminator; a catalogue lists distinct
titles. A node is a prefix.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recbole_dynamicpo.title_trie.trie import Trie

Title = tuple[int, ...]
Prefix = tuple[int, ...]


def golden_cases() -> list[dict[str, Any]]:
    """Return the worked cases of the file that DYNAMICPO_GOLDEN_TRIE names; none where it is not set."""
    path = os.environ.get("DYNAMICPO_GOLDEN_TRIE")
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else []


def distinct(titles: Sequence[Title]) -> list[Title]:
    """Return the titles without repeats, by first appearance."""
    return list(dict.fromkeys(titles))


def prefixes(titles: Sequence[Title]) -> set[Prefix]:
    """Return all nodes."""
    return {title[:n] for title in titles for n in range(len(title) + 1)}


def children(titles: Sequence[Title], node: Prefix) -> list[int]:
    """Return the tokens that may follow ``node``, ascending."""
    size = len(node)
    return sorted({title[size] for title in titles if title[:size] == node and len(title) > size})


def branching(titles: Sequence[Title]) -> set[Prefix]:
    """Return the nodes with more than one child."""
    return {node for node in prefixes(titles) if len(children(titles, node)) > 1}


def forward(titles: Sequence[Title], scored: Sequence[Title]) -> set[Prefix]:
    """Return the nodes behind the prompt that need a forward pass to score some of the titles."""
    deciding = {node for node in branching(titles) if any(t[: len(node)] == node for t in scored)}
    return {node for node in prefixes(titles) if node and any(d[: len(node)] == node for d in deciding)}


def logp(
    titles: Sequence[Title],
    title: Title,
    logit: Callable[[Prefix, int], float],
    *,
    scale: float = 1.0,
    centre: Callable[[Prefix, int], float] = lambda node, token: 0.0,
    priors: Mapping[str, Sequence[float]] | None = None,
    weights: Mapping[str, float] | None = None,
) -> float:
    """Return the catalogue log-probability of one title, nats.

    Args:
        titles: the catalogue.
        title: one of it.
        logit: of a token behind a node.
        scale: s.
        centre: c of a token behind a node.
        priors: numbers of each title, by name of the prior.
        weights: a, by name.
    """
    total = []
    for size in range(len(title)):
        node = title[:size]
        values = {}
        for token in children(titles, node):
            value = scale * (logit(node, token) - centre(node, token))
            for name, p0 in (priors or {}).items():
                share = _mass(titles, p0, (*node, token)) / _mass(titles, p0, node)
                value += (weights or {})[name] * math.log(share)
            values[token] = value
        top = max(values.values())
        log_sum = top + math.log(math.fsum(math.exp(value - top) for value in values.values()))
        total.append(values[title[size]] - log_sum)
    return math.fsum(total)


def _mass(titles: Sequence[Title], p0: Sequence[float], node: Prefix) -> float:
    return math.fsum(p for title, p in zip(titles, p0, strict=True) if title[: len(node)] == node)


def prefix(trie: Trie, node: int) -> Prefix:
    """Return the tokens that lead to a node, by walking from it to the root."""
    tokens = []
    while node > 0:
        tokens.append(int(trie.token[node]))
        node = int(trie.parent[node])
    return tuple(reversed(tokens))


def edge_values(trie: Trie, value: Callable[[Prefix, int], float]) -> np.ndarray:
    """Return (E,) ``value(node, token)`` of every edge of a trie."""
    pairs = zip(trie.branching[trie.edge_from], trie.token[trie.edge_node], strict=True)
    return np.array([value(prefix(trie, int(node)), int(token)) for node, token in pairs])
