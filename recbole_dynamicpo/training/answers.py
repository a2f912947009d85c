"""Scores of evaluation rows in several voices: each batch is scored once for all, by one of the processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from ..dataset.columns import CANDIDATE_IDS, ROW_ID
from ..dataset.dataset import DynamicPODataset
from ..likelihoods.catalogue import CatalogueLikelihood
from ..likelihoods.vocabulary import VocabularyLikelihood
from ..parallel import here
from ..title_trie.two_stages import in_two_stages
from .whole_catalogue import WholeCatalogue

Score = Callable[[Interaction, Sequence[str]], dict[str, Tensor]]


class Answers:
    """What a likelihood says of rows that several voices are asked about, one voice after the other.

    Args:
        likelihood: scores rows in several voices at once.
        data: the built data set that the rows are of.
    """

    def __init__(
        self, likelihood: VocabularyLikelihood | CatalogueLikelihood, data: DynamicPODataset
    ) -> None:
        self.likelihood, self.data = likelihood, data
        self._voices: tuple[str, ...] = ()
        self._batches: list[Interaction] = []
        self._place: dict[tuple[int, ...], int] = {}  # of each batch among them
        self._keeps_all = False
        self._kept: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    @contextmanager
    def together(
        self, voices: Sequence[str], batches: Sequence[Interaction], *, whole: bool = False
    ) -> Iterator[None]:
        """Score for all ``voices`` at once inside the block, where each will be asked for the same rows.

        The answers to the first voice's question are kept until the others are asked; with ``whole`` the
        scores of all titles are, until the end, and answer for candidates too.

        Args:
            voices: that will be asked.
            batches: of all rows, in the order in which they will be asked for; the processes of a run take
                turns at them, so that each is scored in the very passes of a process that is alone.
            whole: keep the scores of all titles.
        """
        self._voices, self._batches, self._keeps_all = tuple(voices), list(batches), whole
        self._place = {_key(batch): place for place, batch in enumerate(batches)}
        try:
            yield
        finally:
            self._voices, self._batches, self._keeps_all = (), [], False
            self._place, self._kept = {}, {}

    def help_out(self, among: Sequence[str]) -> None:
        """Score this process's batches for the first one, which alone ranks.

        Args:
            among: ``candidates`` and ``all``, as the first process asks for scores.
        """
        asked = {"candidates": self._of_candidates, "all": self._of_titles}
        for name in ("all",) if self._keeps_all else among:
            for start in range(0, len(self._batches), here().world):
                self._score_some(start, asked[name], self._voices)

    def candidates(self, rows: Interaction, voice: str) -> Tensor:
        """Return (B, C) log-probabilities of the rows' candidates, nats, -inf where a row has fewer."""
        if not self._keeps_all:
            return self._ask(rows, voice, self._of_candidates)
        assert isinstance(self.likelihood, CatalogueLikelihood)
        numbers = torch.from_numpy(self.likelihood.numbers[rows[CANDIDATE_IDS].cpu().numpy()])
        found = self.titles(rows, voice).gather(1, numbers.clamp(min=0))
        return found.masked_fill(numbers < 0, -torch.inf)

    def titles(self, rows: Interaction, voice: str) -> Tensor:
        """Return (B, Y) log-probabilities of all distinct titles, nats, or those of ``in_two_stages``."""
        return self._ask(rows, voice, self._of_titles)

    def _of_candidates(self, rows: Interaction, voices: Sequence[str]) -> dict[str, Tensor]:
        return self.likelihood.in_voices(rows, rows[CANDIDATE_IDS].cpu().numpy(), voices)

    def _of_titles(self, rows: Interaction, voices: Sequence[str]) -> dict[str, Tensor]:
        likelihood, count = self.likelihood, self.data.settings.first_stage
        assert isinstance(likelihood, CatalogueLikelihood)
        if not count:
            return likelihood.all_in_voices(rows, voices)
        left_out = WholeCatalogue(self.data).left_out(rows)
        return in_two_stages(likelihood.scorer, likelihood.prompt_rows(rows), voices, count, left_out)

    def _ask(self, rows: Interaction, voice: str, score: Score) -> Tensor:
        known = (voice, _key(rows))
        if known not in self._kept:
            self._find(rows, score, self._voices if voice in self._voices else (voice,))
        return self._kept[known] if self._keeps_all else self._kept.pop(known)

    def _find(self, rows: Interaction, score: Score, voices: Sequence[str]) -> None:
        """Keep the scores of rows, and with other processes those of the batches that they take with them."""
        place = self._place.get(_key(rows))
        if here().alone or place is None:
            self._keep(rows, score(rows, voices))
        else:
            self._score_some(place // here().world * here().world, score, voices)

    def _score_some(self, start: int, score: Score, voices: Sequence[str]) -> None:
        """Score a batch a process from ``start`` on, and keep what all of them found, if this one ranks."""
        processes, batches = here(), self._batches[start : start + here().world]
        own = score(batches[processes.rank], voices) if processes.rank < len(batches) else {}
        found = processes.gather({voice: scores.cpu() for voice, scores in own.items()})
        if processes.first:
            for batch, scores in zip(batches, found, strict=False):
                self._keep(batch, scores)

    def _keep(self, rows: Interaction, found: dict[str, Tensor]) -> None:
        self._kept.update({(voice, _key(rows)): scores for voice, scores in found.items()})


def _key(rows: Interaction) -> tuple[int, ...]:
    return tuple(rows[ROW_ID].tolist())
