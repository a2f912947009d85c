"""What a cell leaves: figures by hand, files that are whole, damage that is noticed."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest

from recbole_dynamicpo.errors import DataError
from recbole_dynamicpo.evaluation.by_user import each_alone, share_interval
from recbole_dynamicpo.evaluation.ranks import read_ranks
from recbole_dynamicpo.study.grid import Cell
from recbole_dynamicpo.study.results import (
    CELLS,
    cell_result,
    keep,
    keep_error,
    kept_cells,
    other_ingredients,
)

from .made_cells import made_cell

CELL = Cell("dmpo", True, 3, 7)


def test_the_figures_of_a_cell_by_hand(tmp_path: Path) -> None:
    """Ranks 1, 1, 3, 6: HR@1 1/2, NDCG@5 (2 + 1/2) / 4, MRR (2 + 1/3 + 1/6) / 4.

    Losses 1 to 8: the last quarter is 7 and 8. Shares 1 / n: the eighth harmonic number over 8.
    """
    found = made_cell(tmp_path, CELL, [1, 1, 3, 6])
    assert (found["objective"], found["dynamic"], found["num_negatives"], found["seed"]) == (
        "dmpo",
        True,
        3,
        7,
    )
    assert (found["rows"], found["hr_at_1"], found["steps"]) == (4, 0.5, 8)
    assert (found["hr_at_1_low"], found["hr_at_1_high"]) == share_interval([1, 1, 0, 0], each_alone(4))
    assert found["ndcg_at_5"] == pytest.approx((2 + 1 / math.log2(4)) / 4)
    assert found["mrr"] == pytest.approx(2.5 / 4)
    assert found["mrr_low"] <= found["mrr"] <= found["mrr_high"]
    assert found["training_loss"] == 7.5
    assert found["violated"] == pytest.approx(sum(1 / n for n in range(1, 9)) / 8)
    assert found["boundary"] == 1.0


def test_a_cell_without_ranks_is_no_result(tmp_path: Path) -> None:
    made_cell(tmp_path, CELL, [1, 2])
    ranks = tmp_path / CELL.name / "evaluate" / "ranks.parquet"
    ranks.unlink()
    with pytest.raises(DataError, match="no such file"):
        cell_result(CELL, {"evaluate": ranks.parent, "preference": ranks.parent}, {})


def test_a_kept_cell_holds_its_ranks(tmp_path: Path) -> None:
    """The run that it was made from may go."""
    made = made_cell(tmp_path / "runs", CELL, [1, 4])
    keep(tmp_path, CELL, made)
    (found,) = kept_cells(tmp_path)
    assert {**found, "ranks": "", "ranks_sha256": ""} == {**made, "ranks": "", "ranks_sha256": ""}
    assert Path(found["ranks"]).parent == tmp_path / CELLS
    assert read_ranks(Path(found["ranks"])).ranks.tolist() == [1, 4]


def test_a_failed_cell_is_kept_with_its_error(tmp_path: Path) -> None:
    keep_error(tmp_path, CELL, DataError("row 3: no title"))
    (found,) = kept_cells(tmp_path)
    assert found["error"] == "DataError: row 3: no title"
    keep(tmp_path, CELL, made_cell(tmp_path / "runs", CELL, [1]))
    (found,) = kept_cells(tmp_path)
    assert "error" not in found


@pytest.mark.parametrize("damage", ["cut", "ranks", "name", "list"])
def test_a_damaged_cell_is_moved_aside(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep(tmp_path, CELL, made_cell(tmp_path / "runs", CELL, [1, 2]))
    path = tmp_path / CELLS / f"{CELL.name}.json"
    if damage == "cut":
        path.write_text(path.read_text()[:50])
    elif damage == "ranks":
        path.with_suffix(".parquet").write_bytes(b"")
    elif damage == "name":
        path.write_text(json.dumps({**json.loads(path.read_text()), "seed": 8}))
    else:
        path.write_text("[]")
    with caplog.at_level(logging.WARNING, "recbole_dynamicpo"):
        assert list(kept_cells(tmp_path)) == []
    assert f"{path}: damaged" in caplog.text
    assert not path.exists()
    assert path.with_name(f"{path.name}.damaged-1").exists()


def test_other_settings_are_named(tmp_path: Path) -> None:
    found = made_cell(tmp_path, CELL, [1])
    assert other_ingredients(found, {"seed": 7, "fact.data": "d"}) == []
    assert other_ingredients(found, {"seed": 8, "fact.data": "d"}) == ["seed"]
    assert other_ingredients(found, {"seed": 7, "fact.data": "d", "reference_negatives": 19}) == []
