"""What a language model has to beat: popularity and a stock sequential model on the very same candidates.

One configuration serves both sides. The rows, their candidates and the metrics follow the defaults of
DynamicPO, so a baseline ranks exactly what a DynamicPO run of the same settings ranks; how the stock model
is built and trained follows RecBole.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from recbole.data import data_preparation
from recbole.data.interaction import Interaction
from recbole.utils import ModelType, get_local_time, get_model, init_logger, init_seed

from ..dataset.columns import CANDIDATE_IDS
from ..dataset.dataset import DynamicPODataset
from ..errors import SettingsError
from ..evaluation.exposure import KEY, beyond_lines
from ..evaluation.ranks import write_ranks
from ..evaluation.report import REPORT_FILE, VIEWS, Contestant, render, summarize
from ..names import MODEL_NAMES
from ..settings import properties_folder
from ..storage import write_json
from ..training.contestants import all_by_counting, rank_by_counting
from ..training.evaluating import (
    Ranked,
    RankingTrainer,
    rank_by_popularity,
    row_names,
    rows_to_rank,
    score_table,
)
from ..training.reporting import beyond_of, segments_of
from ..training.whole_catalogue import Scores, WholeCatalogue
from .config import PlainConfig, check_model, refuse_pickles
from .defaults import check_settings, load_times, read_dataset_defaults
from .registration import register
from .stock_histories import fit_histories

# RecBole's 300 epochs take SASRec half a day on ml-100k and two cores; validation stops it long before.
BOUNDED = {"epochs": 10, "stopping_step": 2}


class BaselineConfig(PlainConfig):
    """A stock model's configuration with DynamicPO's defaults for all but the model and its training."""

    def _read_more_defaults(self, dataset: str) -> None:
        stock = dict(self.internal_config_dict)
        self._update_internal_config_dict(str(properties_folder() / "model" / "DynamicPO.yaml"))
        for key in self.parameters["Training"]:
            if key in stock:
                self.internal_config_dict[key] = stock[key]
        self.internal_config_dict |= BOUNDED
        load_times(self.internal_config_dict)
        read_dataset_defaults(self, dataset)
        loss = self.external_config_dict.get("loss_type", stock.get("loss_type"))
        if loss == "CE":  # RecBole refuses its own default of one negative with this loss
            self.internal_config_dict["train_neg_sample_args"] = None

    def _check(self) -> None:
        check_settings(self, stock=True)


class BaselineDataset(DynamicPODataset):
    """DynamicPO's rows and candidates, with histories that a stock model can read."""

    def build(self) -> list[DynamicPODataset]:
        parts = super().build()
        fit_histories(parts)
        return parts


class CandidateTrainer(RankingTrainer):
    """RecBole's trainer whose evaluation ranks only the candidates of each row.

    Attributes:
        ranked: what the last evaluation found.
    """

    ranked: Ranked

    def title_scores(self, catalogue: WholeCatalogue) -> Scores:
        """Return what gives rows the model's scores of all titles."""

        def scores(rows: Interaction) -> torch.Tensor:
            found = self.model.full_sort_predict(rows.to(self.device))
            return catalogue.of_items(found.view(len(rows), -1).cpu())

        return scores

    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: str | None = None,
        show_progress: bool = False,
    ) -> Any:
        """Return RecBole's metrics over the candidates."""
        if not eval_data:
            return None
        rows = rows_to_rank(eval_data, self.config["seed"])
        self.ranked = self.rank_rows(rows, show_progress, load_best_model)
        return self.ranked.result

    def among_candidates(self, interaction: Interaction, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores with all but the row's candidates left out, settled."""
        candidates = interaction[CANDIDATE_IDS].to(scores.device)
        shown = scores.gather(1, candidates).masked_fill(candidates == 0, -torch.inf)
        return score_table(self.ranked_data, interaction, shown)


@dataclass(frozen=True)
class Baselines:
    """What ``run_baselines`` found.

    Attributes:
        contestants: popularity, rules where lists are published, counting models, the stock model.
        everything: all but the rules, their ranks among all titles; none where settings do not ask for them.
        result: RecBole's own metrics of the stock model over the candidates.
        table: both as text.
        folder: where their ranks lie, a folder each.
    """

    contestants: list[Contestant]
    everything: list[Contestant]
    result: Mapping[str, float]
    table: str
    folder: Path


def run_baselines(
    dataset: str,
    config_files: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    model: str | None = "SASRec",
) -> Baselines:
    """Rank the test rows of a data set by counting and by a stock model, both learned from its training rows.

    The stock model sees all training and validation rows, whatever part of them DynamicPO is given.

    Args:
        dataset: name of the data set.
        config_files: YAML files, later ones win. ``seed``, ``eval_rows`` and the candidates' settings must
            be those of the run to compare with; training settings are the stock model's.
        overrides: settings that win over the files.
        model: a sequential model of RecBole; None: counting alone.

    Raises:
        DynamicPOError: anything wrong with settings or data.
    """
    config = _configure(dataset, config_files, overrides or {}, model or "SASRec")
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    data = BaselineDataset(config)
    train, valid, test = data_preparation(config, data)
    rows = rows_to_rank(test, config["seed"])._dataset
    found = {"popularity": rank_by_popularity(rows), **rank_by_counting(data, rows)}
    seconds, result = {}, {}
    init_seed(config["seed"], config["reproducibility"])
    trainer = CandidateTrainer(
        config, get_model(model or "SASRec")(config, train._dataset).to(config["device"])
    )
    if model:
        started = time.perf_counter()
        trainer.fit(train, valid, show_progress=config["show_progress"])
        seconds = {f"{model} training": time.perf_counter() - started}
        result, found[model] = trainer.evaluate(test), trainer.ranked
    tables = {"candidates": found}
    if "all" in data.settings.rank_among:
        tables["all"] = _among_all(trainer, data, rows_to_rank(test, config["seed"]), model)
    folder = Path(config["checkpoint_dir"]) / f"baselines-{dataset}-{get_local_time()}"
    used, total = data.subsampled()["test"]
    notes = [*data.notes, f"test rows: {used} of {total}", f"ranks: {folder}, a folder each"]
    _save(folder, data, tables, {"seconds": seconds, "notes": notes})
    contestants = {among: _contestants(ranked) for among, ranked in tables.items()}
    texts = [
        f"among {VIEWS[among].among}\n" + render(
            lines, chance=tables[among]["popularity"].chance, seconds={}, notes=[], view=VIEWS[among],
            more=list(beyond_lines(beyond_of(data, tables[among]))),
        )
        for among, lines in contestants.items()
    ]  # fmt: skip
    spent = [f"time: {name} {value:.0f} s" for name, value in seconds.items()]
    table = "\n".join([*texts, *spent, *notes])
    return Baselines(contestants["candidates"], contestants.get("all", []), result, table, folder)


def _among_all(
    trainer: CandidateTrainer, data: DynamicPODataset, rows: Any, model: str | None
) -> dict[str, Ranked]:
    """Return name -> what counting and the stock model are found to rank among all titles."""
    catalogue = WholeCatalogue(data)
    ways = dict(all_by_counting(catalogue))
    if model:
        ways[model] = trainer.title_scores(catalogue)
    return {name: trainer.rank_among_all(rows, catalogue, scores) for name, scores in ways.items()}


def _contestants(found: Mapping[str, Ranked]) -> list[Contestant]:
    return [Contestant(name, ranked.ranks, ranked.users) for name, ranked in found.items()]


def _configure(
    dataset: str, config_files: Sequence[str], overrides: Mapping[str, Any], model: str
) -> BaselineConfig:
    register()
    check_model(model)
    if model in MODEL_NAMES or get_model(model).type != ModelType.SEQUENTIAL:
        raise SettingsError(f"model: got '{model}', wanted a sequential model of RecBole such as SASRec")
    # No preference stage runs here, so K may not be what stops a small candidate list.
    config = BaselineConfig(
        model, dataset, list(config_files), {"valid_rows": 0, "num_negatives": 1, **overrides}
    )
    refuse_pickles(config)
    return config


def _save(
    folder: Path,
    data: DynamicPODataset,
    tables: Mapping[str, Mapping[str, Ranked]],
    about: Mapping[str, Any],
) -> None:
    """Write each contestant's ranks where ``compare`` reads them, and the figures as JSON."""
    report: dict[str, Any] = {**about, "segments": {}}
    for among, found in tables.items():
        view = VIEWS[among]
        for name, ranked in found.items():
            place = folder / name / view.file
            write_ranks(place, *row_names(data, ranked), ranked.ranks, ranked.rows)
        contestants, row_ids = _contestants(found), next(iter(found.values())).row_ids
        report[view.key] = [summarize(contestant, view) for contestant in contestants]
        report["segments"][among] = segments_of(data, row_ids, contestants, view)
        if beyond := beyond_of(data, found):
            report[KEY] = beyond
    write_json(folder / REPORT_FILE, report)
