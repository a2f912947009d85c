"""Every setting that RecBole 1.2.1 reads: used by our models, or refused with its reason before a run.

The table alone; ``recbole_rules`` applies it. A test looks up in the installed RecBole what it reads, and
fails for a name that stands nowhere here. Settings of our own are checked by ``settings``.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

_INTERVAL = re.compile(r"[\[(]\s*-?(\d+(\.\d*)?|inf)\s*,\s*-?(\d+(\.\d*)?|inf)\s*[\])]")
_STATES = ("debug", "info", "warning", "error", "critical")
LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop")
_CLIP = {"max_norm", "norm_type", "error_if_nonfinite", "foreach"}
# Metrics of items count what stands at the first k places, and know nothing of candidates.
METRICS_OF_ITEMS = ("itemcoverage", "averagepopularity", "shannonentropy", "giniindex", "tailpercentage")
METRICS = ("hit", "mrr", "map", "recall", "ndcg", "precision", *METRICS_OF_ITEMS, "gauc")
PLACELESS = "gauc"  # the metric without a k
VALUE_METRICS = ("auc", "mae", "rmse", "logloss")  # of stock models alone; they need labels


class Kind(NamedTuple):
    """What a setting may be.

    Attributes:
        wanted: in words.
        fits: says whether a value is one.
    """

    wanted: str
    fits: Callable[[Any], bool]


def whole(value: Any, least: int = 0) -> bool:
    """Say whether a value is a whole number of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def number(value: Any) -> bool:
    """Say whether a value is a number, perhaps an infinite one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_text, value))


def _columns(value: Any) -> bool:
    return isinstance(value, Mapping) and all(part == "*" or _texts(part) for part in value.values())


def _interval(value: Any) -> bool:
    return isinstance(value, str) and all(_INTERVAL.fullmatch(part.strip()) for part in value.split(";"))


def _intervals(value: Any) -> bool:
    parts = value.values() if isinstance(value, Mapping) else [None]
    return all(isinstance(part, list | tuple) or _interval(part) for part in parts)


def _encoding(value: Any) -> bool:
    try:
        return bool(codecs.lookup(value)._is_text_encoding)
    except (LookupError, TypeError, ValueError):
        return False


def _gpu(value: Any) -> bool:
    return isinstance(value, str) or whole(value) or (isinstance(value, tuple) and all(map(whole, value)))


def _clip(value: Any) -> bool:
    if not (isinstance(value, Mapping) and {"max_norm"} <= value.keys() <= _CLIP):
        return False
    return number(value["max_norm"]) and value["max_norm"] > 0 and number(value.get("norm_type", 2.0))


def _one_of(names: Collection[str]) -> Kind:
    """Return the kind of one of some names, in capitals or not."""
    fits = lambda value: isinstance(value, str) and value.lower() in names  # noqa: E731
    return Kind(f"one of {', '.join(names)}", fits)


def _topk(value: Any) -> bool:
    places = [value] if isinstance(value, int) else value
    return isinstance(places, list) and bool(places) and all(whole(k, 1) for k in places)


def _metrics(value: Any) -> bool:
    names = [value] if isinstance(value, str) else value
    return isinstance(names, list | tuple) and bool(names) and all(map(_one_of(METRICS).fits, names))


def _or_none(kind: Kind) -> Kind:
    return Kind(f"{kind.wanted}, or none", lambda value: value is None or kind.fits(value))


def _each(kind: Kind, names: str) -> dict[str, Kind]:
    return dict.fromkeys(names.split(), kind)


_FLAG = Kind("true or false", lambda value: isinstance(value, bool))
_TEXT = Kind("a non-empty text", _text)
_WHOLE = Kind("a whole number of at least 0", whole)
_POSITIVE = Kind("a number above 0", lambda value: number(value) and value > 0)
_LIST = Kind("a list of names", _texts)
_NAMES = Kind("a name, or a list of names", lambda value: _text(value) or _texts(value))
_MARK = Kind("one character", lambda v: isinstance(v, str) and len(v) == 1 and v not in '"\r\n')
_COLUMNS = Kind("file suffix: list of columns, or '*'", _columns)
_SPAN = Kind("an interval such as [5,inf)", _interval)
_SPANS = Kind("column: interval such as [3,inf), or list of values", _intervals)
_SPLITS = Kind("the names of three files: train, valid, test", lambda v: _texts(v) and len(v) == 3)
_CLIPPING = Kind("{max_norm: a number above 0}, perhaps with norm_type", _clip)

USED: dict[str, Kind] = {
    **_each(Kind("a name", lambda value: True), "model dataset config_files"),  # checked when looked up
    **_each(_TEXT, "data_path checkpoint_dir"),
    "gpu_id": Kind("a number, or numbers and commas as text ('': the CPU)", _gpu),
    "worker": _WHOLE,
    "state": _or_none(_one_of(_STATES)),
    **_each(_FLAG, "use_gpu reproducibility show_progress filter_inter_by_user_or_item"),
    # training
    "learner": _one_of(LEARNERS),
    "clip_grad_norm": _or_none(_CLIPPING),
    "eval_step": _WHOLE,
    # evaluation
    "metrics": Kind(f"some of {', '.join(METRICS)}", _metrics),
    "topk": Kind("a whole number of at least 1, or a list of them", _topk),
    "metric_decimal_place": _WHOLE,
    "tail_ratio": _or_none(_POSITIVE),
    "eval_args": Kind("split, order, group_by and mode", lambda value: isinstance(value, Mapping)),
    "valid_metric": _TEXT,
    "repeatable": Kind("true (a user may take a title again)", lambda value: value is True),
    # the files, and the columns in them
    "encoding": _or_none(Kind("a text encoding such as utf-8", _encoding)),
    "field_separator": _MARK,
    "seq_separator": _TEXT,
    **_each(_TEXT, "USER_ID_FIELD ITEM_ID_FIELD TIME_FIELD ITEM_LIST_LENGTH_FIELD LIST_SUFFIX NEG_PREFIX"),
    **_each(_or_none(_TEXT), "RATING_FIELD LABEL_FIELD POSITION_FIELD HEAD_ENTITY_ID_FIELD"),
    **_each(_or_none(_TEXT), "TAIL_ENTITY_ID_FIELD RELATION_ID_FIELD ENTITY_ID_FIELD"),
    "MAX_ITEM_LIST_LENGTH": Kind("a whole number of at least 1", lambda value: whole(value, 1)),
    **_each(_or_none(_COLUMNS), "load_col unload_col unused_col"),
    "additional_feat_suffix": _or_none(_NAMES),
    **_each(_or_none(_LIST), "alias_of_user_id alias_of_item_id alias_of_entity_id alias_of_relation_id"),
    "benchmark_filename": _or_none(_SPLITS),
    "normalize_all": _or_none(_FLAG),
    # which interactions count
    "rm_dup_inter": _or_none(Kind("first or last", lambda value: value in ("first", "last"))),
    "val_interval": _or_none(_SPANS),
    **_each(_or_none(_SPAN), "user_inter_num_interval item_inter_num_interval"),
}


def _because(reason: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


_PICKLE = "RecBole would pickle it, and unpickling runs any code; data are read from their atomic files"
_CANDIDATES = "negatives come from a row's candidates: num_candidates, num_negatives, candidate_distribution"

REFUSED: dict[str, str] = {
    **_because(_PICKLE, "save_dataset dataset_save_path save_dataloaders dataloaders_save_path"),
    **_because("runs are recorded with MLflow: mlflow_tracking_uri", "log_wandb wandb_project"),
    "shuffle": "training rows are dealt by the seed in every epoch",
    **_because(_CANDIDATES, "train_neg_sample_args neg_sampling training_neg_sample_num"),
    "loss_decimal_place": "losses are written whole",
    **_because("adapters are kept small by weight_decay alone", "require_pow reg_weight"),
    **_because("precision is setting dtype", "enable_amp enable_scaler"),
    "transform": "histories are written as they are",
    "loss_type": "the loss is setting objective",
    "valid_metric_bigger": "RecBole takes it from valid_metric",
    "seq_len": "RecBole would keep the oldest titles of a history; max_history keeps the newest",
    "threshold": "a sequence has no labels; val_interval leaves interactions out",
    **_because("a prompt has no numbers in it", "normalize_field discretization numerical_features"),
    "preload_weight": "a language model takes no item vectors",
    "config_file": "nothing reads it; the setting is called config_files",
}

_SET = "RecBole sets it itself"
_ONE = "torchrun starts several processes, or run_recbole with --nproc; no setting does"
_OTHERS = "it belongs to others of RecBole's models"

# Refused in a file or a dictionary, and passed over in the command line of a process, which may be a
# program of somebody's with options of its own: RecBole would not read them for our models either.
NOT_READ: dict[str, str] = {
    "device": "RecBole sets it itself; gpu_id chooses ('' is the CPU)",
    **_because(_SET, "MODEL_TYPE MODEL_INPUT_TYPE eval_type single_spec verbose"),
    **_because(f"{_SET}, by mode in eval_args", "valid_neg_sample_args test_neg_sample_args"),
    **_because(_ONE, "nproc world_size local_rank offset ip port"),
    **_because("there is no knowledge graph", "entity_kg_num_interval relation_kg_num_interval kg_reverse_r"),
    **_because(_OTHERS, "embedding_size double_tower token_num_threshold convert_token_to_onehot"),
    **_because(_OTHERS, "mask_ratio ft_ratio eta CROP_ITEM_SEQ CROP_ITEM_SEQ_LEN INVERSE_ITEM_SEQ"),
    **_because(_OTHERS, "REORDER_ITEM_SEQ MASK_INDEX MASK_ITEM_SEQ POS_ITEMS NEG_ITEMS"),
    **_because(_OTHERS, "pretrain_epochs save_step kge_interval warm_up_step m_step"),
    **_because(_OTHERS, "n_enc_epochs n_dec_epochs train_rec_step train_kg_step"),
    **_because(_OTHERS, "lgb_params lgb_num_boost_round xgb_model xgb_params xgb_silent xgb_nthread"),
    **_because(_OTHERS, "xgb_num_boost_round xgb_early_stopping_rounds xgb_verbose_eval"),
}
