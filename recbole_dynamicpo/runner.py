"""Run any RecBole model, ours or a stock one, from settings that are never evaluated as code."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from recbole.config import Config

from .errors import DataError, SettingsError
from .registration import MODEL_NAMES, read_dataset_defaults, register

# As RecBole reads numbers like 1e-4, which plain YAML takes for text.
_FLOAT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
)
_PLAIN_TYPES = (bool, int, float, str, list, tuple, dict, type(None))


class _SafeYaml(yaml.SafeLoader):
    """YAML without Python objects."""


_SafeYaml.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


class PlainConfig(Config):
    """RecBole's configuration without its three surprises.

    It does not evaluate strings as Python, does not read the process's command line, and reads YAML
    with the safe loader. Stock models too get the defaults of our data sets (properties/dataset), behind
    RecBole's own defaults and before the user's files. Everything else is RecBole's.
    """

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        if model not in MODEL_NAMES:
            read_dataset_defaults(self, dataset)

    def _build_yaml_loader(self) -> type[yaml.SafeLoader]:
        return _SafeYaml

    def _load_cmd_line(self) -> dict[str, Any]:
        return {}

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        return config_dict

    def _load_config_files(self, file_list: Sequence[str] | None) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for name in file_list or []:
            try:
                content = yaml.load(Path(name).read_text(encoding="utf-8"), Loader=_SafeYaml)
            except OSError as error:
                raise SettingsError(f"settings file {name}: cannot be read ({error.strerror})") from error
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise SettingsError(f"settings file {name}: not plain YAML: {error}") from error
            if content is not None and not isinstance(content, dict):
                raise SettingsError(
                    f"settings file {name}: got {type(content).__name__}, wanted key: value lines"
                )
            merged.update(content or {})
        return merged


def parse_value(text: str) -> Any:
    """Return what a command-line value stands for: a Python literal, true/false/none, or the text."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
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
    from recbole.data import data_preparation
    from recbole.utils import get_model, get_trainer, init_logger, init_seed

    from .histories import create_dataset

    config = _checked_config(model, dataset, config_files, overrides or {})
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    logger = logging.getLogger()
    logger.info(config)
    data = create_dataset(config)
    logger.info(data)
    train_data, valid_data, test_data = data_preparation(config, data)
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    instance = get_model(config["model"])(config, train_data._dataset).to(config["device"])
    logger.info(instance)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, instance)
    progress = config["show_progress"]
    best_score, best_result = trainer.fit(train_data, valid_data, saved=saved, show_progress=progress)
    test_result = trainer.evaluate(test_data, load_best_model=saved, show_progress=progress)
    logger.info("best valid: %s", best_result)
    logger.info("test result: %s", test_result)
    return {
        "best_valid_score": best_score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": best_result,
        "test_result": test_result,
    }


def _checked_config(
    model: str, dataset: str, config_files: Sequence[str], overrides: Mapping[str, Any]
) -> PlainConfig:
    """Return the configuration of a run after everything that can be checked without loading data."""
    from .dataset import read_settings
    from .known_data import require_data

    register()
    check_model(model)
    config = PlainConfig(model, dataset, list(config_files), dict(overrides))
    if model in MODEL_NAMES:
        read_settings(config)  # wrong settings are named before any file is looked for
    require_data(config)
    refuse_pickles(config)
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
    """Stop before RecBole unpickles a saved data set or loader."""
    folder = Path(config["checkpoint_dir"])
    named = [config["dataset_save_path"], config["dataloaders_save_path"]]
    default = [*folder.glob(f"{config['dataset']}-*Dataset.pth"), *folder.glob("*-dataloader.pth")]
    for path in [*filter(None, named), *default]:
        if Path(path).exists():
            raise DataError(
                f"{path}: RecBole would unpickle this file, which can run any code in it; move it away "
                "(the data set is read from its atomic files instead)"
            )
