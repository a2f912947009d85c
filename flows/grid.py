"""The grid of a study: its cells, its table, its figure."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from recbole_dynamicpo.errors import SettingsError, nearest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What is varied, and the small grid that is run where nothing else is asked for.
DEFAULT: dict[str, list[Any]] = {
    "objective": ["dmpo"],
    "dynamic": [False, True],
    "num_negatives": [3, 15],
    "seed": [2020],
}
# Of Okabe and Ito; plain and dynamic also differ by marker.
_STYLES = {False: ("#0072B2", "o", "plain"), True: ("#D55E00", "s", "dynamic")}
# Share of the horizontal axis between runs that would lie upon each other.
_APART = 0.012


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
        kind = "dynamic" if self.dynamic else "plain"
        return f"{self.objective}-{kind}-K{self.num_negatives}-s{self.seed}"


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
    """Return the cells, those of one seed together: they share an SFT adapter."""
    order = ("seed", "objective", "dynamic", "num_negatives")
    every = itertools.product(*(dict.fromkeys(axes[name]) for name in order))
    return [Cell(**dict(zip(order, values, strict=True))) for values in every]


def table_row(cell: Cell, line: Mapping[str, Any], run: str) -> dict[str, Any]:
    """Return one line of the study's table: the cell, and the final model's line of its report."""
    kept = ("hr_at_1", "hr_at_1_low", "hr_at_1_high", "ndcg_at_5", "mrr", "rows")
    return {**asdict(cell), **{name: line[name] for name in kept}, "run": run}


def draw(rows: Sequence[Mapping[str, Any]], dataset: str) -> Figure:
    """Draw HR@1 with 95 % intervals against the number of negatives, a panel an objective.

    Every run is a mark of its own; lines join the means over the seeds.
    """
    from matplotlib.figure import Figure

    objectives = list(dict.fromkeys(row["objective"] for row in rows))
    figure = Figure(figsize=(1.6 + 4.4 * len(objectives), 4.4), dpi=110, layout="constrained")
    figure.suptitle(f"{dataset}: HR@1 on the test rows, 95 % intervals", fontsize=12)
    panels = figure.subplots(1, len(objectives), sharey=True, squeeze=False)[0]
    for axis, objective in zip(panels, objectives, strict=True):
        _panel(axis, [row for row in rows if row["objective"] == objective])
        axis.set_title(objective, fontsize=11)
    panels[0].set_ylabel("HR@1, share of test rows")
    panels[0].legend(frameon=False)
    return figure


def _panel(axis: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    widths = sorted({row["num_negatives"] for row in rows})
    apart = _APART * max(widths[-1] - widths[0], 1)
    series: dict[bool, dict[int, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        series[row["dynamic"]][row["num_negatives"]].append(row)
    for dynamic, by_width in sorted(series.items()):
        colour, marker, label = _STYLES[dynamic]
        shift = apart if dynamic else -apart
        for width, found in by_width.items():
            for place, row in enumerate(found):
                beside = shift + (place - (len(found) - 1) / 2) * apart * 0.6
                value = row["hr_at_1"]
                # Rounding may put a bound a hair on the wrong side.
                error = [[max(0, value - row["hr_at_1_low"])], [max(0, row["hr_at_1_high"] - value)]]
                axis.errorbar(width + beside, value, error, fmt=marker, color=colour, capsize=3, markersize=5)
        order = sorted(by_width)
        means = [sum(row["hr_at_1"] for row in by_width[k]) / len(by_width[k]) for k in order]
        axis.plot([k + shift for k in order], means, color=colour, marker=marker, markersize=5, label=label)
    axis.set_xticks(widths)
    axis.set_xlabel("number of negatives K")
    axis.set_ylim(bottom=0)
    axis.grid(color="#DDDDDD", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
