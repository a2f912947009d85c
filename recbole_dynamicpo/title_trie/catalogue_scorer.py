"""Log-probabilities of titles under the catalogue likelihood: of some, of all, of the best.

Everything is read off one token tree: the prompt, and behind it the nodes of the titles' trie that have
something to decide. What a history's titles are worth to the priors is asked once a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from ..language_model.packed import on_device
from ..language_model.policy import Policy
from ..language_model.tree import TreeBatch, TreeStates
from ..scoring.batches import PromptRow
from ..scoring.collate import Collator
from ..scoring.scorer import check_finite, in_passes, speak
from ..scoring.token_budget import TokenBudget
from .catalogue_likelihood import Mixture, catalogue_logps, child_products
from .kept_history import states_in_chunks
from .prior import Histories, PriorSource
from .title_layout import ChildEdges, Layout, lay_out
from .trie import Integers, Trie
from .trie_builder import build_trie
from .trunk import AskedTitles, pack_trees, pack_whole


class CatalogueScorer:
    """Scores titles of a catalogue by their share of it.

    Attributes:
        trie: of the catalogue's titles.
        number: title -> its number among the distinct ones, by first appearance.
        room: most tokens of a prompt, so that every title fits behind it.

    Args:
        policy: what speaks.
        collator: writes the prompts; its terminator ends the titles, or the end of sequence, where a title
            holds that.
        titles: (I,) of the items.
        priors: makes each prior's shares; of the trie that is built here.
        mixtures: by voice, how much the language model and the priors have to say.
        budget: of one pass.

    Raises:
        DataError: two titles have the same tokens, or one has none.
    """

    def __init__(
        self,
        policy: Policy,
        collator: Collator,
        titles: Sequence[str],
        *,
        priors: Callable[[Trie], Sequence[PriorSource]],
        mixtures: Mapping[str, Mixture],
        budget: TokenBudget,
    ) -> None:
        self.policy = policy
        self.collator = collator
        self.mixtures = mixtures
        self.budget = budget
        self.trie = build_trie(titles, collator.catalogue_tokens(titles), collator.terminator)
        self.number = {title: number for number, title in enumerate(dict.fromkeys(titles))}
        self.priors = priors(self.trie)
        deepest = int(self.trie.depth[self.trie.branching].max(initial=0))
        self.room = collator.max_length - deepest

    def prompts(self, rows: Sequence[PromptRow]) -> list[list[int]]:
        """Return the tokens of each row's prompt, with room for any title behind it.

        Raises:
            DataError: a row does not fit even without its history.
        """
        return self.collator.prompt_ids(rows, [self.room] * len(rows))

    def numbers(self, titles: Sequence[Sequence[str]]) -> Integers:
        """Return (B, C) numbers of each row's titles, -1 behind the last one."""
        found = np.full((len(titles), max(map(len, titles), default=0)), -1, np.int64)
        for row, names in enumerate(titles):
            found[row, : len(names)] = [self.number[name] for name in names]
        return found

    def logps(self, asked: AskedTitles, voice: str = "policy") -> Tensor:
        """Return (Q, C) log-probabilities in nats, with gradient; absent titles get 0.

        Args:
            asked: of ``of_rows``, or of ``trunks``.
            voice: whose mixture; the policy speaks as it is.
        """
        return self._read(asked, [voice])[voice].squeeze(0)

    def trunks(
        self,
        trunks: Sequence[Sequence[int]],
        row: Integers,
        place: Integers,
        titles: Integers,
        histories: Histories,
    ) -> AskedTitles:
        """Return what is forwarded and read for titles behind places of trunks.

        Args:
            trunks: tokens of prompts that go on with titles.
            row: (Q,) the trunk of each query.
            place: (Q,) where on it: the last token before the query's first title, which the trunk holds.
            titles: (Q, C) numbers of distinct titles, -1 where there is none.
            histories: Q, of the queries.
        """
        layout = lay_out(self.trie, titles)
        nodes = layout.nodes
        there = place[nodes.query.numpy()] + nodes.depth.numpy()
        batch = pack_trees(trunks, row, place, layout, np.where(nodes.candidate.numpy(), -1, there))
        return self._asked(batch, layout, histories)

    def histories(self, rows: Sequence[PromptRow]) -> Histories:
        """Return what priors are asked: of rows, the titles that the catalogue knows, and the user."""
        titles = [[self.number[t] for t in row.history if t in self.number] for row in rows]
        users = np.array([row.user for row in rows], np.int64)
        return Histories([np.array(one, np.int64) for one in titles], users)

    def of_rows(self, rows: Sequence[PromptRow], titles: Integers) -> AskedTitles:
        """Return what is forwarded and read for (B, C) titles behind B prompts; -1 where there is none."""
        layout = lay_out(self.trie, titles)
        prompts = self.prompts(rows)
        last = np.array([len(prompt) - 1 for prompt in prompts])
        off = np.full(len(layout.nodes.node), -1)
        batch = pack_trees(prompts, np.arange(len(rows)), last, layout, off)
        return self._asked(batch, layout, self.histories(rows))

    def _asked(self, batch: TreeBatch, layout: Layout, histories: Histories) -> AskedTitles:
        many = len(layout.source) < len(batch.read)
        return AskedTitles(batch, layout, partial(self.log_ratios, layout.edges, histories, many))

    def _read(self, asked: AskedTitles, mixtures: Sequence[str]) -> dict[str, Tensor]:
        """Return the titles' (..., Q, C) log-probabilities in several mixtures, as the policy speaks now."""
        products, ratios, where = self.experts(asked)
        said = {name: self.mixtures[name].logits(products, ratios, where.edges.edge) for name in mixtures}
        return {name: catalogue_logps(logits, where) for name, logits in said.items()}

    def experts(self, asked: AskedTitles) -> tuple[Tensor, Tensor, Layout]:
        """Return (rows, E) and (J, ...) what policy and priors say at edges, and the layout beside them."""
        batch, layout = asked.batch, asked.layout
        where = on_device(layout, self.policy.device)
        rows = max(1, len(batch.read) // max(1, len(layout.source)))  # of one layout for all
        products = self.products(self.policy.tree_states(batch, self.budget.tokens), where.edges, rows)
        ratios = asked.ratios()  # a GPU computes meanwhile
        return products, on_device(ratios.to(products.dtype), self.policy.device), where

    def products(self, found: TreeStates, edges: ChildEdges, rows: int) -> Tensor:
        """Return (rows, E) logits of the language model; the edges lie where its states do."""
        states = found.states.unflatten(0, (rows, -1))
        if (weight := self.policy.output_layer) is not None:
            return child_products(states, weight, edges)
        of_row, asked = [found._replace(states=part) for part in states], (edges.source, edges.token)
        return torch.stack([self.policy.own_logits(part, edges.start.tolist(), *asked) for part in of_row])

    def log_ratios(self, edges: ChildEdges, histories: Histories, many: bool) -> Tensor:
        """Return (J, ..., E) what each prior says at the edges."""
        queries = edges.query.numpy()[edges.source.numpy()]
        history = np.arange(len(histories.users))[:, None] if many else queries
        said = [prior(histories).log_ratios(edges, history) for prior in self.priors]
        return torch.stack(said) if said else torch.zeros(0, 1)

    @torch.no_grad()
    def in_voices(
        self, rows: Sequence[PromptRow], titles: Integers, voices: Sequence[str]
    ) -> dict[str, Tensor]:
        """Return each voice's (B, C) log-probabilities of some titles in nats, -inf where there is none.

        Raises:
            NumericsError: a log-probability is not finite.
        """
        shape = titles.shape
        sizes = [len(prompt) + shape[1] for prompt in self.prompts(rows)]

        def score(chosen: list[int]) -> dict[str, Tensor] | None:
            some = [rows[index] for index in chosen]
            asked = self.of_rows(some, titles[chosen])
            return self._spoken(asked, len(some), voices)

        found = self._collect(shape, sizes, voices, score)
        absent = torch.from_numpy(titles < 0)
        check_finite(found, ~absent)
        return {voice: logps.masked_fill(absent, -torch.inf) for voice, logps in found.items()}

    @torch.no_grad()
    def all_in_voices(self, rows: Sequence[PromptRow], voices: Sequence[str]) -> dict[str, Tensor]:
        """Return each voice's (B, Y) log-probabilities of all distinct titles in nats.

        One pass over prompt and nodes, or chunks on the prompt's keys and values where the budget asks.

        Raises:
            NumericsError: a log-probability is not finite.
        """
        prompts = self.prompts(rows)
        nodes = len(self.whole.nodes.node)

        def score(chosen: list[int]) -> dict[str, Tensor] | None:
            some = [rows[index] for index in chosen]
            batch = pack_whole([prompts[index] for index in chosen], self.whole)
            if len(some) == 1 and batch.padded_tokens() > self.budget.tokens and self.policy.keeps():
                return self._in_chunks(some[0], voices)
            return self._spoken(self._asked(batch, self.whole, self.histories(some)), len(some), voices)

        sizes = [len(prompt) + nodes for prompt in prompts]
        found = self._collect((len(rows), self.trie.num_titles), sizes, voices, score)
        check_finite(found, torch.ones(len(rows), self.trie.num_titles, dtype=torch.bool))
        return found

    @torch.no_grad()
    def mean_logits(self, rows: Sequence[PromptRow]) -> Tensor:
        """Return (E,) the bare backbone's mean logits at all edges of the trie over some histories."""
        total = torch.zeros(len(self.trie.edge_node))
        where = on_device(self.whole.edges, self.policy.device)
        with self.policy.speaking_as("backbone"):
            for row in rows:
                batch = pack_whole(self.prompts([row]), self.whole)
                states = self.policy.tree_states(batch, self.budget.tokens)
                total += self.products(states, where, 1)[0].float().cpu()
        return total[self.whole.edges.edge.argsort()] / len(rows)

    @cached_property
    def whole(self) -> Layout:
        """Return what it takes to score all titles of one history."""
        return lay_out(self.trie, np.arange(self.trie.num_titles)[None])

    def _spoken(self, asked: AskedTitles, rows: int, voices: Sequence[str]) -> dict[str, Tensor] | None:
        """Return each voice's (B, C) log-probabilities; voices that differ in the mixture share a pass."""
        mixtures: dict[str, list[str]] = {}
        for voice in voices:
            mixtures.setdefault(speaker_of(voice), []).append(voice)

        def score(speaker: str) -> Tensor:
            found = self._read(asked, mixtures[speaker])
            return torch.stack([logps.reshape(rows, -1) for logps in found.values()]).cpu()

        size = (rows, asked.batch.padded_tokens())
        found = speak(self.policy, list(mixtures), score, self.budget, size)
        if found is None:
            return None
        pairs = ((mixtures[speaker], logps) for speaker, logps in found.items())
        return {voice: part for names, logps in pairs for voice, part in zip(names, logps, strict=True)}

    def _collect(
        self,
        shape: tuple[int, ...],
        sizes: Sequence[int],
        voices: Sequence[str],
        score: Callable[[list[int]], dict[str, Tensor] | None],
    ) -> dict[str, Tensor]:
        kept = torch.promote_types(self.policy.backbone.dtype, torch.float32)
        scores = {voice: torch.zeros(shape, dtype=kept) for voice in voices}
        training = self.policy.training
        self.policy.eval()
        for chosen, found in in_passes(sizes, self.budget, score):
            for voice, logps in found.items():
                scores[voice][chosen] = logps
        self.policy.train(training)
        return scores

    def _in_chunks(self, row: PromptRow, voices: Sequence[str]) -> dict[str, Tensor]:
        """Return each voice's (1, Y) log-probabilities, from passes of bounded size."""
        (prompt,) = self.prompts([row])
        limit = max(1, self.budget.tokens - len(prompt))
        ratios, found = self.log_ratios(self.whole.edges, self.histories([row]), many=True), {}
        where = on_device(self.whole, self.policy.device)
        for voice in voices:
            with self.policy.speaking_as(speaker_of(voice)):
                states = states_in_chunks(self.policy, prompt, self.whole, limit)
                products = self.products(states, where.edges, 1)
                logits = self.mixtures[voice].logits(products, ratios, where.edges.edge)
                found[voice] = catalogue_logps(logits, where).reshape(1, -1).cpu()
        return found


def speaker_of(voice: str) -> str:
    """Return who speaks in a voice: ``policy alone`` is the policy in a mixture without priors."""
    return voice.partition(" ")[0]
