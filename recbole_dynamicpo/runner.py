"""Run any RecBole model, ours or a stock one, from settings that are never evaluated as code."""

from __future__ import annotations

import ast
import inspect
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from recbole.config import Config

from .errors import DataError, SettingsError
from .names import MODEL_NAMES
from .plain_config import PlainConfig
from .registration import register

_TEACHERS = ("CrossNet", "CIN")  # of RecBole's KD_DAGFM, which evaluates the name
_PLAIN_TYPES = (bool, int, float, str, list, tuple, dict, type(None))


def parse_value(text: str) -> Any:
    """Return what a command-line value stands for: a Python literal, true/false/none, or the text."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a backslash in what may be a path
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, _PLAIN_TYPES) else text


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the settings of ``--key=value`` arguments.

    Raises:
        SettingsError: an argument of another form, or a key with two different values.
    """
    overrides: dict[str, Any] = {}
    for argument in arguments:
        key, separator, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not separator or not key:
            raise SettingsError(f"got '{argument}', wanted --key=value")
        value = parse_value(text)
        if key in overrides and overrides[key] != value:
            raise SettingsError(f"--{key}: given twice, as {overrides[key]!r} and as {value!r}")
        overrides[key] = value
    return overrides


def run(
    model: str,
    dataset: str,
    config_files: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    *,
    saved: bool = True,
) -> dict[str, Any]:
    """Train and test a model as RecBole's ``run_recbole`` does, and return its result.

    Args:
        model: name of one of our models or of a stock RecBole model.
        dataset: name of the data set.
        config_files: YAML files, later ones win.
        overrides: settings that win over the files.
        saved: keep the best model and test that one.

    Raises:
        DynamicPOError: anything wrong with settings, data, backbone or adapters.
    """
    from recbole.utils import get_trainer, init_logger

    config = checked_config(model, dataset, config_files, overrides or {})
    init_logger(config)
    logger = logging.getLogger()
    logger.info(config)
    loaded = load(config)
    logger.info(loaded.model)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, loaded.model)
    show = {"saved": saved, "show_progress": config["show_progress"]}
    if model in MODEL_NAMES:  # our trainer records itself
        best_score, best_result = trainer.fit(loaded.train, loaded.valid, **show)
        test_result = trainer.evaluate(
            loaded.test, load_best_model=saved, show_progress=config["show_progress"]
        )
    else:
        best_score, best_result, test_result = _run_stock(config, loaded, trainer, show)
    logger.info("best valid: %s", best_result)
    logger.info("test result: %s", test_result)
    return {
        "best_valid_score": best_score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": best_result,
        "test_result": test_result,
    }


def _run_stock(config: Config, loaded: Loaded, trainer: Any, show: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Train and test a stock model; return the best score and the metrics on valid and test."""
    from .stock_record import recorded

    with recorded(config, loaded) as record:
        # RecBole's trainers of decision trees take no callback.
        takes_callback = "callback_fn" in inspect.signature(trainer.fit).parameters
        more = {"callback_fn": record.epoch} if takes_callback else {}
        score, valid = trainer.fit(loaded.train, loaded.valid, **show, **more)
        test = trainer.evaluate(
            loaded.test, load_best_model=show["saved"], show_progress=show["show_progress"]
        )
        record.results(valid, test)
    return score, valid, test


@dataclass(frozen=True)
class Loaded:
    """RecBole's loaders of the three splits, and the model."""

    train: Any
    valid: Any
    test: Any
    model: Any


def load(config: Config) -> Loaded:
    """Load data and model of a configuration, seeded as RecBole does it."""
    from recbole.data import data_preparation
    from recbole.utils import get_model, init_seed

    from .histories import create_dataset

    init_seed(config["seed"], config["reproducibility"])
    data = create_dataset(config)
    logging.getLogger().info(data)
    train, valid, test = data_preparation(config, data)
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    model = get_model(config["model"])(config, train._dataset).to(config["device"])
    return Loaded(train, valid, test, model)


def checked_config(
    model: str, dataset: str, config_files: Sequence[str], overrides: Mapping[str, Any]
) -> PlainConfig:
    """Return the configuration of a run after everything that can be checked without loading data."""
    from .training.data_files import require_data

    config = plain_config(model, dataset, config_files, overrides)
    require_data(config)
    refuse_pickles(config)
    return config


def plain_config(
    model: str, dataset: str, config_files: Sequence[str], overrides: Mapping[str, Any]
) -> PlainConfig:
    """Return the configuration of a run with its settings checked, before any data file is looked for."""
    from .settings import read_settings

    register()
    check_model(model)
    config = PlainConfig(model, dataset, list(config_files), dict(overrides))
    if model in MODEL_NAMES:
        read_settings(config)
    return config


def run_distributed(
    model: str, dataset: str, config_files: Sequence[str], overrides: Mapping[str, Any]
) -> None:
    """Run a stock model in ``overrides["nproc"]`` processes, one a GPU.

    Raises:
        SettingsError: one of our models; their trainer uses one process and accumulates instead.
    """
    import torch.multiprocessing

    if model in MODEL_NAMES:
        raise SettingsError(
            f"nproc: got {overrides['nproc']} for {model}, wanted 1 (raise accumulation_steps instead)"
        )
    arguments = (model, dataset, list(config_files), dict(overrides))
    torch.multiprocessing.spawn(run_rank, args=arguments, nprocs=overrides["nproc"], join=True)


def run_rank(
    rank: int, model: str, dataset: str, config_files: Sequence[str], overrides: Mapping[str, Any]
) -> None:
    """Run one process of ``run_distributed``; importing this module has registered our models."""
    run(model, dataset, config_files, {**overrides, "local_rank": rank})


def check_model(model: str) -> None:
    """Refuse an unknown model by its own name; RecBole would complain about lightgbm instead.

    Raises:
        SettingsError: naming the nearest known model.
    """
    from importlib.util import find_spec

    from .errors import nearest

    if model in MODEL_NAMES:
        return
    kinds = ("general", "context_aware", "sequential", "knowledge_aware", "exlib")
    packages = [f"recbole.model.{kind}_recommender" for kind in kinds]
    if model.isidentifier() and any(find_spec(f"{package}.{model.lower()}") for package in packages[:4]):
        return
    if model.lower() in ("lightgbm", "xgboost"):
        return
    raise SettingsError(f"model: got '{model}', wanted a RecBole model or one of {', '.join(MODEL_NAMES)}"
                        f"{nearest(model, MODEL_NAMES)}")  # fmt: skip


def refuse_pickles(config: Config) -> None:
    """Stop before RecBole unpickles a file or evaluates a setting.

    Raises:
        SettingsError: a setting that RecBole would evaluate, or a path that is none.
        DataError: a file that RecBole would unpickle.
    """
    named = [config["dataset_save_path"], config["dataloaders_save_path"]]
    for value in (config["checkpoint_dir"], *filter(None, named)):
        if not isinstance(value, str | Path):
            raise SettingsError(f"got the path {value!r}, wanted a text (checkpoint_dir and *_save_path)")
    if config["model"] == "KD_DAGFM" and config["teacher"] not in _TEACHERS:
        raise SettingsError(f"teacher: got {config['teacher']!r}, wanted one of {', '.join(_TEACHERS)}")
    embeddings = Path(config["data_path"]) / "item_emb.npy"
    if config["model"] == "LDiffRec" and embeddings.exists():
        try:
            np.load(embeddings, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise DataError(
                f"{embeddings}: not a plain array, RecBole would unpickle it ({error})"
            ) from error
    folder = Path(config["checkpoint_dir"])
    default = [*folder.glob(f"{config['dataset']}-*Dataset.pth"), *folder.glob("*-dataloader.pth")]
    for path in [*filter(None, named), *default]:
        if Path(path).exists():
            raise DataError(
                f"{path}: RecBole would unpickle this file, which can run any code in it; move it away "
                "(the data set is read from its atomic files instead)"
            )
