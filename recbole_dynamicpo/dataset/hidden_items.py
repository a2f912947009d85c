"""Items that training never sees, so that a run can say how well it ranks titles that nobody took yet."""

from __future__ import annotations

from typing import Any

from ..errors import SettingsError
from .row_order import order_keys

# What RecBole's leave-one-out takes of each user for validation and test: the last two.
_HELD_OUT = 2
_SPLIT = {"LS": "valid_and_test"}


def hide_items(data: Any) -> list[str]:
    """Drop the hidden items' interactions that training would see; those that are held out stay.

    Which items are hidden is drawn by their ids and the seed: setting ``hidden_items`` is their share.

    Args:
        data: a ``DynamicPODataset`` whose interactions are a data frame, each user's in their final order.

    Returns:
        A note on the figures, or none.

    Raises:
        SettingsError: the split is another than RecBole's leave-one-out.
    """
    share = data.settings.hidden_items
    if not share:
        return []
    split = data.config["eval_args"]["split"]
    if data.benchmark_filename_list is not None or split != _SPLIT or data.time_field not in data.inter_feat:
        got = "files that are split already" if data.benchmark_filename_list is not None else f"split {split}"
        raise SettingsError(f"hidden_items: got {share} with {got}; wanted times and the split {_SPLIT}")
    names = [str(name) for name in data.field2id_token[data.iid_field]]
    place = order_keys([""] * len(names), names, data.settings.seed).argsort(kind="stable").argsort()
    hidden = place < share * len(names)
    hidden[0] = False  # no item
    rows = data.inter_feat
    held_out = rows.groupby(data.uid_field).cumcount(ascending=False).to_numpy() < _HELD_OUT
    dropped = hidden[rows[data.iid_field].to_numpy()] & ~held_out
    data.inter_feat = rows[~dropped]
    return [
        f"hidden from training: {int(hidden.sum())} items, {int(dropped.sum())} interactions "
        f"(seed {data.settings.seed})"
    ]
