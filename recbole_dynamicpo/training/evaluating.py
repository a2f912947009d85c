"""Evaluation on RecBole's loaders and metrics, with the rank of every row kept beside them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.evaluator import Collector
from torch import Tensor

from ..evaluation.ranks import RANKS_FILE, write_ranks
from ..evaluation.report import REPORT_FILE, Contestant, metric_name, render, summarize
from ..evaluation.scores import ranks_of
from ..serving.packaging import portable_backbone
from ..storage import write_json
from ..tracking.journal import Journal
from .columns import ROW_ID

logger = logging.getLogger(__name__)


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


class RankingMixin:
    """Adds ranks, the comparison of the stages and the final table to a RecBole trainer.

    Expects the attributes of ``DynamicPOTrainer``; a class of its own only to keep training and
    evaluation apart for the reader.
    """

    model: Any
    settings: Any
    config: Any
    device: Any
    run_folder: Path
    adapters: dict[str, Path]
    journal: Journal
    progress: Any
    tot_item_num: int
    _validating = False

    @property
    def final_stage(self) -> str:
        """Name of the stage whose adapter is the result."""
        raise NotImplementedError

    def _recorded(self, stage: str) -> AbstractContextManager[None]:
        raise NotImplementedError

    def _publish(self) -> None:
        raise NotImplementedError

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Mark evaluations inside the block as validation: no comparison, no table."""
        self._validating = True
        try:
            yield
        finally:
            self._validating = False

    @torch.no_grad()
    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: str | None = None,
        show_progress: bool = False,
    ) -> Any:
        """Return RecBole's metrics of the model on ``eval_data``.

        Outside of training it also ranks by popularity, by the bare backbone and by the SFT stage
        (setting ``compare_stages``), prints the final table and saves every row's rank.

        Args:
            eval_data: a RecBole evaluation loader.
            load_best_model: load the best adapter of the last stage first.
            model_file: an adapter folder to load instead.
            show_progress: show RecBole's progress bar.

        Raises:
            AdapterError: the folder to load is not an adapter for this backbone.
        """
        if not eval_data:
            return None
        if load_best_model:
            folder = Path(model_file) if model_file else self.adapters[self.final_stage]
            self.model.policy.load(folder)
            logger.info("evaluating the adapter in %s", folder)
        if self._validating:
            return self._evaluate_voice("policy", eval_data, False)[0]
        contestants = []
        with self._recorded("evaluate"):
            voices = self._voices()
            with self.model.scoring_together([voice for voice, _ in voices if voice != "popularity"]):
                for voice, name in voices:
                    result, ranks = self._evaluate_voice(voice, eval_data, show_progress)
                    contestants.append(Contestant(name, ranks))
            self._report(contestants, result)
        self._publish()
        return result

    def _voices(self) -> list[tuple[str, str]]:
        """Return who is evaluated and under which name, the final model last."""
        voices = []
        if self.settings.compare_stages:
            voices = [
                ("popularity", "popularity"),
                ("backbone", f"{portable_backbone(self.settings.backbone)} zero-shot"),
            ]
            if self.model.policy.has_reference:
                voices.append(("reference", "after SFT"))
        return [*voices, ("policy", f"after {self.config['model']}")]

    def _evaluate_voice(
        self, voice: str, eval_data: Any, show_progress: bool
    ) -> tuple[Any, np.ndarray[Any, Any]]:
        self._ranks: list[Tensor] = []
        self._row_ids: list[Tensor] = []
        draws = np.random.get_state()  # RecBole's uniN and popN modes draw candidates from it
        np.random.seed(self.settings.seed)
        eval_data.generator.manual_seed(self.settings.seed)
        try:
            with self.model.speaking_as(voice):
                result = super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)  # type: ignore[misc]
        finally:
            np.random.set_state(draws)
        return result, torch.cat(self._ranks).cpu().numpy()

    def _full_sort_batch_eval(self, batched_data: Any) -> Any:
        batch = super()._full_sort_batch_eval(batched_data)  # type: ignore[misc]
        interaction, scores, positive_rows, positive_items = batch
        self._note_ranks(scores, positive_rows, positive_items, interaction[ROW_ID][positive_rows])
        return batch

    def _neg_sample_batch_eval(self, batched_data: Any) -> Any:
        """Score a whole batch at once: RecBole would cut a user's candidates at the batch size."""
        interaction, row_index, positive_rows, positive_items = batched_data
        items = interaction[self.config["ITEM_ID_FIELD"]]
        found = self.model.predict(interaction)
        scores = torch.full((int(positive_rows[-1]) + 1, self.tot_item_num), -torch.inf)
        scores[row_index, items] = found.cpu()
        scores = scores.to(self.device)
        match = (row_index == positive_rows[:, None]) & (items == positive_items[:, None])
        row_ids = interaction[ROW_ID][match.int().argmax(dim=1)]
        self._note_ranks(scores, positive_rows, positive_items, row_ids)
        return interaction, scores, positive_rows, positive_items

    def _note_ranks(self, scores: Tensor, rows: Tensor, items: Tensor, row_ids: Tensor) -> None:
        self._ranks.append(ranks_of(scores, rows, items))
        self._row_ids.append(row_ids)

    def _report(self, contestants: list[Contestant], result: Mapping[str, Any]) -> None:
        """Print the final table and write it, the ranks and the metrics into the run folder."""
        table = render(
            contestants,
            candidates=self.settings.num_candidates,
            seconds=self.progress.seconds,
            notes=self._notes(),
        )
        logger.info("final result\n%s", table)
        summaries = [summarize(contestant) for contestant in contestants]
        report = {"contestants": summaries, "seconds": self.progress.seconds}
        write_json(self.run_folder / REPORT_FILE, report)
        row_ids = torch.cat(self._row_ids).tolist()
        dataset = self.model.dataset
        users: dict[int, int] = {}
        for phase in ("valid", "test"):
            rows = dataset.built[phase].inter_feat
            users.update(zip(rows[ROW_ID].tolist(), rows[dataset.uid_field].tolist(), strict=True))
        tokens = dataset.id2token(dataset.uid_field, np.array([users[row] for row in row_ids]))
        write_ranks(
            self.run_folder / RANKS_FILE,
            [str(row) for row in row_ids],
            [str(token) for token in tokens],
            contestants[-1].ranks,
        )
        figures = {metric_name(name): float(value) for name, value in result.items()}
        # RecBole rounds its metrics to four digits; the same ones of our own are exact.
        figures.update({key: value for key, value in summaries[-1].items() if key != "name"})
        earlier = [e for e in self.journal.entries() if (e["stage"], e["kind"]) == ("evaluate", "test")]
        self.journal.write("evaluate", len(earlier), "test", figures)

    def _notes(self) -> list[str]:
        used = self.model.dataset.subsampled()
        notes = list(self.model.dataset.notes)
        notes += [f"{phase} rows: {kept} of {total}" for phase, (kept, total) in used.items()]
        if self.model.collator.truncated_rows:
            notes.append(f"prompts that lost old history: {self.model.collator.truncated_rows}")
        folder = self.adapters[self.final_stage]
        return [
            *notes,
            f"adapters: {self.adapters['sft']} (reference), {folder} (final)",
            f'rank with it: recbole-dynamicpo rank --model {folder} --history "TITLE|TITLE" '
            '--candidates "TITLE|TITLE"',
        ]
