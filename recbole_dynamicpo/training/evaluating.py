"""Evaluation on RecBole's loaders and metrics, with the rank of every row kept beside them.

Every table of this package is made this way: rows with candidates, scores of the candidates, settled scores
(``evaluation.scores``), ranks. RecBole's sampled modes (uniN, popN) are turned into rows with candidates
first, so that they too are ranked by titles and by the one rule for ties.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader, NegSampleEvalDataLoader
from recbole.data.interaction import Interaction
from recbole.evaluator import Collector
from recbole.trainer import Trainer
from recbole.trainer import trainer as recbole_trainer
from torch import Tensor

from ..dataset.columns import CANDIDATE_IDS, ROW_ID, TEMPLATE
from ..dataset.dataset import DynamicPODataset
from ..dataset.sampling import row_generator
from ..evaluation.exposure import Exposure
from ..evaluation.scores import popularity_scores, ranks_of, settle, tie_draws
from ..parallel import here
from ..storage import sha256_json
from .whole_catalogue import Scores, WholeCatalogue

logger = logging.getLogger(__name__)


class Ranked(NamedTuple):
    """What an evaluation found.

    Attributes:
        result: RecBole's metrics.
        ranks: (n,) 1-based rank of the item chosen among its candidates.
        row_ids: (n,) the rows that they belong to.
        users: (n,) whose they are.
        chance: hit rate of a random choice at the first place.
        rows: digests of what was ranked.
        logps: (n,) log-probability of the item chosen among all titles, nats; None where there is none.
        shown: how often each title was among the first of a row; None of candidates.
    """

    result: dict[str, Any]
    ranks: np.ndarray[Any, Any]
    row_ids: np.ndarray[Any, Any]
    users: np.ndarray[Any, Any]
    chance: float
    rows: dict[str, str]
    logps: np.ndarray[Any, Any] | None = None
    shown: Exposure | None = None

    @classmethod
    def of(cls, data: DynamicPODataset, ranks: Tensor, result: dict[str, Any]) -> Ranked:
        """Return what was found on all rows of ``data``."""
        rows = data.inter_feat
        present = (rows[CANDIDATE_IDS] > 0).sum(dim=1)
        chance = float((1 / present).mean())
        whose = (rows[ROW_ID].numpy(), rows[data.uid_field].numpy())
        return cls(result, ranks.cpu().numpy(), *whose, chance, row_digests(data))


class RankingCollector(Collector):
    """RecBole's collector, without its stumble over metrics that need plain numbers or counters.

    RecBole 1.2.1 moves everything that it collected to the CPU, also the item counts of ItemCoverage,
    GiniIndex, ShannonEntropy, AveragePopularity and TailPercentage, which are no tensors.
    """

    def get_data_struct(self) -> Any:
        """Return what was collected for the metrics, and start anew."""
        collected = self.data_struct._data_dict
        plain = {key: value for key, value in collected.items() if not isinstance(value, Tensor)}
        for key in plain:
            del collected[key]
        result = super().get_data_struct()
        collected.update(plain)
        result._data_dict.update(plain)
        return result


class RankingTrainer(Trainer):
    """RecBole's trainer, whose evaluation ranks the candidates of each row and keeps every rank.

    Attributes:
        ranked_data: the rows that are being ranked.
    """

    ranked_data: DynamicPODataset

    def __init__(self, config: Any, model: Any) -> None:
        # RecBole looks whether it is there, then makes it, and fails where another process did so in between.
        Path(config["checkpoint_dir"]).mkdir(parents=True, exist_ok=True)
        with _without_log() if not here().first else nullcontext():
            super().__init__(config, model)
        self.eval_collector = RankingCollector(config)
        self._among_all: Callable[[Interaction], tuple[Tensor, Tensor]] | None = None

    @torch.no_grad()
    def rank_rows(
        self, rows: FullSortEvalDataLoader, show_progress: bool = False, load_best_model: bool = False
    ) -> Ranked:
        """Return RecBole's metrics of the model, and the rank of every row.

        Args:
            rows: of ``rows_to_rank``.
            show_progress: show RecBole's progress bar.
            load_best_model: let RecBole load the checkpoint that it wrote first; else the model as it is.
        """
        self.ranked_data, self._among_all = rows._dataset, None
        self._ranks: list[Tensor] = []
        self._logps: list[Tensor] = []
        result = _plain(Trainer.evaluate(self, rows, load_best_model, show_progress=show_progress))
        found = Ranked.of(rows._dataset, torch.cat(self._ranks), result)
        return found._replace(logps=torch.cat(self._logps).numpy() if self._logps else None)

    @torch.no_grad()
    def rank_among_all(
        self, rows: FullSortEvalDataLoader, catalogue: WholeCatalogue, scores: Scores
    ) -> Ranked:
        """Return RecBole's metrics and the rank of every row among all titles.

        Args:
            rows: of ``rows_to_rank``.
            catalogue: the titles.
            scores: gives rows their (B, Y) scores of titles.
        """
        most, shown = max(self.config["topk"]), catalogue.exposure()
        self._ranks = []
        self._among_all = lambda batch: catalogue.judge(batch, scores(batch), most, shown)
        result = _plain(Trainer.evaluate(self, rows, load_best_model=False))
        self._among_all = None
        found = Ranked.of(rows._dataset, torch.cat(self._ranks), result)
        return found._replace(chance=1 / catalogue.count, rows=catalogue.digests(found.rows), shown=shown)

    def _full_sort_batch_eval(self, batched_data: Any) -> Any:
        if self._among_all is not None:
            interaction, _, rows, items = batched_data
            ranks, table = self._among_all(interaction)
            self._ranks.append(ranks[rows])
            return interaction, table.to(self.device), rows, items
        batch = super()._full_sort_batch_eval(batched_data)
        interaction, scores, rows, items = batch
        scores = self.among_candidates(interaction, scores)
        self._ranks.append(ranks_of(scores, rows, items))
        if (logps := getattr(self.model, "target_logps", None)) is not None:
            self._logps.append(logps)
        return interaction, scores, rows, items

    def among_candidates(self, interaction: Interaction, scores: Tensor) -> Tensor:
        """Return the (B, item_num) scores that are ranked; here those that the model gave."""
        return scores


@contextmanager
def _without_log() -> Iterator[None]:
    """Keep RecBole's trainer from beginning a log for TensorBoard, as only a run's first process does."""
    kept = recbole_trainer.get_tensorboard
    recbole_trainer.get_tensorboard = lambda logger: None
    try:
        yield
    finally:
        recbole_trainer.get_tensorboard = kept


def _plain(result: Any) -> Any:
    """Return RecBole's metrics as numbers of Python's, which numpy 2 no longer prints as such."""
    return type(result)((name, float(value)) for name, value in result.items())


def settled(data: DynamicPODataset, interaction: Interaction, scores: Tensor) -> Tensor:
    """Return (B, C) scores of the rows' candidates with one entry a title and without ties.

    Args:
        data: that the rows are of.
        interaction: B rows with their candidates.
        scores: (B, C), -inf where a row has fewer candidates.
    """
    candidates = interaction[CANDIDATE_IDS].to(scores.device)
    draws = tie_draws(interaction[ROW_ID].to(scores.device), candidates)
    chosen = candidates == interaction[data.iid_field].to(scores.device)[:, None]
    return settle(scores, draws, data.title_numbers.to(scores.device)[candidates], chosen)


def score_table(data: DynamicPODataset, interaction: Interaction, scores: Tensor) -> Tensor:
    """Return (B, item_num) settled scores of the rows' candidates, -inf elsewhere.

    Args:
        data: that the rows are of.
        interaction: B rows with their candidates.
        scores: (B, C), -inf where a row has fewer candidates.
    """
    candidates = interaction[CANDIDATE_IDS].to(scores.device)
    table = scores.new_full((len(candidates), data.item_num), -torch.inf)
    table.scatter_(1, candidates, settled(data, interaction, scores))
    table[:, 0] = -torch.inf
    return table


def rank_candidates(data: DynamicPODataset, scores: Tensor) -> Ranked:
    """Return the ranks that scores give to the items chosen; no metrics of RecBole's.

    Args:
        data: n rows with their candidates.
        scores: (n, C) of the candidates, -inf where a row has fewer.
    """
    rows = data.inter_feat
    places = (rows[CANDIDATE_IDS] == rows[data.iid_field][:, None]).int().argmax(dim=1)
    final = settled(data, rows, scores.cpu())
    return Ranked.of(data, ranks_of(final, torch.arange(len(places)), places), {})


def rank_by_popularity(data: DynamicPODataset) -> Ranked:
    """Return the ranks that the training interactions of each item give to the items chosen."""
    candidates = data.inter_feat[CANDIDATE_IDS]
    counts = torch.from_numpy(data.popularity())
    return rank_candidates(data, popularity_scores(counts[candidates], candidates > 0))


def row_names(dataset: DynamicPODataset, ranked: Ranked) -> tuple[list[str], list[str]]:
    """Return the ids of ranked rows and of their users, as files of ranks hold them."""
    tokens = dataset.id2token(dataset.uid_field, ranked.users)
    return [str(row) for row in ranked.row_ids], [str(token) for token in tokens]


def row_digests(data: DynamicPODataset) -> dict[str, str]:
    """Return digests of what is ranked, by name: two runs may be compared where all of them agree.

    Args:
        data: n rows with their candidates, each known by the ids that its files give to users and items.
    """
    rows = data.inter_feat
    items = data.field2id_token[data.iid_field]
    shown = [items[ids[ids > 0]].tolist() for ids in rows[CANDIDATE_IDS].numpy()]
    said = {
        "users": data.id2token(data.uid_field, rows[data.uid_field].numpy()).tolist(),
        "histories": [items[history].tolist() for history in data.history(rows)],
        "targets": items[rows[data.iid_field].numpy()].tolist(),
        "candidates": [sorted(ids) for ids in shown],
        "places": shown,
    }
    order = rows[ROW_ID].argsort().tolist()
    return {name: sha256_json([values[row] for row in order])[:16] for name, values in said.items()}


def rows_to_rank(eval_data: Any, seed: int) -> FullSortEvalDataLoader:
    """Return a loader of the same rows, each with the candidates that it is ranked among.

    RecBole's uniN and popN modes draw theirs, perhaps one twice, from numpy's generator, which is seeded
    here and left as it was; each row's order is drawn by the seed.

    Args:
        eval_data: RecBole's evaluation loader of a ``DynamicPODataset``.
        seed: of the draws.
    """
    if not isinstance(eval_data, NegSampleEvalDataLoader):
        eval_data.generator.manual_seed(seed)
        return eval_data
    draws = np.random.get_state()
    np.random.seed(seed)
    eval_data.generator.manual_seed(seed)
    try:
        batches = [batch[0] for batch in eval_data]
    finally:
        np.random.set_state(draws)
    dataset: DynamicPODataset = eval_data._dataset
    row_ids = torch.cat([batch[ROW_ID] for batch in batches]).numpy()
    items = torch.cat([batch[dataset.iid_field] for batch in batches]).numpy()
    groups = [np.unique(items[row_ids == row]) for row in dataset.inter_feat[ROW_ID].tolist()]
    table = np.zeros((len(groups), max(map(len, groups))), dtype=np.int64)
    for place, (row, shown) in enumerate(zip(dataset.inter_feat[ROW_ID].tolist(), groups, strict=True)):
        table[place, : len(shown)] = row_generator(seed, 17, row).permutation(shown)
    rows = dataset.copy(dataset.inter_feat)
    columns = {**dataset.inter_feat.interaction, CANDIDATE_IDS: torch.from_numpy(table)}
    columns[TEMPLATE] = torch.zeros(len(groups), dtype=torch.int64)
    rows.inter_feat = Interaction(columns)
    return FullSortEvalDataLoader(dataset.config, rows, eval_data._sampler, shuffle=False)
