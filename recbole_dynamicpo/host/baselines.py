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

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.data import data_preparation
from recbole.trainer import Trainer
from recbole.utils import ModelType, get_local_time, get_model, init_logger, init_seed

from ..errors import SettingsError
from ..evaluation.ranks import RANKS_FILE, write_ranks
from ..evaluation.report import REPORT_FILE, Contestant, render, summarize
from ..evaluation.scores import candidate_ranks, popularity_scores, ranks_of
from ..names import MODEL_NAMES
from ..settings import properties_folder, read_dataset_defaults
from ..storage import write_json
from ..training.columns import CANDIDATE_IDS, ROW_ID
from ..training.dataset import DynamicPODataset
from ..training.evaluating import RankingCollector
from .config import PlainConfig, check_model, refuse_pickles
from .registration import register
from .stock_histories import fit_histories


class BaselineConfig(PlainConfig):
    """A stock model's configuration with DynamicPO's defaults for all but the model and its training."""

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        stock = dict(self.internal_config_dict)
        self._update_internal_config_dict(str(properties_folder() / "model" / "DynamicPO.yaml"))
        for key in self.parameters["Training"]:
            if key in stock:
                self.internal_config_dict[key] = stock[key]
        read_dataset_defaults(self, dataset)
        loss = self.external_config_dict.get("loss_type", stock.get("loss_type"))
        if loss == "CE":  # RecBole refuses its own default of one negative with this loss
            self.internal_config_dict["train_neg_sample_args"] = None


class BaselineDataset(DynamicPODataset):
    """DynamicPO's rows and candidates, with histories that a stock model can read."""

    def build(self) -> list[DynamicPODataset]:
        parts = super().build()
        fit_histories(parts)
        return parts


class CandidateTrainer(Trainer):
    """RecBole's trainer whose evaluation ranks only the candidates of each row.

    Attributes:
        ranks: (n,) 1 + candidates that score strictly higher than the item chosen; of the last evaluation.
        row_ids: (n,) the rows they belong to.
    """

    def __init__(self, config: BaselineConfig, model: Any) -> None:
        super().__init__(config, model)
        self.eval_collector = RankingCollector(config)

    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: str | None = None,
        show_progress: bool = False,
    ) -> Any:
        self._ranks: list[torch.Tensor] = []
        self._rows: list[torch.Tensor] = []
        result = super().evaluate(eval_data, load_best_model, model_file, show_progress)
        self.ranks, self.row_ids = torch.cat(self._ranks).numpy(), torch.cat(self._rows).numpy()
        return result

    def _full_sort_batch_eval(self, batched_data: Any) -> Any:
        interaction, scores, rows, items = super()._full_sort_batch_eval(batched_data)
        candidates = interaction[CANDIDATE_IDS].to(scores.device)
        shown = torch.full_like(scores, -torch.inf)
        shown.scatter_(1, candidates, scores.gather(1, candidates))
        shown[:, 0] = -torch.inf  # absent candidates
        self._ranks.append(ranks_of(shown, rows, items).cpu())
        self._rows.append(interaction[ROW_ID].cpu())
        return interaction, shown, rows, items


@dataclass(frozen=True)
class Baselines:
    """What ``run_baselines`` found.

    Attributes:
        contestants: popularity and the stock model.
        result: RecBole's own metrics of the stock model over the candidates.
        table: both as text.
        folder: where their ranks lie, a folder each.
    """

    contestants: list[Contestant]
    result: Mapping[str, float]
    table: str
    folder: Path


def run_baselines(
    dataset: str,
    config_files: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    model: str = "SASRec",
) -> Baselines:
    """Rank the test rows of a data set by popularity and by a stock model trained on its training rows.

    The stock model sees all training and validation rows, whatever part of them DynamicPO is given.

    Args:
        dataset: name of the data set.
        config_files: YAML files, later ones win. ``seed``, ``eval_rows`` and the candidates' settings must
            be those of the run to compare with; training settings are the stock model's.
        overrides: settings that win over the files.
        model: a sequential model of RecBole.

    Raises:
        DynamicPOError: anything wrong with settings or data.
    """
    config = _configure(dataset, config_files, overrides or {}, model)
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    data = BaselineDataset(config)
    train, valid, test = data_preparation(config, data)
    init_seed(config["seed"], config["reproducibility"])
    trainer = CandidateTrainer(config, get_model(model)(config, train._dataset).to(config["device"]))
    started = time.perf_counter()
    trainer.fit(train, valid, show_progress=config["show_progress"])
    seconds = {f"{model} training": time.perf_counter() - started}
    result = trainer.evaluate(test)
    contestants = [Contestant("popularity", popularity_ranks(data)), Contestant(model, trainer.ranks)]
    folder = Path(config["checkpoint_dir"]) / f"baselines-{dataset}-{get_local_time()}"
    _save(folder, data, contestants, trainer.row_ids, seconds)
    used, total = data.subsampled()["test"]
    table = render(
        contestants,
        candidates=data.settings.num_candidates,
        seconds=seconds,
        notes=[*data.notes, f"test rows: {used} of {total}", f"ranks: {folder}, a folder each"],
    )
    return Baselines(contestants, result, table, folder)


def _configure(
    dataset: str, config_files: Sequence[str], overrides: Mapping[str, Any], model: str
) -> BaselineConfig:
    register()
    check_model(model)
    # No preference stage runs here, so K may not be what stops a small candidate list.
    config = BaselineConfig(
        model, dataset, list(config_files), {"valid_rows": 0, "num_negatives": 1, **overrides}
    )
    if model in MODEL_NAMES or config["MODEL_TYPE"] != ModelType.SEQUENTIAL:
        raise SettingsError(f"model: got '{model}', wanted a sequential model of RecBole such as SASRec")
    refuse_pickles(config)
    return config


def popularity_ranks(data: DynamicPODataset) -> NDArray[np.int64]:
    """Return (n,) ranks of the test rows' items among their candidates by training interactions."""
    rows = data.built["test"].inter_feat
    candidates, chosen = rows[CANDIDATE_IDS], rows[data.iid_field].numpy()
    scores = popularity_scores(torch.from_numpy(data.popularity())[candidates], candidates > 0)
    return candidate_ranks(scores.numpy(), (candidates.numpy() == chosen[:, None]).argmax(axis=1))


def _save(
    folder: Path,
    data: DynamicPODataset,
    contestants: list[Contestant],
    row_ids: NDArray[np.int64],
    seconds: Mapping[str, float],
) -> None:
    """Write each contestant's ranks where ``compare`` reads them, and the figures as JSON."""
    rows = data.built["test"].inter_feat
    users = data.id2token(data.uid_field, rows[data.uid_field].numpy())
    for contestant in contestants:
        write_ranks(
            folder / contestant.name / RANKS_FILE, list(map(str, row_ids)), list(users), contestant.ranks
        )
    summaries = [summarize(contestant) for contestant in contestants]
    write_json(folder / REPORT_FILE, {"contestants": summaries, "seconds": dict(seconds)})
