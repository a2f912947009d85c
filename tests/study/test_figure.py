"""The figure of a study: a column an objective, a mark a run, lines through the means of the seeds."""

from __future__ import annotations

from typing import Any

import pytest

from recbole_dynamicpo.study.figure import draw
from recbole_dynamicpo.study.grid import Cell, cells

VALUES = {1: 0.2, 2: 0.25}


def result(cell: Cell, **more: Any) -> dict[str, Any]:
    own = {"hr_at_1": VALUES[cell.seed], "hr_at_1_low": 0.1, "hr_at_1_high": 0.3}
    own |= {
        "ndcg_at_5": 0.4,
        "ndcg_at_5_low": 0.3,
        "ndcg_at_5_high": 0.5,
        "training_loss": 0.7,
        "violated": 0.1,
    }
    return {**cell.__dict__, **own, **more}


def test_lines_join_the_means_and_every_run_has_a_mark() -> None:
    grid = {"objective": ["dmpo", "sdpo"], "dynamic": [False, True], "num_negatives": [1, 5], "seed": [1, 2]}
    figure = draw([result(cell) for cell in cells(grid)], "toy")
    assert len(figure.axes) == 8
    assert [axis.get_title() for axis in figure.axes[:2]] == ["dmpo", "sdpo"]
    labels = [axis.get_ylabel() for axis in figure.axes[::2]]
    assert [label.split(",")[0] for label in labels] == [
        "HR@1",
        "NDCG@5",
        "loss at the end of training",
        "plain gradient on violated negatives",
    ]
    for axis in figure.axes:
        assert len(axis.containers) == 8
        assert list(axis.get_xticks()) == [1, 5]
    means = [
        list(line.get_ydata())
        for line in figure.axes[0].lines
        if len(line.get_ydata()) == 2 and line.get_label()[0] != "_"
    ]
    assert means == [pytest.approx([0.225, 0.225])] * 2
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["plain", "dynamic"]


def test_what_is_not_known_is_left_out() -> None:
    """A stage of no steps has neither loss nor shares."""
    figure = draw([result(Cell("dmpo", False, 3, 1), training_loss=None, violated=None)], "toy")
    assert [len(axis.containers) for axis in figure.axes] == [1, 1, 0, 0]


def test_no_panel_of_a_row_is_cut_by_the_limits_of_the_first() -> None:
    grid = {"objective": ["dmpo", "sdpo"], "dynamic": [False], "num_negatives": [1, 5], "seed": [1]}
    larger = {"dmpo": {}, "sdpo": {"hr_at_1": 0.6, "hr_at_1_high": 0.7, "violated": 0.9}}
    figure = draw([result(cell, **larger[cell.objective]) for cell in cells(grid)], "toy")
    limits = [axis.get_ylim() for axis in figure.axes[1::2]]
    assert [limits[row][0] for row in (0, 1, 3)] == [0, 0, 0]
    assert limits[0][1] > 0.7
    assert limits[3][1] > 0.9
