"""The figure of a study: ranks, training loss and gradient share against the number of negatives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .grid import kind_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = Sequence[Mapping[str, Any]]
# Of Okabe and Ito; plain and dynamic also differ by marker.
_STYLES = {False: ("#0072B2", "o"), True: ("#D55E00", "s")}
# Share of the horizontal axis between runs that would lie upon each other.
_APART = 0.012


class _Row(NamedTuple):
    value: str  # of a result; <value>_low and <value>_high are its interval, where there is one
    label: str
    from_zero: bool


_ROWS = (
    _Row("hr_at_1", "HR@1, share of test rows", True),
    _Row("ndcg_at_5", "NDCG@5", True),
    _Row("training_loss", "loss at the end of training, nats", False),
    _Row("violated", "plain gradient on violated negatives, share", True),
)


def draw(results: Results, dataset: str) -> Figure:
    """Draw HR@1 and NDCG@5 with 95 % intervals, training loss and the gradient share of violated negatives.

    A column is an objective. Every run is a mark of its own; lines join the means over the seeds.
    """
    from matplotlib.figure import Figure

    objectives = list(dict.fromkeys(found["objective"] for found in results))
    size = (1.6 + 4.0 * len(objectives), 0.8 + 2.7 * len(_ROWS))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    figure.suptitle(f"{dataset}: against the number of negatives; 95 % intervals", fontsize=12)
    grid = figure.subplots(len(_ROWS), len(objectives), sharey="row", squeeze=False)
    for row, axes in zip(_ROWS, grid, strict=True):
        for axis, objective in zip(axes, objectives, strict=True):
            _panel(axis, [found for found in results if found["objective"] == objective], row)
        axes[0].set_ylabel(row.label)
        if row.from_zero:  # when all is drawn, for a limit that is set stays
            axes[0].set_ylim(bottom=0)
    for axis, objective in zip(grid[0], objectives, strict=True):
        axis.set_title(objective, fontsize=11)
    for axis in grid[-1]:
        axis.set_xlabel("number of negatives K")
    grid[0][0].legend(frameon=False)
    return figure


def _panel(axis: Axes, results: Results, row: _Row) -> None:
    widths = sorted({found["num_negatives"] for found in results})
    apart = _APART * max(widths[-1] - widths[0], 1)
    series: dict[bool, dict[int, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for found in results:
        if found[row.value] is not None:
            series[found["dynamic"]][found["num_negatives"]].append(found)
    for dynamic, by_width in sorted(series.items()):
        colour, marker = _STYLES[dynamic]
        shift = apart if dynamic else -apart
        for width, runs in by_width.items():
            for place, run in enumerate(runs):
                beside = shift + (place - (len(runs) - 1) / 2) * apart * 0.6
                axis.errorbar(
                    width + beside, run[row.value], _error(run, row.value),
                    fmt=marker, color=colour, capsize=3, markersize=5,
                )  # fmt: skip
        order = sorted(by_width)
        means = [sum(run[row.value] for run in by_width[k]) / len(by_width[k]) for k in order]
        label = kind_of(dynamic)
        axis.plot([k + shift for k in order], means, color=colour, marker=marker, markersize=5, label=label)
    axis.set_xticks(widths)
    axis.grid(color="#DDDDDD", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _error(run: Mapping[str, Any], value: str) -> list[list[float]] | None:
    if f"{value}_low" not in run:
        return None
    # Rounding may put a bound a hair on the wrong side.
    return [[max(0, run[value] - run[f"{value}_low"])], [max(0, run[f"{value}_high"] - run[value])]]
