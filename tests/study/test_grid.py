"""The grid of a study: its cells in order, the shipped grids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recbole_dynamicpo.errors import SettingsError
from recbole_dynamicpo.settings import properties_folder
from recbole_dynamicpo.study.grid import DEFAULT, Cell, cells, read_grid

NOTHING: dict[str, Any] = dict.fromkeys(DEFAULT)


def test_the_most_informative_cells_come_first() -> None:
    """The ends, 15, the others from above; plain beside dynamic; further seeds at 15, then elsewhere."""
    axes = {"objective": ["dmpo", "sdpo"], "dynamic": [False, True], "num_negatives": [1, 3, 5, 15, 19, 3]}
    found = cells({**axes, "seed": [7, 8]})
    assert len(found) == len(set(found)) == 40
    assert [cell.seed for cell in found] == [7] * 20 + [8] * 20
    assert [cell.num_negatives for cell in found[:20:4]] == [19, 1, 15, 5, 3]
    assert [cell.num_negatives for cell in found[20::4]] == [15, 19, 1, 5, 3]
    assert found[:2] == [Cell("dmpo", False, 19, 7), Cell("dmpo", True, 19, 7)]
    assert found[1].name == "dmpo-dynamic-K19-s7"
    few = cells({**DEFAULT, "num_negatives": [2, 4], "dynamic": [True], "seed": [1, 2]})
    assert [(cell.num_negatives, cell.seed) for cell in few] == [(4, 1), (2, 1), (4, 2), (2, 2)]


def test_a_cell_asks_the_reference_for_the_most_negatives_of_its_grid() -> None:
    assert Cell("dmpo", True, 3, 7).settings({"num_negatives": [3, 19, 5]}) == {
        "objective": "dmpo",
        "dynamic": True,
        "num_negatives": 3,
        "seed": 7,
        "reference_negatives": 19,
    }


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


def test_the_grid_of_the_collapse_is_that_of_the_command() -> None:
    found = read_grid(str(properties_folder() / "study" / "collapse.yaml"), NOTHING)
    assert found["num_negatives"] == [1, 3, 5, 10, 15, 19]
    assert len(cells(found)) == 36
