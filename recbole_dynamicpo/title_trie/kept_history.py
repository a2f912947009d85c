"""One history's token tree, grown piece by piece on kept keys and values: no token passes the model twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..language_model.policy import Policy
from ..language_model.tree import KeptKeys, TreeBatch, TreeStates, tree_mask
from .title_layout import Layout
from .trie import Integers, Trie


class GrowingTree:
    """Hidden states at the nodes that a search asks for, as it asks.

    Args:
        policy: speaks, as it does when this is called.
        trie: of the catalogue.
        prompt: tokens of the history.

    Attributes:
        forwarded: tokens that passed the model, those of the prompt included.
    """

    def __init__(self, policy: Policy, trie: Trie, prompt: Sequence[int]) -> None:
        self.policy = policy
        self.trie = trie
        self.prompt = torch.tensor(prompt)
        self.keys = policy.keeps()
        self.forwarded = 0
        self._place: dict[int, int] = {}  # of a forwarded node among the kept tokens
        self._root: TreeStates | None = None

    def __call__(self, numbers: Integers) -> TreeStates:
        """Return the (n, D) states at branching nodes, each asked once and those above no later.

        Args:
            numbers: (n,) of branching nodes, in the order of the trie's nodes.
        """
        nodes = self.trie.branching[numbers]
        if self.keys is None:
            return self._anew(nodes)
        if self._root is None:
            length = len(self.prompt)
            visible = torch.ones(length, length, dtype=torch.bool).tril()
            found = self.keys.forward(self.prompt, torch.arange(length), visible)
            self._root = found._replace(states=found.states[-1:])
        new = self._missing(nodes)
        states = self._root.states
        if new:
            states = torch.cat([states, self._forward(self.keys, new).states])
        place = {0: 0, **{node: 1 + at for at, node in enumerate(new)}}
        self.forwarded = self.keys.forwarded
        return self._root._replace(states=states[[place[node] for node in nodes.tolist()]])

    def _missing(self, nodes: Integers) -> list[int]:
        """Return the nodes at or above ``nodes`` that were not forwarded yet, in preorder."""
        found: set[int] = set()
        for node in nodes.tolist():
            while node > 0 and node not in self._place and node not in found:
                found.add(node)
                node = int(self.trie.parent[node])
        return sorted(found)

    def _forward(self, keys: KeptKeys, new: list[int]) -> TreeStates:
        visible = torch.zeros(len(new), keys.kept + len(new), dtype=torch.bool)
        visible[:, : len(self.prompt)] = True
        for at, node in enumerate(new):
            self._place[node] = keys.kept + at
            while node > 0:
                visible[at, self._place[node]] = True
                node = int(self.trie.parent[node])
        ids = torch.from_numpy(self.trie.token[new].astype(np.int64))
        depth = torch.from_numpy(self.trie.depth[new].astype(np.int64))
        return keys.forward(ids, len(self.prompt) - 1 + depth, visible)

    def _anew(self, nodes: Integers) -> TreeStates:
        """Return the states from passes over the whole prompt, for a model that keeps nothing."""
        new = self._missing(nodes)
        length = len(self.prompt)
        order = torch.tensor(new, dtype=torch.int64)
        ids = torch.cat([self.prompt, torch.from_numpy(self.trie.token[new].astype(np.int64))])
        depth = torch.from_numpy(self.trie.depth[new].astype(np.int64))
        positions = torch.cat([torch.arange(length), length - 1 + depth])
        end = torch.full((len(ids),), len(ids))
        end[length:] = length + torch.searchsorted(order, self._behind(order))
        place = {0: length - 1, **{node: length + at for at, node in enumerate(new)}}
        read = torch.tensor([place[node] for node in nodes.tolist()])
        self.forwarded += len(ids)
        batch = TreeBatch(ids[None], positions[None], end[None], torch.tensor([len(ids)]), read)
        return self.policy.tree_states(batch)

    def _behind(self, nodes: Tensor) -> Tensor:
        """Return the first node of the trie behind each node's descendants."""
        depth, size = self.trie.depth, len(self.trie.depth)
        found = []
        for node in nodes.tolist():
            behind = node + 1
            while behind < size and depth[behind] > depth[node]:
                behind += 1
            found.append(behind)
        return torch.tensor(found, dtype=torch.int64)


def states_in_chunks(policy: Policy, prompt: Sequence[int], layout: Layout, limit: int) -> TreeStates:
    """Return the (S, D) states of a layout with one query, a bounded number of nodes a pass.

    Args:
        policy: speaks, as it does now; its backbone shares prompts.
        prompt: tokens of the history.
        layout: on the CPU.
        limit: nodes a pass, at least 1.
    """
    keys = policy.keeps()
    assert keys is not None, "a backbone that shares no prompt keeps no keys"
    length, nodes = len(prompt), layout.nodes
    found = keys.forward(
        torch.tensor(prompt), torch.arange(length), torch.ones(length, length, dtype=torch.bool).tril()
    )
    wanted = [found.states[-1:]]
    places = layout.source.unique()
    held = torch.zeros(0, dtype=torch.int64)
    for chunk in nodes.chunks(limit):
        kept = torch.cat([torch.arange(length), length + torch.searchsorted(held, chunk.carried)])
        keys.keep(kept)
        own = torch.arange(chunk.start, chunk.stop)
        held = torch.cat([chunk.carried, own])
        visible = torch.cat(
            [torch.ones(len(own), length, dtype=torch.bool), tree_mask(own, held, nodes.end[held])], dim=1
        )
        found = keys.forward(nodes.token[own], length - 1 + nodes.depth[own], visible)
        wanted.append(found.states[places[(places >= chunk.start) & (places < chunk.stop)] - chunk.start])
    states = torch.cat(wanted)
    place = torch.searchsorted(places[places >= 0], layout.source)
    return found._replace(states=states[torch.where(layout.source >= 0, 1 + place, 0)])
