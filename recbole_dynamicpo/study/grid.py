"""The grid of a study: its axes, and its cells with the most informative ones first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import SettingsError, nearest
from ..settings import properties_folder

# What is varied, and the small grid that is run where nothing else is asked for.
DEFAULT: dict[str, list[Any]] = {
    "objective": ["dmpo"],
    "dynamic": [False, True],
    "num_negatives": [3, 15],
    "seed": [2020],
}
# The number of negatives that is run with several seeds first, where the grid has it.
DEEP = 15


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    objective: str
    dynamic: bool
    num_negatives: int
    seed: int

    @property
    def name(self) -> str:
        """What the run is called."""
        return f"{self.objective}-{kind_of(self.dynamic)}-K{self.num_negatives}-s{self.seed}"

    def settings(self, axes: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Return the settings of the cell; the reference is asked once for all numbers of negatives."""
        return {**asdict(self), "reference_negatives": max(axes["num_negatives"])}


def kind_of(dynamic: bool) -> str:
    """Return how the two forms of an objective are called."""
    return "dynamic" if dynamic else "plain"


def shipped_path(name: str) -> str:
    """Return the path of a YAML file: as given, else that of a shipped one of that name."""
    shipped = properties_folder() / name
    return str(shipped) if not Path(name).exists() and shipped.is_file() else name


def read_grid(path: str | None, given: Mapping[str, Sequence[Any] | None]) -> dict[str, list[Any]]:
    """Return the values of each axis: as given, else those of the file, else the default ones.

    Raises:
        SettingsError: the file cannot be read, or an axis is unknown, empty or no list.
    """
    found: Any = {}
    if path is not None:
        try:
            found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise SettingsError(f"grid {path}: cannot be read as YAML ({error})") from error
        if not isinstance(found, dict):
            raise SettingsError(f"grid {path}: got {type(found).__name__}, wanted axis: list lines")
    for name, values in found.items():
        if name not in DEFAULT:
            raise SettingsError(f"grid {path}: unknown axis '{name}'{nearest(str(name), DEFAULT)}")
        if not isinstance(values, list) or not values:
            raise SettingsError(f"grid {path}: {name}: got {values!r}, wanted a list of values")
    named = {name: list(values) for name, values in given.items() if values}
    return {name: named.get(name) or found.get(name) or values for name, values in DEFAULT.items()}


def cells(axes: Mapping[str, Sequence[Any]]) -> list[Cell]:
    """Return the cells, the most informative first.

    The first seed comes first: the most and the fewest negatives, between which a collapse shows, then
    ``DEEP``, then the others from above. Further seeds follow at ``DEEP``, and at last elsewhere. Plain and
    dynamic stand side by side, as they are compared.
    """
    widths = _by_interest(axes["num_negatives"])
    deep = DEEP if DEEP in widths else widths[0]
    first, *others = dict.fromkeys(axes["seed"])
    found = [*_cells(axes, [first], widths), *_cells(axes, others, [deep])]
    return [*found, *_cells(axes, others, [width for width in widths if width != deep])]


def _by_interest(widths: Sequence[int]) -> list[int]:
    down = sorted(set(widths), reverse=True)
    ends = list(dict.fromkeys([down[0], down[-1]]))
    deep = [width for width in down if width == DEEP]
    return list(dict.fromkeys([*ends, *deep, *down]))


def _cells(axes: Mapping[str, Sequence[Any]], seeds: Sequence[int], widths: Sequence[int]) -> Iterator[Cell]:
    for seed in seeds:
        for width in widths:
            for objective in dict.fromkeys(axes["objective"]):
                for dynamic in dict.fromkeys(axes["dynamic"]):
                    yield Cell(objective, dynamic, width, seed)
