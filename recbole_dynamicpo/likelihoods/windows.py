"""Log-probabilities at all positions of windows: of their titles, and of negatives that branch off."""

from __future__ import annotations

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from ..dataset.columns import CHAIN, NEGATIVES, START, STOP, TOKENS
from ..dataset.dataset import DynamicPODataset
from ..dataset.sampling import IntArray
from ..errors import SettingsError
from ..language_model.tree import TreeBatch
from ..parallel import here
from ..scoring.scorer import in_passes, speak
from ..serving.catalogue_ranking import COUNTS
from ..title_trie.catalogue_scorer import CatalogueScorer
from ..title_trie.fitted_counts import Said
from ..title_trie.prior import Histories
from ..title_trie.trunk import AskedTitles
from .vocabulary import Asked, PassSize, row_hash


def size_of(batch: TreeBatch) -> PassSize:
    """Return how much a pass over token trees forwards."""
    return PassSize(batch.tokens(), len(batch.length), batch.padded_tokens())


class WindowScores:
    """Scores windows by a catalogue likelihood.

    Args:
        dataset: whose training sequences they are cut from.
        scorer: of its catalogue.
        numbers: (item_num,) the trie's number of each item's title.
        longest: titles of a history that priors are asked about, as evaluation has them.
        pool: likely titles that hard negatives are drawn from.
        identity: of all that scores depend on beside adapter and rows.
    """

    def __init__(
        self,
        dataset: DynamicPODataset,
        scorer: CatalogueScorer,
        *,
        numbers: IntArray,
        longest: int,
        pool: int,
        identity: tuple[str, ...],
    ) -> None:
        self.dataset, self.scorer, self.numbers = dataset, scorer, numbers
        self.longest, self.pool, self.identity = longest, pool, identity
        self.collator = scorer.collator
        titles = dataset.catalogue.titles
        self.title_tokens = [[], *map(self.collator.title_ids, titles)]  # of each item

    @property
    def head(self) -> list[int]:
        """Return the tokens before a history.

        Raises:
            SettingsError: the prompt's first template does not end with the history.
        """
        found = self.collator.head(0)
        if found is None:
            raise SettingsError(
                "positions: all wants a template that ends with {history:...}, as 'sequence' does; got the "
                f"first of {self.collator.templates.source}"
            )
        return found

    def lay_out(self, rows: Interaction) -> Asked:
        """Return (P, 1 + K) titles at all positions of windows; see ``Likelihood``."""
        asked = self._asked(rows).ready()
        present = torch.from_numpy(self.titles(rows) >= 0)
        return Asked(asked, present.long(), present, size_of(asked.batch))

    def _asked(self, rows: Interaction) -> AskedTitles:
        trunks, row, place, histories = self._trunks(rows)
        return self.scorer.trunks(trunks, row, place, self.titles(rows), histories)

    @torch.no_grad()
    def said(self, rows: Interaction) -> list[Said]:
        """Return what the policy, its mean opinion taken out, and the priors say at windows' positions.

        The processes of a run take turns at the passes.
        """
        policy, processes, layouts, found = self.scorer.policy, here(), [], {}
        training = policy.training
        policy.eval()
        for number, chosen in enumerate(self.scorer.budget.split(rows[TOKENS].tolist())):
            part = rows[chosen]
            asked = self._asked(part)
            layouts.append(asked.layout)
            if processes.has_turn(number):
                products, ratios, where = self.scorer.experts(asked)
                own = self.scorer.mixtures["policy"].centred(products, where.edges.edge)
                ratios = ratios.expand(-1, own.shape[1])  # (0, 1) where there are no priors
                found[number] = torch.cat([own, ratios]).cpu()
        policy.train(training)
        everywhere = processes.merge(found)
        return [Said(everywhere[number], layout) for number, layout in enumerate(layouts)]

    def spans(self, rows: Interaction) -> list[tuple[int, int, int]]:
        """Return chain, start and stop of each window."""
        columns = (rows[name].tolist() for name in (CHAIN, START, STOP))
        return list(zip(*columns, strict=True))

    def _trunks(self, rows: Interaction) -> tuple[list[list[int]], IntArray, IntArray, Histories]:
        """Return each window as a trunk, and row, place and history of its positions."""
        chains, trunks, place, row, histories, users = self.dataset.chains, [], [], [], [], []
        for number, (chain, start, stop) in enumerate(self.spans(rows)):
            items = chains.items[chain]
            trunk, numbers = [*self.head], self.numbers[items]
            for position in range(start, stop):
                place.append(len(trunk) - 1)
                row.append(number)
                histories.append(numbers[max(0, position - self.longest) : position])
                users.append(int(chains.users[chain]))
                trunk += self.title_tokens[items[position]]
            trunks.append(trunk)
        asked = Histories(histories, np.array(users, dtype=np.int64))
        return trunks, np.array(row), np.array(place), asked

    def titles(self, rows: Interaction) -> IntArray:
        """Return (P, 1 + K) numbers of the titles at windows' positions and of negatives; -1 for none."""
        chains, parts = self.dataset.chains, []
        for number, (chain, start, stop) in enumerate(self.spans(rows)):
            mine = self.numbers[chains.items[chain][start:stop]][:, None]
            if NEGATIVES in rows.interaction:
                others = self.numbers[rows[NEGATIVES][number, : stop - start].numpy()]
                mine = np.concatenate([mine, np.where(others == mine, -1, others)], axis=1)
            parts.append(mine)
        return np.concatenate(parts)

    def keys(self, rows: Interaction) -> list[str]:
        """Return a hash a window of everything but the adapter that its log-probabilities depend on."""
        kept, chains = [], self.dataset.chains
        for number, (chain, start, stop) in enumerate(self.spans(rows)):
            before = self.numbers[chains.items[chain][:stop]].tolist()
            negatives = self.numbers[rows[NEGATIVES][number, : stop - start].numpy()].tolist()
            user = int(chains.users[chain])
            own = [self.head, self.longest, user, start, before, negatives]
            kept.append(row_hash([*self.identity, *own]))
        return kept

    @torch.no_grad()
    def reference_logps(self, rows: Interaction, window: int) -> Tensor:
        """Return (n, W * (1 + K)) log-probabilities of windows by the reference, 0 where there is none."""
        policy, width = self.scorer.policy, window * (1 + rows[NEGATIVES].shape[2])
        found = torch.zeros(len(rows), width, dtype=torch.float64)

        def score(chosen: list[int]) -> dict[str, Tensor] | None:
            part = rows[torch.tensor(chosen)]
            size = (len(chosen), int(part[TOKENS].max()) * len(chosen))
            asked = self._asked(part)
            return speak(
                policy, ["reference"], lambda voice: self.scorer.logps(asked, voice).double().cpu(),
                self.scorer.budget, size,
            )  # fmt: skip

        training = policy.training
        policy.eval()
        for chosen, said in in_passes(rows[TOKENS].tolist(), self.scorer.budget, score):
            sizes = (rows[STOP] - rows[START])[torch.tensor(chosen)].tolist()
            for row, logps in zip(chosen, said["reference"].split(sizes), strict=True):
                found[row, : logps.numel()] = logps.flatten()
        policy.train(training)
        return found

    def hard_pool(self, chain: int, positions: IntArray) -> IntArray:
        """Return (P, pool) items that the fitted counts find most likely, best first, the user left out."""
        chains, size, trie = self.dataset.chains, self.pool, self.scorer.trie
        numbers = self.numbers[chains.items[chain]]
        taken = [numbers[max(0, at - self.longest) : at] for at in positions.tolist()]
        asked = Histories(taken, np.full(len(taken), int(chains.users[chain])))
        place = (np.arange(len(taken))[:, None], trie.title_edge[None])
        weights = self.scorer.mixtures[COUNTS].weights.tolist()
        pairs = zip(weights, self.scorer.priors, strict=True)
        likely = sum(weight * np.log(prior(asked).masses(*place)) for weight, prior in pairs)
        best = np.argsort(-likely, axis=1, kind="stable")[:, :size]
        found: IntArray = trie.item_order[trie.item_start[best]] + 1
        return found
