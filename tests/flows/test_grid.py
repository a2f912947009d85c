"""The grid of a study: cells, the shipped grid, the figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recbole_dynamicpo.errors import SettingsError
from recbole_dynamicpo.flows.grid import DEFAULT, Cell, cells, draw, read_grid, table_row
from recbole_dynamicpo.settings import properties_folder

NOTHING: dict[str, Any] = dict.fromkeys(DEFAULT)


def test_cells_of_one_seed_lie_together() -> None:
    found = cells(
        {"objective": ["dmpo"], "dynamic": [False, True], "num_negatives": [3, 1, 3], "seed": [1, 2]}
    )
    assert len(found) == 8
    assert [cell.seed for cell in found] == [1] * 4 + [2] * 4
    assert found[0] == Cell("dmpo", False, 3, 1)
    assert found[-1].name == "dmpo-dynamic-K1-s2"


def test_lists_that_are_given_win_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    assert read_grid(None, NOTHING) == DEFAULT
    path = tmp_path / "grid.yaml"
    path.write_text("num_negatives: [1, 2]\nseed: [5]\n")
    found = read_grid(str(path), {**NOTHING, "seed": [9]})
    assert found == {**DEFAULT, "num_negatives": [1, 2], "seed": [9]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_negatifs: [1]", "unknown axis 'num_negatifs'.*num_negatives"),
        ("seed: 3", "seed: got 3, wanted a list"),
        ("seed: []", "seed: got "),
        ("[1, 2]", "got list, wanted axis"),
        ("!!python/object/apply:os.getcwd []", "cannot be read as YAML"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_grid(str(path), NOTHING)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_grid(str(tmp_path / "nowhere.yaml"), NOTHING)


def test_the_papers_grid_can_be_run() -> None:
    found = cells(read_grid(str(properties_folder() / "study" / "paper.yaml"), NOTHING))
    assert len(found) == 30
    assert {cell.objective for cell in found} == {"dmpo", "mppo", "sdpo"}
    assert max(cell.num_negatives for cell in found) <= 19


def test_the_figure_has_a_line_for_plain_and_dynamic_and_a_bar_for_every_run() -> None:
    line = {"hr_at_1_low": 0.1, "hr_at_1_high": 0.3, "ndcg_at_5": 0.4, "mrr": 0.3, "rows": 50, "name": "x"}
    grid = {"objective": ["dmpo", "sdpo"], "dynamic": [False, True], "num_negatives": [1, 5], "seed": [1, 2]}
    values = {1: 0.2, 2: 0.25}
    rows = [table_row(cell, {**line, "hr_at_1": values[cell.seed]}, "run") for cell in cells(grid)]
    figure = draw(rows, "toy")
    assert [axis.get_title() for axis in figure.axes] == ["dmpo", "sdpo"]
    for axis in figure.axes:
        assert len(axis.containers) == 8
        assert list(axis.get_xticks()) == [1, 5]
        means = [
            list(line.get_ydata())
            for line in axis.lines
            if len(line.get_ydata()) == 2 and line.get_label()[0] != "_"
        ]
        assert means == [pytest.approx([0.225, 0.225])] * 2
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["plain", "dynamic"]
