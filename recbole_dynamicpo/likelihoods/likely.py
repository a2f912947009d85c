"""The titles that a voice finds most likely at positions of training sequences, to draw negatives from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ..dataset.dataset import DynamicPODataset
from ..dataset.sampling import IntArray
from ..parallel import here
from ..scoring.batches import PromptRow
from .catalogue import CatalogueLikelihood

# Positions that are scored together, by whichever process: the same passes for any number of processes.
PART = 64


class LikelyTitles:
    """Ranks all titles behind the history of a position, as evaluation has it, but for those of the user.

    Args:
        data: the built data set.
        likelihood: of its catalogue.
    """

    def __init__(self, data: DynamicPODataset, likelihood: CatalogueLikelihood) -> None:
        self.data, self.likelihood = data, likelihood

    def top(self, places: IntArray, count: int, voice: str, stop: Callable[[], bool]) -> IntArray | None:
        """Return (P, count) items, best first, 0 behind the last one; the same in each process of a run.

        Neither titles that the user took in training are among them, nor what the user added to the priors.
        Equal scores keep the order of the catalogue.

        Args:
            places: (P, 2) training sequence and position in it.
            count: items of each.
            voice: who speaks.
            stop: asked after each part.

        Returns:
            None if a process was to stop.
        """
        processes, found, stopped = here(), {}, False
        for number, start in enumerate(range(0, len(places), PART)):
            if processes.has_turn(number) and not stopped:
                found[start] = self._part(places[start : start + PART], count, voice)
                stopped = stop()
        if processes.agree(stopped):
            return None
        everywhere = processes.merge(found)
        return np.concatenate([everywhere[start] for start in sorted(everywhere)])

    def _part(self, places: IntArray, count: int, voice: str) -> IntArray:
        chains, likelihood, rows = self.data.chains, self.likelihood, []
        trie = likelihood.scorer.trie
        banned = torch.zeros(len(places), trie.num_titles, dtype=torch.bool)
        for number, (chain, at) in enumerate(places.tolist()):
            user, before = int(chains.users[chain]), chains.items[chain][max(0, at - likelihood.longest) : at]
            rows.append(PromptRow(self.data.titles[before].tolist(), [], [], user=user))
            banned[number, torch.from_numpy(likelihood.numbers[self.data.taken(user)])] = True
        scores = likelihood.scorer.all_in_voices(rows, [voice])[voice].masked_fill(banned, -torch.inf)
        best = scores.sort(dim=1, descending=True, stable=True)
        titles, scored = best.indices[:, :count].numpy(), best.values[:, :count].numpy()
        items: IntArray = trie.item_order[trie.item_start[titles]] + 1
        return np.where(scored == -np.inf, 0, items)
