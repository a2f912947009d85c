"""What RecBole 1.2.1 imports and newer Pythons lack: ray, and names that numpy 2 dropped.

RecBole uses ray for its own hyperparameter search alone, but imports it with everything else; ray 2.6.3, the
newest that it allows, has no wheel for Python 3.12.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

# Names that RecBole's configurator reads -> what they stood for.
_DROPPED = {"float_": "float64", "complex_": "complex128", "unicode_": "str_", "bool8": "bool_"}


def prepare() -> None:
    """Supply what is missing, and touch nothing that is there; called before RecBole is imported."""
    import numpy

    if int(numpy.__version__.partition(".")[0]) >= 2:
        for name, stands_for in _DROPPED.items():
            if name not in vars(numpy):
                setattr(numpy, name, getattr(numpy, stands_for))
    if "ray" not in sys.modules and importlib.util.find_spec("ray") is None:
        ray, tune = ModuleType("ray"), _Absent("ray.tune")
        ray.tune = tune  # type: ignore[attr-defined]
        sys.modules.update({"ray": ray, "ray.tune": tune})


class _Absent(ModuleType):
    """A module that can be imported, and says what is missing when it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"{self.__name__}.{name}: RecBole's search needs ray, which is not installed")
