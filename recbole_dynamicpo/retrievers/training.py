"""RecBole trains a retriever: its model, its trainer, its settings, on training sequences of ours."""

from __future__ import annotations

import copy
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import recbole
import torch
from recbole.config import Config
from recbole.data.dataloader import TrainDataLoader
from recbole.data.interaction import Interaction
from recbole.sampler import RepeatableSampler
from recbole.trainer import trainer as recbole_trainer
from recbole.utils import InputType, ModelType, get_model, get_trainer, init_seed
from torch import Tensor, nn

from ..errors import SettingsError, nearest
from .graph import ForeignOperationError, trace
from .scorers import HistoryEncoder, IntArray, ItemMatrix, Scorer

# Whose matrix holds what the items of a history say of others, and under which name.
MATRICES = {"EASE": "item_similarity", "ItemKNN": "w"}
CONSTANT = "Pop"
WANTED = (
    "wanted a sequential model that scores a history without a user's id, such as SASRec or GRU4Rec, or "
    f"{', '.join(MATRICES)} or {CONSTANT}"
)
_KINDS = ("sequential", "general", "knowledge_aware", "context_aware")
# Pairs of items up to which a matrix is kept: 400 MB.
_MOST_PAIRS = 10**8
_NO_SAMPLING = {
    **dict.fromkeys(("distribution", "sample_num", "alpha"), "none"), "dynamic": False, "candidate_num": 0,
}  # fmt: skip
# What wrong settings and data lead RecBole to.
LEADS_TO = (ValueError, TypeError, LookupError, AttributeError, NotImplementedError, AssertionError)
# Settings of RecBole's that a retriever has of its own, beside those of its model's file.
_OWN = ("learner", "learning_rate", "train_batch_size", "weight_decay", "clip_grad_norm", "loss_type")
LENGTH = "MAX_ITEM_LIST_LENGTH"


class Asked(NamedTuple):
    """What decides a retriever, beside its training sequences."""

    model: str  # RecBole's name
    epochs: int
    seed: int
    settings: Mapping[str, Any]  # of RecBole's, those of other retrievers among them


class Host(NamedTuple):
    """The run that a retriever is trained in."""

    config: Any  # RecBole's configuration
    data: Any  # a built data set, whose items and users the retriever has


def problems(
    names: Sequence[str], settings: Mapping[str, Any], checkpoints: Collection[str] = ()
) -> list[str]:
    """Return what is wrong with the models named and the settings for them, a line each.

    Args:
        names: RecBole's names of models.
        settings: of ``retriever_settings``.
        checkpoints: models of ``retriever_checkpoints``.
    """
    found = [problem for name in names if (problem := _problem(name))]
    found += [
        f"retriever_checkpoints: got {name}, which is made in seconds of the run's own rows; wanted a "
        "sequential model such as SASRec"
        for name in checkpoints
        if name in (*MATRICES, CONSTANT)
    ]
    if found or not names:
        return found
    known = {key for name in names for key in settings_of(name)}
    return [
        f"retriever_settings: {key}: unknown to {', '.join(names)}{nearest(key, known)}"
        for key in settings
        if key not in known
    ]


def _problem(name: str) -> str | None:
    places = [f"recbole.model.{kind}_recommender.{name.lower()}" for kind in _KINDS]
    try:
        model = next(
            (getattr(import_module(place), name, None) for place in places if find_spec(place)), None
        )
    except ImportError as error:  # of what a model of RecBole's needs beside it
        return f"catalogue_prior: got recbole:{name}, which cannot be imported ({error}); {WANTED}"
    if model is None or not model.__module__.startswith("recbole."):  # ours are found there, too
        return f"catalogue_prior: got recbole:{name}, which is no model of RecBole's; {WANTED}"
    if model.type == ModelType.SEQUENTIAL or name in (*MATRICES, CONSTANT):
        return None
    return (
        f"catalogue_prior: got recbole:{name}, which scores users by their ids, so that it cannot be trained "
        f"without the users whom it is asked about; {WANTED}"
    )


def settings_of(name: str) -> dict[str, Any]:
    """Return RecBole's defaults of all that may be set for a model."""
    home = Path(recbole.__file__).parent / "properties"
    reader = Config.__new__(Config)
    reader.internal_config_dict = {}
    reader.yaml_loader = reader._build_yaml_loader()
    general = reader._update_internal_config_dict(str(home / "overall.yaml"))
    path = home / "model" / f"{name}.yaml"
    own = reader._update_internal_config_dict(str(path)) if path.is_file() else None
    return {LENGTH: None, **{key: general.get(key) for key in _OWN}, **(own or {})}


def config_of(asked: Asked, config: Any) -> Any:
    """Return the run's configuration with the model, and how it is trained, in place of ours."""
    values, model = settings_of(asked.model), get_model(asked.model)
    values |= {key: value for key, value in asked.settings.items() if key in values}
    values[LENGTH] = values[LENGTH] or config[LENGTH]
    kind = getattr(model, "input_type", None)
    if kind is None:
        kind = InputType.PAIRWISE if values.get("loss_type") == "BPR" else InputType.POINTWISE
    sampling = {**_NO_SAMPLING, "distribution": "uniform", "sample_num": 1, "alpha": 1.0}
    own = copy.copy(config)
    own.final_config_dict = {
        **config.final_config_dict, **values, "model": asked.model, "epochs": asked.epochs,
        "seed": asked.seed, "log_wandb": False, "MODEL_TYPE": model.type, "MODEL_INPUT_TYPE": kind,
        "train_neg_sample_args": sampling if kind == InputType.PAIRWISE else _NO_SAMPLING,
    }  # fmt: skip
    return own


def train(asked: Asked, sequences: Mapping[int, IntArray], host: Host) -> Scorer:
    """Return a retriever trained on sequences.

    Args:
        asked: model and settings.
        sequences: user -> items in order.
        host: of the run.

    Raises:
        SettingsError: RecBole cannot make or train the model with these settings, or it cannot be kept.
    """
    config, wanted = config_of(asked, host.config), f"catalogue_prior: recbole:{asked.model}"
    data = host.data.built["train"].copy(_rows(sequences, host.data, config[LENGTH]))
    data.config = config
    with by_itself(asked.seed):
        try:
            model = get_model(asked.model)(config, data).to(config["device"])
            if model.type == ModelType.SEQUENTIAL:
                encoder_of(model, config, asked)  # hours of training later would be too late to find out
            sampler = None
            if config["MODEL_INPUT_TYPE"] == InputType.PAIRWISE:
                sampler = RepeatableSampler("train", data, "uniform").set_phase("train")
            loader = TrainDataLoader(config, data, sampler, shuffle=True)
            trainer = get_trainer(model.type, asked.model)(config, model)
            trainer.fit(loader, saved=False, show_progress=bool(config["show_progress"]))
        except LEADS_TO as error:
            said = str(error).partition("\n")[0][:200]
            raise SettingsError(
                f"{wanted}: RecBole cannot train it with these settings and data "
                f"({type(error).__name__}: {said})"
            ) from error
        if model.type == ModelType.SEQUENTIAL:
            return encoder_of(model, config, asked)
        return _matrix(model, asked.model)


def _rows(sequences: Mapping[int, IntArray], data: Any, length: int) -> Interaction:
    """Return RecBole's rows of sequences: each item behind at least one, with the newest ``length``."""
    users, targets, histories = [], [], []
    for user, items in sequences.items():
        for place in range(1, len(items)):
            users.append(user)
            targets.append(items[place])
            histories.append(items[max(0, place - length) : place])
    table = np.zeros((len(users), length), dtype=np.int64)
    for row, history in enumerate(histories):
        table[row, : len(history)] = history
    columns = {
        data.uid_field: np.array(users, dtype=np.int64),
        data.iid_field: np.array(targets, dtype=np.int64),
        data.iid_field + data.config["LIST_SUFFIX"]: table,
        data.item_list_length_field: np.array([len(history) for history in histories], dtype=np.int64),
    }
    return Interaction({name: torch.from_numpy(values) for name, values in columns.items()})


class _NoBoard:
    """Stands in for TensorBoard, where the run that this is a part of writes."""

    def add_scalar(self, *args: Any) -> None:
        """Do nothing."""

    def add_hparams(self, *args: Any) -> None:
        """Do nothing."""


@contextmanager
def by_itself(seed: int) -> Iterator[None]:
    """Let RecBole draw by a seed inside the block, and leave generators and logs of others as they were."""
    kept, board = (random.getstate(), np.random.get_state()), recbole_trainer.get_tensorboard
    try:
        recbole_trainer.get_tensorboard = lambda logger: _NoBoard()
        with torch.random.fork_rng(), torch.enable_grad():
            init_seed(seed, reproducibility=True)
            yield
    finally:
        recbole_trainer.get_tensorboard = board
        random.setstate(kept[0])
        np.random.set_state(kept[1])


class _FullSort(nn.Module):
    """A sequential model's scores of all items, from histories alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Return (B, N) scores."""
        asked = {self.model.ITEM_SEQ: items, self.model.ITEM_SEQ_LEN: lengths}
        found: Tensor = self.model.full_sort_predict(asked)
        return found.reshape(items.shape[0], -1)  # a len would be one number for all


def encoder_of(model: Any, config: Any, asked: Asked) -> Scorer:
    """Return a sequential model as it is now.

    Raises:
        SettingsError: it needs more than a history, or what it does cannot be kept.
    """
    own = copy.deepcopy(model).cpu().eval()
    if hasattr(own, "device"):
        own.device = torch.device("cpu")
    name, length = f"catalogue_prior: recbole:{asked.model}", int(config[LENGTH])
    lengths = torch.arange(2, 4).clamp(max=length)
    table = (torch.arange(length)[None] < lengths[:, None]).long()
    try:
        with torch.no_grad():
            _FullSort(own)(table, lengths)
            nodes, tensors = trace(_FullSort(own), (table, lengths))
    except KeyError as error:
        raise SettingsError(f"{name} needs {error} beside a history; {WANTED}") from error
    except ForeignOperationError as error:
        raise SettingsError(f"{name}: its {error} cannot be kept in a recommender; {WANTED}") from error
    except Exception as error:  # torch.export raises whatever a model leads it to
        said = str(error).partition("\n")[0][:200]
        raise SettingsError(f"{name} cannot be traced ({type(error).__name__}: {said}); {WANTED}") from error
    return HistoryEncoder(nodes, tensors, length, int(model.n_items))


def _matrix(model: Any, name: str) -> Scorer:
    items = int(model.n_items)
    if name == CONSTANT:
        constant = (model.item_cnt / model.max_cnt).float().flatten().cpu()
        return ItemMatrix(torch.zeros(items, items), constant)
    if items**2 > _MOST_PAIRS:
        raise SettingsError(
            f"catalogue_prior: recbole:{name} keeps a number for every pair of {items - 1} items, wanted at "
            f"most {_MOST_PAIRS:,} pairs; a sequential model such as SASRec has no such table"
        )
    if name == "ItemKNN" and model.method != "item":
        raise SettingsError("retriever_settings: knn_method: got user, wanted item, as users have no history")
    found = getattr(model, MATRICES[name])
    dense = found.toarray() if hasattr(found, "toarray") else np.asarray(found)
    return ItemMatrix(torch.from_numpy(np.ascontiguousarray(dense, np.float32)), torch.zeros(items))
