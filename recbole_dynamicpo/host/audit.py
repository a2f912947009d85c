"""The audit of a data set as a run would use it: what its rows give away of their targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from recbole.data import data_preparation

from ..data.counting import Sequences
from ..data.give_away import GiveAway, audit_give_away
from ..data.rules import Rows
from ..training.columns import CANDIDATE_IDS
from ..training.dataset import DynamicPODataset
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
    held_out = {
        name: rows_of(rows_to_rank(loader, data.settings.seed)._dataset)
        for name, loader in (("valid", valid), ("test", test))
    }
    return audit_give_away(train_rows(data), held_out, data.item_num, data.settings.seed, data.time_ties), data.notes


def rows_of(data: DynamicPODataset) -> Rows:
    """Return the rows of one split, with the candidates that they are ranked among."""
    rows = data.inter_feat
    return Rows(data.history(rows), rows[CANDIDATE_IDS].numpy(), rows[data.iid_field].numpy())


def train_rows(data: DynamicPODataset) -> Rows:
    """Return all training rows of a built data set, with the candidates that training would show."""
    rows = data.stage_rows(0)
    return Rows(data.history(rows), rows[CANDIDATE_IDS].numpy(), rows[data.iid_field].numpy())


def train_sequences(data: DynamicPODataset) -> Sequences:
    """Return what each user took in training, in order: the first history, then every target.

    Pre-split rows that continue one another are one sequence, so that no title counts more than once.
    """
    rows = data.built["train"].inter_feat
    users, targets = rows[data.uid_field].numpy(), rows[data.iid_field].numpy()
    histories = data.history(rows)
    order = np.argsort(users, kind="stable")
    starts = np.flatnonzero(np.diff(users[order], prepend=-1))
    groups = np.split(order, starts[1:])
    of_user = {int(users[group[0]]): np.append(histories[group[0]], targets[group]) for group in groups if len(group)}
    return Sequences(data.item_num, of_user)
