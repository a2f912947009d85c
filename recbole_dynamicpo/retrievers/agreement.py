"""Whether a checkpoint of RecBole's fits a run: its items, its settings, and that it saw no held out row.

Nothing is known of a checkpoint but what its configuration says. Which rows it was trained on is found by
letting RecBole split the run's data set as it did then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from recbole.utils import get_model
from torch import Tensor

from ..errors import SettingsError, short
from ..settings import fields_of_settings
from .checkpoint import Checkpoint, plain, read_checkpoint
from .scorers import IntArray, Scorer, to_bytes
from .training import LEADS_TO, LENGTH, Asked, Host, by_itself, config_of, encoder_of, settings_of

# Settings of RecBole's that decide which interactions there are, and how items are numbered and rows split.
_OF_DATA = (
    *("dataset", "benchmark_filename", "field_separator", "seq_separator", "additional_feat_suffix"),
    *("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "load_col", "unload_col", "alias_of_user_id"),
    *("alias_of_item_id", "rm_dup_inter", "val_interval", "filter_inter_by_user_or_item"),
    *("user_inter_num_interval", "item_inter_num_interval", "normalize_field", "normalize_all"),
    *("discretization", "numerical_features", "preload_weight"),
)
_OF_SPLIT = ("split", "order", "group_by")
# Settings of ours that order and drop interactions; the command ``baselines`` trains by them.
_OF_ORDER = ("time_ties", "history_order", "hidden_items")
_OURS = "BaselineConfig"
_AGREE = (
    "RecBole itself orders times that are equal, or that it cannot tell apart as float32, as the file has "
    "them; wanted time_ties=file, history_order=time, hidden_items=0 and a file in the order of time before "
    "RecBole trains on it (which numbers items by the file), or a checkpoint that recbole-dynamicpo "
    "baselines trained on the rows of this run"
)


def adopt(path: str, asked: Asked, host: Host) -> tuple[Asked, bytes]:
    """Return how the models of folds are to be trained, and the checkpoint's model as a scorer's file.

    Args:
        path: of the checkpoint.
        asked: for the model; the checkpoint's hyper-parameters take the place of RecBole's defaults.
        host: of the run.

    Raises:
        AdapterError: the file cannot be used.
        SettingsError: it is of another model, of other data or another split, disagrees with
            ``retriever_settings``, or was trained on rows that this run holds out.
    """
    checkpoint = read_checkpoint(Path(path))
    found = [*_other_run(checkpoint, asked, host), *_other_settings(checkpoint, asked)]
    if found:
        raise _refusal(checkpoint, found)
    own = {key: checkpoint.settings[key] for key in settings_of(asked.model) if key in checkpoint.settings}
    own_asked = asked._replace(settings={**asked.settings, **own})
    content = to_bytes(_restored(checkpoint, own_asked, host), {})
    _check_rows(checkpoint, own_asked, host)
    return own_asked, content


def _refusal(checkpoint: Checkpoint, found: list[str]) -> SettingsError:
    lines = "".join(f"\n  {line}" for line in found)
    return SettingsError(f"retriever_checkpoints: {checkpoint.path} does not fit this run:{lines}")


def _other_run(checkpoint: Checkpoint, asked: Asked, host: Host) -> Iterator[str]:
    """Yield where the checkpoint was made for other data, another split or another model."""
    got, config = checkpoint.settings, host.config
    named = config.external_config_dict  # what the user said; a retriever's own length may be another
    wanted = {"model": asked.model, **{key: plain(config[key]) for key in _OF_DATA}}
    wanted |= {LENGTH: named[LENGTH]} if named.get(LENGTH) is not None else {}
    yield from _differences(got, wanted)
    said = got.get("eval_args")
    splits = said if isinstance(said, dict) else {}, plain(config["eval_args"])
    for line in _differences(*({key: some.get(key) or "none" for key in _OF_SPLIT} for some in splits)):
        yield f"eval_args: {line}"


def _differences(got: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    for name, value in wanted.items():
        if got.get(name) != value:
            yield f"{name}: got {short(got.get(name))}, wanted {short(value)}"


def _other_settings(checkpoint: Checkpoint, asked: Asked) -> Iterator[str]:
    """Yield where hyper-parameters of the checkpoint are missing, or the user said others."""
    for key, default in settings_of(asked.model).items():
        got = checkpoint.settings.get(key)
        if key not in checkpoint.settings and default is not None:
            yield f"{key}: missing, and RecBole's default may be another than when it was trained"
        elif key in asked.settings and key in checkpoint.settings and plain(asked.settings[key]) != got:
            said = short(asked.settings[key])
            yield f"{key}: got {short(got)} in the checkpoint and {said} in retriever_settings, wanted one"


def _restored(checkpoint: Checkpoint, asked: Asked, host: Host) -> Scorer:
    """Return the checkpoint's model."""
    config, train = config_of(asked, host.config), host.data.built["train"]
    data = train.copy(train.inter_feat)
    data.config = config
    with by_itself(asked.seed):
        try:
            model = get_model(asked.model)(config, data)
        except LEADS_TO as error:
            said = str(error).partition("\n")[0][:200]
            line = f"RecBole cannot make its model ({type(error).__name__}: {said})"
            raise _refusal(checkpoint, [line]) from error
    found = [*_other_tensors(checkpoint.state, model.state_dict(), int(model.n_items))]
    if found:
        raise _refusal(checkpoint, found)
    model.load_state_dict(checkpoint.state)
    return encoder_of(model, config, asked)


def _other_tensors(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], items: int) -> Iterator[str]:
    """Yield where tensors are others than those of the model; ``items`` has the padding item in it."""
    for name in sorted({*got, *wanted}):
        shapes = [list(some[name].shape) if name in some else None for some in (got, wanted)]
        if shapes[0] != shapes[1]:
            more = f" (this run has {items - 1} items)" if name.startswith("item_embedding") else ""
            yield f"{name}: got {_of_shape(shapes[0])}, wanted {_of_shape(shapes[1])}{more}"


def _of_shape(shape: list[int] | None) -> str:
    return "none" if shape is None else f"a tensor of shape {shape}"


def _check_rows(checkpoint: Checkpoint, asked: Asked, host: Host) -> None:
    """See that each interaction which the checkpoint was trained on is one of the run's training rows."""
    settings = host.data.settings
    if checkpoint.written_for == _OURS:
        fields = fields_of_settings()
        got = {name: checkpoint.settings.get(name, fields[name].default) for name in (*_OF_ORDER, "seed")}
        drawn = settings.time_ties == "hash" or settings.history_order == "shuffled" or settings.hidden_items
        compared = (*_OF_ORDER, "seed") if drawn else _OF_ORDER
        found = [*_differences(got, {name: getattr(settings, name) for name in compared})]
    elif host.data.benchmark_filename_list is not None:  # rows of the files, as they are
        shuffled = settings.history_order == "shuffled"
        found = [f"history_order: got shuffled in this run; {_AGREE}"] if shuffled else []
    else:
        found = [*_rows_held_out(asked, host)]
    if found:
        raise _refusal(checkpoint, found)


def _rows_held_out(asked: Asked, host: Host) -> Iterator[str]:
    """Yield what RecBole's own order and split put into training or validation, and this run behind them.

    Validation counts too: RecBole keeps the model of the epoch that was best there.
    """
    config, data = config_of(asked, host.config), host.data
    config.final_config_dict[LENGTH] = 2  # histories are not needed, but for who begins
    parts = SequentialDataset(config).build()
    for field in (data.uid_field, data.iid_field):
        if not np.array_equal(parts[0].field2id_token[field], data.field2id_token[field]):
            yield f"{field}: RecBole numbers them otherwise than this run"
            return
    for phase, done in enumerate(("trained", "validated")):
        seen, times = _counted(*_interactions(parts[: phase + 1]), data.item_num)
        taken = [data.taken(user, phase) for user in range(data.user_num)]
        users = np.repeat(np.arange(data.user_num), [len(items) for items in taken])
        own, ours = _counted(users, np.concatenate(taken), data.item_num)
        known = np.zeros_like(times)
        known[np.isin(seen, own)] = ours[np.isin(own, seen)]  # both are in order
        held = seen[times > known]
        if len(held):
            user, item = divmod(int(held[0]), data.item_num)
            names = data.id2token(data.uid_field, user), data.id2token(data.iid_field, item)
            yield (
                f"{len(held)} interactions that it was {done} on are held out by this run, the first of user "
                f"{names[0]} with item {names[1]}; {_AGREE}"
            )
            return


def _interactions(parts: Sequence[Any]) -> tuple[IntArray, IntArray]:
    """Return users and items of the interactions that rows of RecBole's were made of."""
    users, items = [], []
    for part in parts:
        rows = part.inter_feat
        begins = rows[part.item_list_length_field] == 1  # there is a row of each later item
        history = rows[part.iid_field + part.config["LIST_SUFFIX"]]
        users += [rows[part.uid_field], rows[part.uid_field][begins]]
        items += [rows[part.iid_field], history[begins][:, 0]]
    return torch.cat(users).numpy(), torch.cat(items).numpy()


def _counted(users: IntArray, items: IntArray, item_num: int) -> tuple[IntArray, IntArray]:
    """Return pairs of user and item as one number each, and how often each is there."""
    pairs, counts = np.unique(users * item_num + items, return_counts=True)
    return pairs, counts
