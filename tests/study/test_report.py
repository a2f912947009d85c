"""What a study shows: cells, tests and failures in one page, the figure in two forms."""

from __future__ import annotations

from pathlib import Path

from recbole_dynamicpo.errors import DataError
from recbole_dynamicpo.study.grid import Cell
from recbole_dynamicpo.study.report import FIGURE_FILES, TABLE_FILE, write_study
from recbole_dynamicpo.study.results import keep, keep_error

from .made_cells import made_cell, ranks_with


def test_a_study_is_shown_whole(tmp_path: Path) -> None:
    for dynamic, width, hits in ((False, 1, 100), (False, 19, 40), (True, 19, 90)):
        cell = Cell("dmpo", dynamic, width, 7)
        keep(tmp_path, cell, made_cell(tmp_path / "runs", cell, ranks_with(hits)))
    keep_error(tmp_path, Cell("dmpo", True, 1, 7), DataError("row 3: no title"))
    said = write_study(tmp_path, "toy")
    assert "collapses from K = 1 to K = 19" in said
    text = (tmp_path / TABLE_FILE).read_text()
    assert said in text
    assert "| dmpo | plain | 19 | 7 | 0.2000 [" in text
    assert (
        "| dmpo plain, K = 19 | dmpo dynamic, K = 19 | 1 | 200 | 0.2000, 0.4500 | +0.2500 | 0, 50 |" in text
    )
    assert "corrected by Holm for 2 comparisons" in text
    assert "- objective dmpo, kind dynamic, K 1, seed 7: DataError: row 3: no title" in text
    png, svg = ((tmp_path / name).read_bytes() for name in FIGURE_FILES)
    assert png.startswith(b"\x89PNG")
    assert b"<svg" in svg


def test_what_a_reader_has_to_know_stands_below(tmp_path: Path) -> None:
    for seed, more in ((7, {"code": "other"}), (8, {"ranked": "after SFT"})):
        cell = Cell("dmpo", False, 3, seed)
        keep(tmp_path, cell, made_cell(tmp_path / "runs", cell, [1, 2], **more))
    write_study(tmp_path, "toy")
    text = (tmp_path / TABLE_FILE).read_text()
    assert "made by 2 versions of the code" in text
    assert "Validation of 1 cells chose the SFT adapter" in text


def test_nothing_yet(tmp_path: Path) -> None:
    assert write_study(tmp_path, "toy").startswith("Nothing can be said yet")
    assert not (tmp_path / FIGURE_FILES[0]).exists()
