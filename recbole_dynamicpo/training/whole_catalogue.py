"""Ranks over all titles of the catalogue, for every kind of contestant, and RecBole's metrics of them.

Items of one title are one title, as everywhere. The history's titles are left out for all contestants alike,
the one chosen kept, unless ``exclude_history`` is false, which is RecBole's way for sequential models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from ..dataset.columns import ROW_ID
from ..dataset.dataset import DynamicPODataset
from ..evaluation.exposure import Exposure
from ..evaluation.report import VIEWS
from ..evaluation.scores import best_of_titles, rank_of_titles, tie_draws
from ..storage import sha256_json

Scores = Callable[[Interaction], Tensor]


class WholeCatalogue:
    """The distinct titles of a data set, as what rows are ranked among.

    Attributes:
        number: (item_num,) number of each item's title, by first appearance; -1 for no item.
        count: Y, of distinct titles.

    Args:
        data: the built data set.
    """

    def __init__(self, data: DynamicPODataset) -> None:
        self.data = data
        numbers = {title: number for number, title in enumerate(data.catalogue.distinct_titles)}
        self.number = torch.tensor([-1, *(numbers[title] for title in data.catalogue.titles)])
        self.count = len(numbers)
        self.exclude_history = data.settings.exclude_history

    def of_items(self, scores: Tensor) -> Tensor:
        """Return (B, Y) scores of titles: the highest of their items' (B, item_num) scores."""
        found = scores.new_full((len(scores), self.count), -torch.inf)
        return found.scatter_reduce(1, self.number[1:].expand(len(scores), -1), scores[:, 1:], "amax")

    def exposure(self) -> Exposure:
        """Return a count of what is shown, with nothing counted yet."""
        return Exposure(self.count, VIEWS["all"].hits)

    def taken(self) -> np.ndarray[Any, Any]:
        """Return (Y,) training interactions of each title."""
        counts = torch.from_numpy(self.data.popularity()[1:])
        return torch.zeros(self.count, dtype=counts.dtype).index_add_(0, self.number[1:], counts).numpy()

    def judge(self, rows: Interaction, scores: Tensor, most: int, shown: Exposure) -> tuple[Tensor, Tensor]:
        """Return (B,) ranks of the items chosen, and (B, item_num) a table that RecBole reads the same in.

        Args:
            rows: B rows.
            scores: (B, Y) of titles, any order of magnitude; -inf is below all.
            most: how many of the best the table holds; it holds the item chosen too.
            shown: counts the best titles of these rows.
        """
        scores = scores.cpu()
        chosen = rows[self.data.iid_field].cpu()
        target = self.number[chosen]
        draws, bearer = self._bearers(rows, chosen, target)
        left_out = self.left_out(rows)
        ranks = rank_of_titles(scores, draws, target, left_out)
        best = best_of_titles(scores, draws, left_out, min(max(most, shown.depth), self.count))
        table = torch.full((len(scores), self.data.item_num), -torch.inf)
        table.scatter_(1, chosen[:, None], 0.5)  # below all of the best, above the rest
        places = torch.arange(best.shape[1], 0, -1, dtype=table.dtype).expand(len(scores), -1)
        there = ~left_out.gather(1, best)
        table.scatter_(
            1, bearer.gather(1, best), torch.where(there, places, table.gather(1, bearer.gather(1, best)))
        )
        lengths = rows[self.data.item_list_length_field].cpu().numpy()
        shown.add(best.masked_fill(~there, -1).numpy(), lengths)
        return ranks, table

    def left_out(self, rows: Interaction) -> Tensor:
        """Return (B, Y) which titles rows are not ranked among: those of the history, but the one chosen."""
        target = self.number[rows[self.data.iid_field].cpu()]
        found = torch.zeros(len(target), self.count, dtype=torch.bool)
        if self.exclude_history:
            for row, history in enumerate(self.data.history(rows)):
                found[row, self.number[torch.from_numpy(history)]] = True
            found[torch.arange(len(target)), target] = False
        return found

    def _bearers(self, rows: Interaction, chosen: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, Y) the draw of each title, and (B, Y) the item that stands for it.

        That is the item chosen, or else the one of the title's items with the smallest draw.
        """
        items = torch.arange(1, self.data.item_num).expand(len(chosen), -1)
        draws = tie_draws(rows[ROW_ID].cpu(), items)
        draws = draws.scatter(1, chosen[:, None] - 1, torch.iinfo(torch.int64).min)
        place = self.number[1:].expand_as(draws)
        least = draws.new_full((len(chosen), self.count), torch.iinfo(torch.int64).max)
        least = least.scatter_reduce(1, place, draws, "amin")
        bearer = torch.zeros_like(least)
        stands = draws == least.gather(1, place)
        row, item = stands.nonzero(as_tuple=True)
        bearer[row, place[row, item]] = item + 1
        own = tie_draws(rows[ROW_ID].cpu(), chosen[:, None])
        return least.scatter(1, target[:, None], own), bearer

    def digests(self, rows: dict[str, str]) -> dict[str, str]:
        """Return digests of rows that are ranked among all titles, from those of rows with candidates."""
        titles = sha256_json([list(self.data.catalogue.distinct_titles), self.exclude_history])[:16]
        kept = {name: value for name, value in rows.items() if name != "places"}
        return {**kept, "candidates": titles}


def as_scores(
    count: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], catalogue: WholeCatalogue
) -> Scores:
    """Return what gives titles their scores by a counting model.

    Args:
        count: (N,) scores of items for one history of items.
        catalogue: whose titles they become scores of.
    """

    def scores(rows: Interaction) -> Tensor:
        found = [count(history) for history in catalogue.data.history(rows)]
        return catalogue.of_items(torch.from_numpy(np.stack(found)))

    return scores
