"""Pre-split rows for RecBole's own sequential models, which read histories as RecBole itself makes them.

RecBole cuts a history to the setting ``MAX_ITEM_LIST_LENGTH`` when it makes the rows, but takes those of
benchmark files as they are: a longer one overruns the position embedding, and an empty one asks for the
output at place -1.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from recbole import data
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import ModelType

logger = logging.getLogger(__name__)


def newest_history(rows: Interaction, list_field: str, length_field: str, most: int) -> tuple[int, int]:
    """Cut the histories in ``rows`` to their newest ``most`` items, in place.

    An empty history gets length 1: one padding item, which is all that the model can know of such a user.

    Args:
        rows: with ``list_field`` (n, W), items oldest first, then zeros; and ``length_field`` (n,).
        list_field: of the item ids.
        length_field: of their number.
        most: items to keep.

    Returns:
        How many histories were cut and how many were empty.
    """
    ids, lengths = rows[list_field], rows[length_field]
    width = min(most, ids.shape[1])
    place = (lengths - width).clamp(min=0)[:, None] + torch.arange(width)
    kept = ids.gather(1, place)
    rows.update(Interaction({list_field: kept, length_field: lengths.clamp(min=1, max=width)}))
    return int((lengths > width).sum()), int((lengths == 0).sum())


def fit_histories(parts: list[Any]) -> None:
    """Apply ``newest_history`` to each split of a built sequential data set, and log what it changed."""
    for part in parts:
        list_field = part.iid_field + part.config["LIST_SUFFIX"]
        most = part.config["MAX_ITEM_LIST_LENGTH"]
        cut, empty = newest_history(part.inter_feat, list_field, part.item_list_length_field, most)
        if cut or empty:
            logger.warning(
                "data set '%s': %d of %d histories were cut to their newest %d items; %d are empty and "
                "stand as one padding item",
                part.dataset_name, cut, len(part.inter_feat), most, empty,
            )  # fmt: skip


class StockSequences(SequentialDataset):
    """RecBole's sequential data set with histories that every stock model can read."""

    def build(self) -> list[StockSequences]:
        parts: list[StockSequences] = super().build()
        fit_histories(parts)
        return parts


def create_dataset(config: Any) -> Any:
    """Return what RecBole's ``create_dataset`` does, with histories that fit where rows come pre-split."""
    special = hasattr(data.dataset, f"{config['model']}Dataset")
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL and config["benchmark_filename"] and not special:
        return StockSequences(config)
    return data.create_dataset(config)
