"""What objectives ask for beside log-probabilities: ratings, times and lengths of the titles scored."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from ..dataset.dataset import DynamicPODataset
from ..dataset.row_order import EXACT_FLOAT32
from ..dataset.sampling import FloatArray, IntArray
from ..dataset.windows import chain_values
from ..errors import SettingsError
from ..objectives.strategies import Objective
from .catalogue import CatalogueLikelihood
from .vocabulary import VocabularyLikelihood

_DAY = 86_400.0  # seconds


class Extras:
    """Makes the tensors that an objective ``needs``.

    What a user did not take has no rating and no time, so negatives get the middle of the training rows'
    scale and inf.

    Args:
        data: the built data set.
        likelihood: that scores its rows.
        objective: that asks.

    Raises:
        SettingsError: the data set has no such column, or no order in time.
    """

    def __init__(
        self,
        data: DynamicPODataset,
        likelihood: VocabularyLikelihood | CatalogueLikelihood,
        objective: Objective,
    ) -> None:
        self.data, self.likelihood = data, likelihood
        self.needs = objective.needs if data.settings.epochs else ()  # nobody asks without its stage
        self.rating, self.time = data.config["RATING_FIELD"], data.time_field
        self._suffix, self._asks = data.config["LIST_SUFFIX"], type(objective).__name__
        dense = data.settings.positions == "all"
        lists = {"ratings": dense, "times": True}  # whether those of histories are read too
        for name, field in (("ratings", self.rating), ("times", self.time)):
            if name in self.needs:
                self._want(name, [field, field + self._suffix] if lists[name] else [field])
        if "times" in self.needs:
            self._check_clock()

    def of_rows(self, rows: Interaction, items: Tensor, terms: Tensor) -> dict[str, Tensor]:
        """Return (B, 1 + K) tensors of rows by name.

        Args:
            rows: B rows.
            items: (B, 1 + K) the item chosen and the negatives, 0 where there is none.
            terms: (B, 1 + K) that log-probabilities sum over.
        """
        own = {}
        if "ratings" in self.needs:
            own["ratings"] = rows[self.rating].cpu().double()
        if "times" in self.needs:
            own["times"] = self._gaps(rows)
        found = self._beside(own, items.shape[1])
        if "lengths" in self.needs:
            found["lengths"] = terms
            if isinstance(self.likelihood, CatalogueLikelihood):
                found["lengths"] = self._decisions(self.likelihood.numbers[items.numpy()])
        return found

    def of_windows(self, rows: Interaction) -> dict[str, Tensor]:
        """Return (P, 1 + K) tensors of the positions of windows by name."""
        assert isinstance(self.likelihood, CatalogueLikelihood)
        windows = self.likelihood.windows
        spans, titles = windows.spans(rows), windows.titles(rows)
        own = {}
        for name in self.needs:
            if name != "lengths":
                values = self._of_chains[name]
                own[name] = torch.from_numpy(np.concatenate([values[c][a:b] for c, a, b in spans]))
        found = self._beside(own, titles.shape[1])
        return found | ({"lengths": self._decisions(titles)} if "lengths" in self.needs else {})

    def _beside(self, own: dict[str, Tensor], width: int) -> dict[str, Tensor]:
        """Return (n, width) tensors: what is known of the positives, and what stands for it in negatives."""
        found = {}
        for name, values in own.items():
            unknown = self._middle if name == "ratings" else torch.inf
            found[name] = torch.full((len(values), width), unknown, dtype=torch.float64)
            found[name][:, 0] = values
        return found

    def _decisions(self, titles: IntArray) -> Tensor:
        known = torch.from_numpy(np.append(self._lengths, 0))  # the last one, which -1 asks for, is no title
        return known[torch.from_numpy(titles)]

    @cached_property
    def _lengths(self) -> IntArray:
        assert isinstance(self.likelihood, CatalogueLikelihood)
        return self.likelihood.scorer.trie.decisions()

    @cached_property
    def _middle(self) -> float:
        ratings = self.data.built["train"].inter_feat[self.rating]
        return float(ratings.min() + ratings.max()) / 2

    @cached_property
    def _of_chains(self) -> dict[str, list[FloatArray]]:
        """Return ratings and days since the title before, of each training sequence."""
        found = {}
        if "ratings" in self.needs:
            found["ratings"] = chain_values(self.data, self.rating)
        if "times" in self.needs:
            seconds = map(self._seconds, chain_values(self.data, self.time))
            found["times"] = [np.diff(own, prepend=own[:1]).clip(min=0) / _DAY for own in seconds]
        return found

    def _gaps(self, rows: Interaction) -> Tensor:
        """Return (B,) days between the last title of a row's history and the one chosen."""
        lengths = rows[self.data.item_list_length_field].cpu()
        before = rows[self.time + self._suffix].cpu().gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0]
        now, then = (self._seconds(times.double().numpy()) for times in (rows[self.time].cpu(), before))
        gaps = torch.from_numpy((now - then).clip(min=0) / _DAY)
        return torch.where(lengths > 0, gaps, 0.0)

    def _seconds(self, times: FloatArray) -> FloatArray:
        """Return what a time column says, in seconds."""
        return times if self.data.clock is None else self.data.clock[times.astype(np.int64)]

    def _want(self, name: str, fields: list[str]) -> None:
        there = self.data.built["train"].inter_feat.interaction
        missing = [field for field in fields if field not in there]
        if missing:
            raise SettingsError(
                f"objective {self._asks} needs {name}, but the training rows of data set "
                f"'{self.data.dataset_name}' have no column '{missing[0]}'; wanted it in the .inter file and "
                f"in load_col (there are {', '.join(sorted(there))})"
            )

    def _check_clock(self) -> None:
        clock, order = self.data.clock, self.data.settings.history_order
        if order == "shuffled":
            raise SettingsError(
                f"history_order: got shuffled, wanted time, as objective {self._asks} needs times"
            )
        if clock is not None and len(clock) > EXACT_FLOAT32:
            raise SettingsError(
                f"objective {self._asks} needs times, but data set '{self.data.dataset_name}' has "
                f"{len(clock)} of them; wanted at most {EXACT_FLOAT32}"
            )
