"""The audit of a data set as a run would use it: what its rows give away of their targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recbole.data import data_preparation

from ..data.give_away import GiveAway, audit_give_away
from ..dataset.dataset import DynamicPODataset
from ..training.contestants import rows_of, train_rows
from ..training.evaluating import rows_to_rank
from .config import PlainConfig, refuse_pickles


def audit_data(
    dataset: str, config_files: Sequence[str] = (), overrides: Mapping[str, Any] | None = None
) -> tuple[GiveAway, list[str]]:
    """Return what a data set gives away under the settings that shape its rows, and what is noted of it.

    All training rows are read, and all held-out ones unless ``valid_rows`` and ``eval_rows`` say otherwise.

    Args:
        dataset: its name.
        config_files: YAML files, later ones win.
        overrides: settings that win over the files.

    Raises:
        DynamicPOError: anything wrong with settings or data.
    """
    every = {"valid_rows": 0, "eval_rows": 0, "num_negatives": 1}
    config = PlainConfig("DynamicPO", dataset, list(config_files), {**every, **(overrides or {})})
    refuse_pickles(config)
    data = DynamicPODataset(config)
    _, valid, test = data_preparation(config, data)
    seed = data.settings.seed
    loaders = {"valid": valid, "test": test}
    held_out = {name: rows_of(rows_to_rank(loader, seed)._dataset) for name, loader in loaders.items()}
    in_time = data.clock is not None and data.settings.history_order == "time"
    found = audit_give_away(train_rows(data), held_out, data.item_num, seed, data.time_ties, in_time)
    return found, data.notes
