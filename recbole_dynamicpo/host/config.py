"""RecBole's configuration read from plain values only: nothing in a file or a dictionary is evaluated."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from recbole.config import Config

from ..data.download import check_name
from ..dataset.data_files import require_data
from ..errors import DataError, SettingsError, nearest
from ..names import MODEL_NAMES
from .defaults import check_stock_settings, lineage, read_byte_order_marks, read_dataset_defaults
from .registration import register

_TEACHERS = ("CrossNet", "CIN")  # of RecBole's KD_DAGFM, which evaluates the name
_PLAIN_TYPES = (bool, int, float, str, list, tuple, dict, type(None))

# As RecBole reads numbers like 1e-4, which plain YAML takes for text.
_FLOAT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
)
_MOST_VALUES = 10_000  # of a settings file; aliases of aliases can make billions of a few lines


class _SafeYaml(yaml.SafeLoader):
    """YAML without Python objects."""


_SafeYaml.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


class PlainConfig(Config):
    """RecBole's configuration without its three surprises.

    It does not evaluate strings as Python, does not read the process's command line, and reads YAML
    with the safe loader. Stock models too get the defaults of our data sets (properties/dataset), behind
    RecBole's own defaults and before the user's files. Everything else is RecBole's.
    """

    def __init__(
        self,
        model: Any = None,
        dataset: str | None = None,
        config_file_list: Sequence[str] | None = None,
        config_dict: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            super().__init__(model, dataset, config_file_list, config_dict)
        except (ValueError, TypeError, LookupError, AttributeError, NotImplementedError) as error:
            raise SettingsError(f"RecBole cannot use these settings: {error}") from error

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        check_name(dataset)
        super()._load_internal_config_dict(model, model_class, dataset)
        if not lineage(model_class):
            self._read_more_defaults(dataset)
            read_byte_order_marks(self)
            self._check()

    def _read_more_defaults(self, dataset: str) -> None:
        """Read what a stock model's settings are beside RecBole's own defaults."""
        read_dataset_defaults(self, dataset)

    def _check(self) -> None:
        """Check a stock model's settings."""
        check_stock_settings(self)

    def _build_yaml_loader(self) -> type[yaml.SafeLoader]:
        return _SafeYaml

    def _load_cmd_line(self) -> dict[str, Any]:
        return {}

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        return config_dict

    def _load_config_files(self, file_list: Sequence[str] | None) -> dict[str, Any]:
        return read_settings_files(file_list or [])


def read_settings_files(names: Sequence[str]) -> dict[str, Any]:
    """Return the settings of YAML files; later ones win.

    Raises:
        SettingsError: a file that cannot be read, or is more or else than plain ``key: value`` lines.
    """
    merged: dict[str, Any] = {}
    for name in names:
        try:
            content = yaml.load(Path(name).read_text(encoding="utf-8"), Loader=_SafeYaml)
            size = _expanded_size(content)
        except OSError as error:
            raise SettingsError(f"settings file {name}: cannot be read ({error.strerror})") from error
        except RecursionError as error:
            raise SettingsError(f"settings file {name}: nested too deeply, or in itself") from error
        except (yaml.YAMLError, ValueError, TypeError, ArithmeticError, LookupError) as error:
            raise SettingsError(f"settings file {name}: not plain YAML: {error}") from error
        if size > _MOST_VALUES:
            raise SettingsError(f"settings file {name}: its aliases expand to {size} values")
        if content is not None and not isinstance(content, dict):
            raise SettingsError(
                f"settings file {name}: got {type(content).__name__}, wanted key: value lines"
            )
        for key in content or {}:
            if not isinstance(key, str):
                raise SettingsError(f"settings file {name}: got the key {key!r}, wanted a name")
        merged.update(content or {})
    return merged


def _expanded_size(value: Any) -> int:
    """Return how many values YAML stands for with its aliases written out; each is visited once."""
    sizes: dict[int, int] = {}

    def size(part: Any) -> int:
        if not isinstance(part, dict | list | tuple | set):
            return 1
        if id(part) not in sizes:
            inner = [*part.keys(), *part.values()] if isinstance(part, dict) else part
            sizes[id(part)] = 1 + sum(map(size, inner))
        return sizes[id(part)]

    return size(value)


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


def checked_config(
    model: str | type, dataset: str, config_files: Sequence[str], overrides: Mapping[str, Any]
) -> PlainConfig:
    """Return the configuration of a run after everything that can be checked without loading data."""
    config = plain_config(model, dataset, config_files, overrides)
    require_data(config)
    refuse_pickles(config)
    return config


def plain_config(
    model: str | type, dataset: str, config_files: Sequence[str], overrides: Mapping[str, Any]
) -> PlainConfig:
    """Return the configuration of a run with its settings checked, before any data file is looked for."""
    register()
    check_model(model)
    return PlainConfig(model, dataset, list(config_files), dict(overrides))


def check_model(model: str | type) -> None:
    """Refuse an unknown model by its own name; RecBole would complain about lightgbm instead.

    Raises:
        SettingsError: naming the nearest known model, or a class that is no model of RecBole's.
    """
    from importlib.util import find_spec

    if not isinstance(model, str):
        if not hasattr(model, "type"):
            raise SettingsError(f"model: got {model!r}, wanted a class of RecBole's models, or a name")
        return
    if model in MODEL_NAMES:
        return
    kinds = ("general", "context_aware", "sequential", "knowledge_aware", "exlib")
    packages = [f"recbole.model.{kind}_recommender" for kind in kinds]
    ours = model.lower() in map(str.lower, MODEL_NAMES)  # RecBole looks for the very letters
    if (
        model.isidentifier()
        and not ours
        and any(find_spec(f"{package}.{model.lower()}") for package in packages[:4])
    ):
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
