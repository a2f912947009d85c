"""The figures of a run: drawn from the right numbers, for every run that there can be."""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recbole_dynamicpo.tracking.figures import (
    MEANS,
    available,
    draw_beta,
    draw_boundary,
    draw_hit_rate,
    pretty,
)

CONTESTANTS = [
    {"name": "popularity", "rows": 200, "hr_at_1": 0.1, "hr_at_1_low": 0.0625, "hr_at_1_high": 0.15},
    {"name": "after SFT", "rows": 200, "hr_at_1": 0.25, "hr_at_1_low": 0.2, "hr_at_1_high": 0.3125},
]


def steps(last: int, **values: Any) -> list[dict[str, Any]]:
    """Return training entries 1 to ``last`` with a loss of 1 / step."""
    return [{"kind": "train", "step": step, "loss": 1 / step, **values} for step in range(1, last + 1)]


def preference(last: int) -> list[dict[str, Any]]:
    """Return entries of the preference stage; one negative in four is at beta0, the others below."""
    counts = [3] + [0] * 9 + [1] + [0] * 9
    return steps(last, reward_win_rate=0.5, reward_margin=1.0, violation_rate=0.25, boundary_size=2.0,
                 beta_counts=counts)  # fmt: skip


def axes_of(figure: Figure, title: str) -> Axes:
    """Return the panel with that title."""
    (found,) = [axis for axis in figure.axes if axis.get_title() == title]
    return found


def drawn(axis: Axes, line: int = 0) -> list[tuple[float, float]]:
    """Return the points of a line."""
    return [(float(x), float(y)) for x, y in axis.lines[line].get_xydata()]


def test_which_figures_there_are() -> None:
    stages = {"sft": steps(3), "preference": preference(3)}
    names = [name for name, _, _ in available(stages, CONTESTANTS, "ndcg_at_5", 20)]
    assert names == ["loss_and_validation", "reward", "boundary", "beta", "hit_rate"]
    assert [name for name, _, _ in available({"sft": steps(3)}, [], "x", None)] == ["loss_and_validation"]
    assert available({}, [], "ndcg_at_5", 20) == []
    assert available({"prepare": [{"kind": "status", "step": 0}]}, [], "ndcg_at_5", 20) == []


def test_a_plain_objective_has_no_strengths() -> None:
    entries = [{**entry, "beta_counts": [0] * 20} for entry in preference(3)]
    assert "beta" not in [name for name, _, _ in available({"preference": entries}, [], "x", None)]


@pytest.mark.parametrize("count", [1, 3, 500])
def test_every_figure_can_be_drawn(count: int) -> None:
    """At 800 x 500, without a warning, from one step to many."""
    valid = [{"kind": "valid", "step": count, "ndcg_at_5": 0.5}]
    stages = {"sft": [*steps(count), *valid], "preference": preference(count)}
    for name, _, draw in available(stages, CONTESTANTS, "ndcg_at_5", 20):
        file = BytesIO()
        draw().savefig(file, format="png")
        width, height = np.frombuffer(file.getvalue()[16:24], dtype=">u4")
        assert (width, height) == (800, 500), name


def test_loss_and_validation() -> None:
    valid = [{"kind": "valid", "step": step, "ndcg_at_5": step / 8} for step in (2, 4)]
    stages = {"sft": [*steps(4), *valid], "preference": preference(2)}
    name, _, draw = available(stages, [], "ndcg_at_5", None)[0]
    figure = draw()
    loss, other, validation, empty = figure.axes
    assert name == "loss_and_validation"
    assert [axis.get_title() for axis in (loss, other)] == ["stage sft", "stage preference"]
    assert drawn(loss) == [(1, 1), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    assert drawn(validation) == [(2, 0.25), (4, 0.5)]
    assert validation.get_ylabel() == "validation NDCG@5"
    assert loss.get_ylabel() == "training loss, nats"
    assert [text.get_text() for text in empty.texts] == ["not validated"]
    assert empty.get_ylim() == validation.get_ylim()


def test_models_of_recbole_have_their_own_score() -> None:
    stages = {"train": [{"kind": "valid", "step": 1, "valid_score": 0.75}]}
    (found,) = available(stages, [], "mrr_at_10", None)
    assert drawn(found[2]().axes[1]) == [(1, 0.75)]


def test_long_series_are_averaged() -> None:
    """240 steps in 24 groups of ten: the first mean is that of the steps 1 to 10."""
    entries = [{**entry, "boundary_size": float(entry["step"])} for entry in preference(240)]
    axis = axes_of(draw_boundary(entries), "boundary size")
    assert len(drawn(axis, 0)) == 240
    assert len(drawn(axis, 1)) == MEANS
    assert drawn(axis, 1)[0] == (5.5, 5.5)


def test_strengths_over_time() -> None:
    """Each column is one step; its shares are of the boundary negatives of that step."""
    axis, bar = draw_beta(preference(3)).axes
    (mesh,) = axis.collections
    values = np.ma.getdata(mesh.get_array()).reshape(20, 3)
    assert values[0].tolist() == [0.75, 0.75, 0.75]
    assert values[10].tolist() == [0.25, 0.25, 0.25]
    assert np.isnan(values[[1, 9, 11, 19]]).all()
    assert axis.get_xlim() == (0.5, 3.5)
    assert axis.get_ylim() == (0.5, 1.5)
    assert bar.get_ylabel() == "share of the boundary negatives"


def test_a_step_without_boundary_negatives() -> None:
    entries = preference(2)
    entries[0]["beta_counts"] = [0] * 20
    values = np.ma.getdata(draw_beta(entries).axes[0].collections[0].get_array()).reshape(20, 2)
    assert np.isnan(values[:, 0]).all()
    assert math.isclose(np.nansum(values[:, 1]), 1)


def test_hit_rates() -> None:
    figure = draw_hit_rate(CONTESTANTS, 0.05)
    (axis,) = figure.axes
    bars, intervals = axis.containers[1], axis.containers[0]
    assert [bar.get_height() for bar in bars] == [0.1, 0.25]
    low_high = [segment[:, 1].tolist() for segment in intervals.lines[2][0].get_segments()]
    assert low_high == [pytest.approx([0.0625, 0.15]), pytest.approx([0.2, 0.3125])]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["popularity", "after SFT"]
    assert [text.get_text() for text in axis.texts] == ["0.100", "0.250"]
    assert axis.get_legend_handles_labels()[1] == ["random choice, 0.050"]
    assert "200 test rows" in figure.get_suptitle()


def test_a_bound_that_rounding_moved() -> None:
    """A bar of 0 has its lower bound at 0, which may be computed as a hair above."""
    line = {"name": "x", "rows": 3, "hr_at_1": 0.0, "hr_at_1_low": 1e-18, "hr_at_1_high": 0.5}
    draw_hit_rate([line], None).savefig(BytesIO(), format="png")


@pytest.mark.parametrize(
    ("name", "shown"), [("ndcg_at_5", "NDCG@5"), ("mrr_at_10", "MRR@10"), ("auc", "AUC")]
)
def test_metrics_are_spelt_as_recbole_does(name: str, shown: str) -> None:
    assert pretty(name) == shown
