"""RecBole's configuration read from plain values only: nothing in a file or a dictionary is evaluated."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from recbole.config import Config

from .data.download import check_name
from .errors import SettingsError
from .names import MODEL_NAMES
from .settings import read_dataset_defaults

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
