"""The figures of a run, from its journal and its report: matplotlib figures that belong to no window.

They are drawn in a thread of the training process, hence without pyplot and its global state. Colours
are those of Okabe and Ito, which people with any common colour blindness can tell apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..objectives.boundary import TANH_SCALE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Entry = Mapping[str, Any]  # of a journal
Drawing = tuple[str, Any, Callable[[], "Figure"]]  # name, what it is made from, how to draw it

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
SIZE, DPI = (8.0, 5.0), 100  # 800 x 500 pixels
# More steps than this are drawn faintly, with so many means of neighbours above them.
MOST_POINTS, MEANS = 60, 24
MOST_UPRIGHT = 6  # names of bars that stand beside one another


def available(
    stages: Mapping[str, Sequence[Entry]],
    contestants: Sequence[Mapping[str, Any]],
    metric: str,
    num_candidates: Any,
) -> list[Drawing]:
    """Return the figures that there is data for.

    Args:
        stages: stage -> its journal entries.
        contestants: lines of the report.
        metric: that validation decides by, as the journal names it.
        num_candidates: of a test row, for the rate of a random choice; anything but a number: unknown.
    """
    training = {stage: series for stage in stages if (series := training_series(stages[stage], metric))}
    preference = [entry for entry in stages.get("preference", ()) if "boundary_size" in entry]
    found: list[Drawing] = []
    if training:
        found.append(("loss_and_validation", training, partial(draw_training, training, metric)))
    if preference:
        found.append(("reward", preference, partial(draw_reward, preference)))
        found.append(("boundary", preference, partial(draw_boundary, preference)))
        if any(sum(entry.get("beta_counts", ())) for entry in preference):
            found.append(("beta", preference, partial(draw_beta, preference)))
    if contestants:
        random = 1 / num_candidates if isinstance(num_candidates, int) and num_candidates > 0 else None
        data = [list(contestants), random]
        found.append(("hit_rate", data, partial(draw_hit_rate, contestants, random)))
    return found


def training_series(entries: Sequence[Entry], metric: str) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) of the loss and of the validation metric, where there are any."""
    names = (metric, "valid_score")  # the second is what models of others leave
    series = {
        "loss": [(e["step"], e["loss"]) for e in entries if e["kind"] == "train" and "loss" in e],
        "valid": [
            (e["step"], e[name]) for e in entries for name in names if e["kind"] == "valid" and name in e
        ],
    }
    return series if any(series.values()) else {}


def draw_training(stages: Mapping[str, Mapping[str, Any]], metric: str) -> Figure:
    """Draw loss above and validation metric below, one column a stage."""
    figure, axes = _panels(2, len(stages), "Loss and validation of each stage")
    for column, (stage, series) in enumerate(stages.items()):
        top, bottom = axes[0][column], axes[1][column]
        top.set_title(f"stage {stage}", fontsize=11)
        _curve(top, series["loss"], BLUE, "training loss, nats" if column == 0 else "")
        valid = np.array(series["valid"], dtype=float).reshape(-1, 2)
        bottom.plot(valid[:, 0], valid[:, 1], color=ORANGE, marker="o", markersize=4)
        if not len(valid):
            bottom.text(0.5, 0.5, "not validated", ha="center", transform=bottom.transAxes, color=GREY)
        bottom.set_ylabel(f"validation {pretty(metric)}" if column == 0 else "")
        bottom.set_xlabel("optimizer step")
        limits = [step for name in ("loss", "valid") for step, _ in series[name]]
        for axis in (top, bottom):
            axis.set_xlim(0, 1.03 * max(1, *limits))
    _share_range(axes[1])
    return figure


def draw_reward(entries: Sequence[Entry]) -> Figure:
    """Draw how often, and by how much, the positive's reward is above the negatives'."""
    figure, axes = _panels(2, 1, "Rewards in the preference stage")
    win, margin = axes[0][0], axes[1][0]
    _curve(win, _series(entries, "reward_win_rate"), BLUE, "rows won, share")
    win.set_ylim(-0.03, 1.03)
    win.set_title("rows where the positive's reward is above every negative's", fontsize=10)
    _curve(margin, _series(entries, "reward_margin"), GREEN, "margin, nats")
    margin.axhline(0, color=GREY, linewidth=1, linestyle="--")
    margin.set_title("positive's reward minus the negatives' mean", fontsize=10)
    margin.set_xlabel("optimizer step")
    return figure


def draw_boundary(entries: Sequence[Entry]) -> Figure:
    """Draw how many negatives are on the boundary, and how many rows have a violation."""
    figure, axes = _panels(2, 1, "Boundary negatives in the preference stage")
    size, rate = axes[0][0], axes[1][0]
    _curve(size, _series(entries, "boundary_size"), BLUE, "negatives a row")
    size.set_ylim(bottom=0)
    size.set_title("boundary size", fontsize=10)
    _curve(rate, _series(entries, "violation_rate"), ORANGE, "rows, share")
    rate.set_ylim(-0.03, 1.03)
    rate.set_title("rows where a negative is at least as likely as the positive", fontsize=10)
    rate.set_xlabel("optimizer step")
    return figure


def draw_beta(entries: Sequence[Entry]) -> Figure:
    """Draw the histogram of the dual-margin strength at every step, as shares of that step."""
    shown = [entry for entry in entries if "beta_counts" in entry]
    groups = np.array_split(np.arange(len(shown)), min(len(shown), MOST_POINTS))
    counts = np.array([np.sum([shown[i]["beta_counts"] for i in group], axis=0) for group in groups], float)
    edges = [shown[group[0]]["step"] - 0.5 for group in groups] + [shown[-1]["step"] + 0.5]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = _panels(1, 1, "Strength of the boundary negatives over time")
    axis = axes[0][0]
    bins = np.linspace(1 - TANH_SCALE, 1 + TANH_SCALE, counts.shape[1] + 1)
    # Empty cells stay white, so that a rare strength can be told from none.
    drawn = axis.pcolormesh(edges, bins, np.where(shares > 0, shares, np.nan).T, cmap="viridis_r", vmin=0)
    figure.colorbar(drawn, ax=axis, label="share of the boundary negatives")
    axis.axhline(1, color=GREY, linewidth=1, linestyle="--")
    axis.set_xlabel("optimizer step")
    axis.set_ylabel("beta / beta0")
    return figure


def draw_hit_rate(contestants: Sequence[Mapping[str, Any]], random: float | None) -> Figure:
    """Draw HR@1 of everyone in the report as bars with their 95 % intervals."""
    figure, axes = _panels(1, 1, f"HR@1 on {contestants[-1]['rows']} test rows, with 95 % intervals")
    axis = axes[0][0]
    heights = np.array([c["hr_at_1"] for c in contestants])
    low = heights - np.array([c["hr_at_1_low"] for c in contestants])
    high = np.array([c["hr_at_1_high"] for c in contestants]) - heights
    places = np.arange(len(contestants))
    colours = [GREY] * (len(contestants) - 1) + [BLUE]
    # Rounding may put a bound a hair on the wrong side of the bar's end.
    errors = np.maximum([low, high], 0)
    axis.bar(places, heights, width=0.6, color=colours, yerr=errors.tolist(), capsize=5, ecolor="black")
    for place, height, above in zip(places, heights, errors[1], strict=True):
        axis.annotate(
            f"{height:.3f}", (place, height + above), (0, 4), textcoords="offset points", ha="center"
        )
    if random is not None:
        axis.axhline(random, color=ORANGE, linestyle="--", label=f"random choice, {random:.3f}")
        axis.legend(loc="upper left", frameon=False)
    axis.set_ylim(0, min(1.15, 1.35 * float((heights + errors[1]).max()) + 0.02))
    turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if len(contestants) > MOST_UPRIGHT else {}
    axis.set_xticks(places, [_wrapped(str(c["name"])) for c in contestants], **turned)
    axis.set_ylabel("HR@1, share of rows")
    axis.grid(visible=False, axis="x")
    return figure


def pretty(metric: str) -> str:
    """Return a metric as RecBole spells it: ``ndcg_at_5`` is ``NDCG@5``."""
    return metric.replace("_at_", "@").upper()


def _panels(rows: int, columns: int, title: str) -> tuple[Figure, list[list[Axes]]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=13)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axis in grid.flat:
        axis.grid(color="#DDDDDD", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.get_major_locator().set_params(integer=True)
    return figure, grid.tolist()


def _curve(axis: Axes, series: Sequence[tuple[int, float]], colour: str, label: str) -> None:
    """Draw a series; a long one as faint steps and the means of neighbouring steps."""
    points = np.array(series, dtype=float).reshape(-1, 2)
    axis.set_ylabel(label)
    if len(points) <= MOST_POINTS:
        axis.plot(points[:, 0], points[:, 1], color=colour, marker="o", markersize=3, linewidth=1.5)
        return
    axis.plot(points[:, 0], points[:, 1], color=colour, alpha=0.25, linewidth=0.8)
    means = np.array([group.mean(axis=0) for group in np.array_split(points, MEANS)])
    axis.plot(means[:, 0], means[:, 1], color=colour, linewidth=2)


def _series(entries: Sequence[Entry], name: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[name]) for entry in entries if name in entry]


def _share_range(axes: Sequence[Axes]) -> None:
    """Give panels that stand side by side one vertical range, so that heights can be compared."""
    drawn = [axis for axis in axes if axis.lines and len(axis.lines[0].get_ydata())]  # type: ignore[arg-type]
    if drawn:
        low = min(axis.get_ylim()[0] for axis in drawn)
        high = max(axis.get_ylim()[1] for axis in drawn)
        for axis in axes:
            axis.set_ylim(low, high)


def _wrapped(name: str) -> str:
    """Return a name in lines of at most about 16 characters."""
    lines = [""]
    for word in name.split():
        if lines[-1] and len(lines[-1]) + len(word) > 15:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
